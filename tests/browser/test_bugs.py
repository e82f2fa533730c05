"""The blind bug board in a real browser, against the museum's own case, curves and answers."""

from __future__ import annotations

import json
import math
from html import escape, unescape

import pytest

from rlhf_lib.course.museum import BUGS, buggy_run
from rlhf_lib.course.museum.cases import blind_case
from rlhf_lib.course.museum.instruments import bisect, try_components
from rlhf_lib.course.widgets.bugs import POINTS, QUESTIONS, Question, bug_board, fresh, side
from rlhf_lib.course.widgets.plain import show

from .contrast import too_faint

CASE = 5
NASTY = "<b>&amp;<script>\n🙂"
OWN = (
    *QUESTIONS,
    Question(NASTY, NASTY, lambda case: [(NASTY, NASTY)]),
    Question("broken", "fails", lambda case: 1 / 0),
)
CELLS = [
    "from rlhf_lib.course.widgets import bug_board\nfrom tests.browser.test_bugs import CASE, OWN",
    "board = bug_board(CASE, questions=OWN)\nboard",
]
CHOICES = blind_case(CASE).choices
RIGHT = blind_case(CASE).reveal()
WRONG = next(name for name in CHOICES if name != RIGHT.name)
GEOMETRY = """
(figure) => ({
  dots: [...figure.querySelectorAll("circle")].map((dot) => Number(dot.getAttribute("cy"))),
  ribs: [...figure.querySelectorAll(".bugs-rib")]
    .map((rib) => ["y1", "y2"].map((end) => Number(rib.getAttribute(end)))),
})
"""


@pytest.fixture(scope="module")
def notebook(open_notebook):
    return open_notebook("bugs", *CELLS)


@pytest.fixture
def widget(notebook):
    """A new board, each time: points are not given twice."""
    notebook.run_all()
    return notebook.widget("Blind bug board")


def metrics(number: int) -> dict[str, tuple[list, list, list]]:
    """By name: the run, and the least and most of healthy runs, from the case itself."""
    case, found = blind_case(number), {}
    for name, run in case.curves.items():
        steps = [sorted(step) for step in zip(*(curves[name] for curves in case.healthy.values()))]
        if name not in ("update", "episodes") and len(steps) > 1:
            found[name] = run, [step[0] for step in steps], [step[-1] for step in steps]
    return found


def assert_shows_curves(widget, number: int, at: int) -> None:
    wanted = metrics(number)
    figures = widget.locator("figure")
    assert figures.locator("figcaption").all_inner_texts() == list(wanted)
    said = figures.locator(".bugs-value").all_inner_texts()
    for text, (run, least, most) in zip(said, wanted.values(), strict=True):
        sign = side(run[at], least[at], most[at])
        value = f"{show(run[at])} {sign}".strip()
        assert text == f"{value} (healthy {show(least[at])} to {show(most[at])})"


def press(widget, name: str) -> None:
    widget.get_by_role("button", name=name, exact=True).click(force=True)  # some have nothing to do


def commit(widget, name: str) -> None:
    widget.get_by_role("radio", name=name, exact=True).check()
    press(widget, "Commit to this name")


def points(widget) -> str:
    return widget.locator(".bugs-points").inner_text()


def secrets(bug) -> list[str]:
    """What only somebody who knows the bug can say."""
    return [bug.says, bug.symptom, bug.fix, bug.seen_in]


def test_curves_and_band(notebook, widget):
    """Rejects a curve of another run, a band of other healthy runs, a sign on the wrong side, and a picture whose
    heights are not those of the numbers, on an axis that says whether it is logarithmic far from the healthy runs.
    """
    slider = widget.get_by_role("slider", name="update to look at")
    slider.focus()
    for at in range(8):
        assert_shows_curves(widget, CASE, at)
        notebook.page.keyboard.press("ArrowRight")
    notebook.wait_for_python("print(board.view['update'])", "7")
    bent = []
    for index, (run, least, most) in enumerate(metrics(CASE).values()):
        found = widget.locator("figure").nth(index).evaluate(GEOMETRY)
        low, high = min(run + least), max(run + most)
        heights = [*found["dots"], *(end for rib in found["ribs"] for end in rib)]
        values = [*run, *(end for pair in zip(least, most) for end in pair)]
        middle, spread = (min(least) + max(most)) / 2, max(most) - min(least)
        bent.append(0 < 4 * spread < high - low)
        places = [math.asinh((value - middle) / spread) if bent[-1] else value for value in (low, high, *values)]
        for height, place in zip(heights, places[2:], strict=True):
            assert height == pytest.approx(88 - 80 * (place - places[0]) / ((places[1] - places[0]) or 1), abs=1e-3)
        assert widget.locator("figure").nth(index).get_by_text("log", exact=True).count() == bent[-1]
    assert {*bent} == {True, False}


def test_nothing_tells_the_name_before(notebook, widget):
    """Rejects an answer that lies in the page, in the widget's state or in the saved notebook before the guess: the
    right name stands where the wrong ones stand, and as often.
    """
    commit(widget, WRONG)
    widget.locator(".bugs-wrong").wait_for()
    state = json.dumps(widget.evaluate("root => root.state()"), ensure_ascii=False)
    page = widget.evaluate("root => root.outerHTML")
    others = [name for name in CHOICES if name not in (RIGHT.name, WRONG)]
    shipped = bug_board(CASE).static_html()
    for text in (state, page, notebook.page.content(), shipped):
        text = unescape(text)
        assert not [secret for secret in secrets(RIGHT) if secret in text]
        assert {text.count(RIGHT.name)} == {text.count(name) for name in others}


@pytest.mark.parametrize("number", range(1, 25))
def test_no_case_tells_its_name(number):
    """Rejects a leak that only some case has: a run that is broken off, a case beside other healthy runs."""
    board = bug_board(number)
    bug = blind_case(number).reveal()
    state = json.dumps(board.data, ensure_ascii=False)
    assert not [secret for secret in secrets(bug) if secret in state + unescape(board.static_html())]
    for name in board.data["suspects"]:
        assert state.count(json.dumps(name, ensure_ascii=False)) == 1
        assert board.static_html().count(f"<td>{escape(name)}</td>") == 1
    assert board.data["revealed"] == [] and bug.name in board.data["suspects"]


def test_wrong_then_right_then_the_next_case(notebook, widget):
    """Rejects a wrong name that costs nothing, a right one without source and fix, a name that counts twice, and a next
    case that keeps anything of the one before.
    """
    press(widget, "Next case")  # not yet
    commit(widget, WRONG)
    case = blind_case(CASE)
    assert widget.locator(".bugs-wrong").inner_text() == f"✗ {WRONG}: {case.guess(WRONG).says}"
    press(widget, "Commit to this name")  # said already
    notebook.wait_for_python("print(board.view['guesses'], board.view['case'])", f"{[WRONG]} {CASE}")
    assert points(widget).startswith(f"{POINTS - 2} points")
    commit(widget, RIGHT.name)
    widget.locator(".bugs-revealed").wait_for()
    assert widget.locator(".bugs-right").inner_text() == f"✓ {RIGHT.name}: {RIGHT.says}"
    told = widget.locator(".bugs-revealed td").all_inner_texts()
    assert told == [RIGHT.name, RIGHT.stage, RIGHT.says, RIGHT.symptom, RIGHT.found_by, RIGHT.fix, RIGHT.seen_in]
    assert points(widget).endswith("All cases: 8 of 10 points so far, 0 of 1 cases named at the first try.")
    press(widget, "component tests")  # free, afterwards
    widget.locator(".bugs-lines").wait_for()
    assert points(widget).startswith(f"{POINTS - 2} points")
    press(widget, "Next case")
    widget.get_by_role("heading", name=f"case {CASE + 1}").wait_for()
    assert_shows_curves(widget, CASE + 1, 0)
    assert widget.locator(".bugs-name").all_inner_texts() == list(blind_case(CASE + 1).choices)
    assert widget.locator(".bugs-answers").inner_text() == ""
    assert widget.locator(".bugs-lines, .bugs-suspect.struck, .bugs-name :checked").count() == 0
    notebook.wait_for_python(f"print(board.view == dict({fresh(CASE + 1)!r}))", "True")
    commit(widget, blind_case(CASE + 1).reveal().name)
    widget.locator(".bugs-revealed").wait_for()
    assert points(widget).endswith("All cases: 18 of 20 points so far, 1 of 2 cases named at the first try.")


def test_giving_up(notebook, widget):
    """Rejects points for an answer that was asked for."""
    press(widget, "Give up")
    widget.locator(".bugs-revealed").wait_for()
    assert widget.locator(".bugs-revealed td").first.inner_text() == RIGHT.name
    assert points(widget).startswith("0 points") and "0 of 10 points so far" in points(widget)


def test_each_instrument_costs_a_point(notebook, widget):
    """Rejects an instrument of another case or seed, one that is paid for twice, and a board that
    dies of a question.
    """
    for question in QUESTIONS:
        press(widget, question.name)
        press(widget, question.name)
    notebook.page.wait_for_function("document.querySelectorAll('.bugs-lines').length === 7", timeout=90_000)
    assert points(widget).startswith(f"{POINTS - len(QUESTIONS)} points")
    case = blind_case(CASE)
    rows = widget.locator(".bugs-question")
    cells = {
        question.name: list(
            zip(rows.nth(i).locator("th").all_inner_texts(), rows.nth(i).locator("td").all_inner_texts())
        )
        for i, question in enumerate(QUESTIONS)
    }
    assert dict(cells["component tests"]) == try_components(case.parts())
    off = {name: gap for name, gap in bisect(case, updates=1, seed=case.seed).items() if gap >= 1e-3}
    assert {name for name, said in cells["bisection"] if said.startswith("still off")} == set(off)
    healthy = [sum(curves["gold"][-3:]) / 3 for curves in case.healthy.values()]
    assert dict(cells["without the critic"])["gold of healthy runs"] == f"{show(min(healthy))} to {show(max(healthy))}"
    first = buggy_run(case, seed=case.seed, updates=1).metrics[0]
    told = dict(cells["step zero"])
    assert told["kl_before_first_update"] == show(first["kl_before_first_update"], 6)
    press(widget, "broken")
    widget.get_by_text("ZeroDivisionError: division by zero").wait_for()


def test_text_is_text(notebook, widget):
    """Rejects a question or finding that becomes markup."""
    widget.locator(".bugs-question button", has_text="<script>").click()
    widget.locator(".bugs-lines").wait_for()
    assert widget.locator(".bugs-lines th, .bugs-lines td").all_text_contents() == [NASTY, NASTY]
    assert widget.locator("b, script").count() == 0


def test_by_keyboard_alone(notebook, widget):
    """Rejects a suspect, an instrument or a verdict that only a mouse reaches, keys that move the notebook's cell, and
    a focus that is lost when Python answers.
    """
    keyboard = notebook.page.keyboard
    widget.get_by_role("slider", name="update to look at").focus()
    keyboard.press("Tab")  # the first suspect; then its box
    keyboard.press("Space")
    keyboard.press("Tab")
    keyboard.press("Space")
    notebook.wait_for_python("print(board.view['chosen'], board.view['struck'])", f"{CHOICES[0]} {[CHOICES[0]]}")
    assert widget.locator(".bugs-suspect.struck .bugs-name").all_inner_texts() == [CHOICES[0]]
    keyboard.press("Space")
    notebook.wait_for_python("print(board.view['struck'])", "[]")
    keyboard.press("Shift+Tab")
    for _ in range(CHOICES.index(RIGHT.name)):
        keyboard.press("ArrowDown")
    notebook.wait_for_python("print(board.view['chosen'])", RIGHT.name)
    widget.get_by_role("button", name="component tests").focus()
    keyboard.press("Enter")
    widget.locator(".bugs-lines").wait_for()
    assert notebook.page.evaluate("document.activeElement.textContent") == "component tests"
    widget.get_by_role("button", name="Commit to this name").focus()
    keyboard.press("Enter")
    widget.locator(".bugs-revealed").wait_for()
    keyboard.press("Tab")
    keyboard.press("Tab")
    assert notebook.page.evaluate("document.activeElement.textContent") == "Next case"
    keyboard.press("Space")
    widget.get_by_role("heading", name=f"case {CASE + 1}").wait_for()
    assert notebook.page.evaluate("document.activeElement.textContent") == "Next case"


def test_a_run_that_broke(notebook, widget):
    """Rejects a curve that ends early and stops the page, or is drawn on as if it had not ended."""
    ended = next((n for n in range(1, 400) if blind_case(n).ended_by), None)
    if ended is None:
        pytest.skip("no recorded run of the first 400 cases broke off")
    case = blind_case(ended)
    notebook.set_view(widget, "board", {**fresh(ended), "update": 7})
    widget.get_by_role("heading", name=f"case {ended}").wait_for()
    assert widget.locator(".bugs-ended").inner_text() == f"The run ended early: {case.ended_by}"
    done = len(case.curves.get("score", []))
    assert done < 8
    for text in widget.locator(".bugs-value").all_inner_texts():
        assert text.startswith("ended (healthy ")
    found = [widget.locator("figure").nth(i).locator("circle").count() for i in range(widget.locator("figure").count())]
    assert all(count <= done for count in found)


def test_without_a_front_end():
    """Rejects a static form that lacks curves, and a sign for what is not finite or lies on the edge."""
    text = bug_board(CASE).static_html()
    for name, (run, least, most) in metrics(CASE).items():
        cells = [f"{show(value)} {side(value, low, high)}".strip() for value, low, high in zip(run, least, most)]
        assert f"<th>{name}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) in text
    for number in range(1, 200):  # one of them breaks before its first update is done
        assert repr(bug_board(number)) == f"BugBoard(case {number}, 5 suspects)" and bug_board(number).static_html()
    assert [side(x, 1, 2) for x in (0.9, 1, 2, 2.1, math.nan, -math.inf)] == ["▼", "", "", "▲", "✕", "✕"]
    assert {name for number in range(1, 25) for name in blind_case(number).choices} <= {bug.name for bug in BUGS}


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_legible(notebook, widget, theme):
    """Rejects text that a theme makes faint: struck suspects, wrong and right answers, findings."""
    notebook.set_view(
        widget,
        "board",
        {**fresh(CASE), "struck": [WRONG], "asked": ["component tests"], "guesses": [WRONG, RIGHT.name]},
    )
    widget.locator(".bugs-revealed").wait_for()
    notebook.theme(theme)
    assert too_faint(widget) == []
    notebook.picture(widget, f"bugs_{theme.lower()}")
    notebook.theme("Light")
