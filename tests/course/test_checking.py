"""What a check says to whoever it meets: wrong kinds of answers, misbehaviour, and attempts to get by without work."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from rlhf_lib.course import observe
from rlhf_lib.course.checking import check
from rlhf_lib.course.exercises import PREAMBLES
from rlhf_lib.maths import advantages
from tests.course.written import solution, solved, written

PREAMBLE = PREAMBLES["03_gae"]
HEAD = "def returns(advantages, values, action_mask):"
RIGHT = "keep(advantages + values_before(values), action_mask)"


def says(body: str, head: str = HEAD) -> str:
    """What the check of `returns` says to a function with this body."""
    text = head + "".join(f"\n    {line}" for line in body.split("\n")) + "\n"
    return str(check.returns(written(text, PREAMBLE)))


@pytest.mark.parametrize(
    ("body", "expected"),
    {
        "raises": ("x = values[0, 99]\nreturn x", ["IndexError", "In line 2 of your function: x = values[0, 99]"]),
        "nothing returned": (f"x = {RIGHT}", ["returns None: is the `return` missing?"]),
        "a list": (f"return ({RIGHT}).tolist()", ["should be a tensor, it is a list"]),
        "a pair": (f"return {RIGHT}, values", ["should return result; it returns result 1, result 2"]),
        "a number": (f"return float(({RIGHT}).sum())", ["has shape (), it should have (1, 1)"]),
        "reduced": (f"return ({RIGHT}).sum(1)", ["has shape (1,), it should have (1, 1)"]),
        "as wide as the states": (
            "return torch.nn.functional.pad(" + RIGHT + ", (0, 1))",
            ["has shape (1, 2), it should have (1, 1)"],
        ),
        "whole numbers": (f"return ({RIGHT}).long()", ["holds int64, it should hold float64"]),
        "less precise": (f"return ({RIGHT}).float()", ["only the precision of float32", "arguments are float64"]),
        "edits its argument": (
            "advantages += values_before(values)\nreturn keep(advantages, action_mask)",
            ["changes its argument `advantages` in place"],
        ),
        "NaN": (f"return {RIGHT} + float('nan')", ["holds NaN"]),
        "accepts what it should refuse": (
            f"return {RIGHT} if values.shape[1] == advantages.shape[1] + 1 else advantages",
            ["should refuse with a ValueError"],
        ),
        "refuses with another error": (
            f"if values.shape[1] != advantages.shape[1] + 1: raise KeyError\nreturn {RIGHT}",
            ["should be refused with a ValueError; it raised KeyError"],
        ),
        "leans on another cell": ("return my_helper(values)", ["`my_helper` is not known", "In line 2"]),
        "asks the library": (
            "from rlhf_lib.maths.advantages import returns\nreturn returns(advantages, values, action_mask)",
            ["calls the library's own `returns`"],
        ),
        "asks the library under another name": (
            "import rlhf_lib.maths.advantages as m\nreturn m.returns(advantages, values, action_mask)",
            ["calls the library's own `returns`"],
        ),
        "swallows the refusal": (
            "import rlhf_lib.maths.advantages as m\n"
            "try: return m.returns(advantages, values, action_mask)\nexcept Exception: return advantages",
            ["wrong"],
        ),
    }.values(),
)  # fmt: skip
def test_it_says_what_happened(body, expected):
    """Rejects a check that answers with a traceback, or with a riddle."""
    said = says(body)
    for part in expected:
        assert part in said
    assert "Traceback" not in said
    assert not said.startswith("[✓]")


def test_an_endless_loop_ends(monkeypatch):
    """Rejects a check without a time limit."""
    monkeypatch.setattr(observe, "TIME_LIMIT", 0.3)
    started = time.monotonic()
    said = says("while True:\n    print('again')")
    assert "never ends" in said
    assert "again / again / again / ..." in said
    assert time.monotonic() - started < 5


def test_a_loop_that_swallows_the_end_does_not_hang_the_check(monkeypatch):
    """Rejects a check that waits for a function which catches everything."""
    monkeypatch.setattr(observe, "TIME_LIMIT", 0.2)
    stop_at = time.monotonic() + 3
    said = says(
        f"import time\nwhile time.monotonic() < {stop_at}:\n    try:\n        while True: pass\n    except: pass"
    )
    assert "never ends" in said


def test_printing_is_kept_apart(capsys):
    """Rejects a check that lets a learner's prints bury its verdict, and one that loses them."""
    said = says("print('shape', values.shape)\nreturn values_before(values)")
    assert "It also printed: shape torch.Size([1, 2])" in said
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (advantages.returns, "the library's own function"),
        (lambda advantages, values, action_mask: advantages, "not a function made with `def`"),
        (None, "not a function made with `def`"),
        (len, "not a function made with `def`"),
        (written("def my_returns(advantages, values, action_mask):\n    return advantages\n"), "not called `returns`"),
        (written("def returns(advantages):\n    return advantages\n"), "raised TypeError"),
    ],
)
def test_it_refuses_what_is_no_answer(function, expected):
    """Rejects a check that takes the library's function, a lambda, nothing, or another name for an answer."""
    said = check.returns(function)
    assert not said.passed
    assert expected in str(said)


def test_the_answer_is_not_shown():
    """Rejects a verdict that gives the solution away."""
    line = "keep(advantages + values_before(values), action_mask)"
    assert line in solution("returns")
    verdict = check.returns(written(f"{HEAD}\n    return values_before(values)\n", PREAMBLE))
    assert line not in str(verdict) + verdict._repr_html_()


def test_the_panel_escapes_what_it_shows():
    """Rejects a panel in which a learner's text becomes markup."""
    panel = check.returns(written(f"{HEAD}\n    raise KeyError('<script>alert(1)</script>')\n", PREAMBLE))._repr_html_()
    assert "<script>" not in panel
    assert "&lt;script&gt;" in panel


def test_the_smallest_case_comes_first():
    """Rejects a check that starts to explain with many rows."""
    verdict = check.returns(written(f"{HEAD}\n    return values_before(values)\n", PREAMBLE))
    assert verdict.case == "one choice in a row of two tokens"
    assert [name for name, _ in verdict.rows] == [
        "advantages", "values", "action_mask", "expected result", "your result",
    ]  # fmt: skip


def test_other_answers_are_at_hand_once_they_passed():
    """Rejects a sandbox in which `gae` can never call the learner's own td_errors, or always can."""
    assert "`td_errors` is not known" in str(check.gae(solved("gae")))
    assert check.td_errors(solved("td_errors")).passed
    assert check.gae(solved("gae")).passed


def test_an_unknown_exercise_names_the_nearest():
    """Rejects an AttributeError that leaves the learner to search."""
    with pytest.raises(AttributeError, match="did you mean 'returns'"):
        check.retruns  # noqa: B018
    assert {"gae", "returns", "td_errors"} <= set(dir(check))


def test_a_cell_that_does_not_parse_is_not_judged_by_its_older_version():
    """Rejects a check that passes or fails the function of a cell that has been edited into a syntax error since."""
    right = f"{PREAMBLE}\n\n{solution('returns')}"
    cells = [
        right,
        f"{HEAD}\n    return (((",
        "from rlhf_lib.course import check\nprint(check.returns(returns))",
        right,
        "print(check.returns(returns))",
    ]
    script = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        f"for cell in {cells!r}: shell.run_cell(cell, store_history=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8")
    outdated, mended = re.findall(r"^\[.\] returns: .*", done.stdout, re.MULTILINE)
    assert "the latest version of its cell is not Python ('(' was never closed, line 2)" in outdated
    assert "returns: passed" in mended


def scorer(body: str) -> str:
    return (
        "def score_in_blocks(head, states, actions, *, temperature, rows, entropy):\n"
        "    def score(states, actions):\n"
        "        logits = head(states).float() / temperature\n"
        "        return -nn.functional.cross_entropy(logits, actions, reduction='none'), entropy(logits)\n"
        f"    {body}\n"
    )


def test_a_right_answer_that_takes_too_much_memory_is_refused():
    """Rejects a check that sees numbers alone, one that never goes back, and one that says the result is wrong."""
    pairs = "blocks = [score(*pair) for pair in zip(states.split(rows), actions.split(rows))]"
    kept = f"{pairs}\n    return tuple(map(torch.cat, zip(*blocks)))"
    verdicts = [check.score_in_blocks(written(scorer(body))) for body in ("return score(states, actions)", kept)]
    assert [verdict.status for verdict in verdicts] == ["wrong", "wrong"]
    assert "Its result is right" in verdicts[0].says and "without gradients: more than" in verdicts[0].says
    assert "in training: more than" in verdicts[1].says
    assert "all states at once" in verdicts[0].mistake and "autograd keeps" in verdicts[1].mistake


def test_a_backward_pass_that_fails_is_a_finding():
    """Rejects a check that raises where the answer's gradient cannot be had."""
    head = "def score_in_blocks(head, states, actions, *, temperature, rows, entropy):\n"
    edit = "    y = head(states).exp()\n    z = y.log()\n    y.mul_(2)\n    return z.sum(1), z.sum(1)\n"
    verdict = check.score_in_blocks(written(head + edit))
    assert verdict.status == "wrong"
