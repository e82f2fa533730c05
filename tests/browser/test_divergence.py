"""The KL explorer in a real browser, against Hugging Face's own filters and torch's distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from transformers import TopKLogitsWarper, TopPLogitsWarper

from rlhf_lib.course.widgets import kl_explorer

from . import rollouts
from .contrast import too_faint
from .reading import says

CELLS = [
    """
import math
import torch
from rlhf_lib.course.lesson import sft_model, tiny
from rlhf_lib.course.widgets import kl_explorer
from tests.browser import rollouts
from tests.browser.test_divergence import of_a_row
""",
    "real = kl_explorer(**of_a_row(1), matrix=[('cause', 'KL'), ('<b>none</b>', '0'), ('top-p', 'off')])\nreal",
    "nasty = kl_explorer(torch.tensor([[1.0, 0.0, 3.0, 2.0, 2.0, -math.inf, 1.0], [math.nan] * 7]),"
    " rollouts.Texts(rollouts.NASTY), states=['</option><script>', '🙂'])\nnasty",
    "noise = torch.randn(2, 2000, generator=torch.Generator().manual_seed(0))\n"
    "words = rollouts.Texts([f'w{i}' for i in range(2000)])\n"
    "wide = kl_explorer(3 * noise[:1], words, reference_logits=noise[1:])\nwide",
]
REAL, NASTY, WIDE = range(3)
FIRST = dict(state=0, temperature=0.7, top_p=0.9, top_k=169, score_temperature=0.7, draws=100)
WAYS = (("scored", "scored"), ("sampled", "scored"), ("sampled", "sampled"))


def of_a_row(row: int) -> dict:
    """What the explorer is made from: the states of a row's choices, as the shipped SFT and base models see them."""
    from rlhf_lib.course.lesson import sft_model, tiny
    from rlhf_lib.engine.models import load_policy
    from rlhf_lib.worlds.tiny_tldr.world import ASSETS

    lesson = tiny()
    start, end = int(lesson.rollout.prompt_lengths[row]), int(lesson.rollout.sequence_lengths[row])
    with torch.no_grad():
        policy, reference = (
            model(lesson.rollout.tokens[row : row + 1, :end]).logits[0, start - 1 : end - 1].double()
            for model in (sft_model(), load_policy(ASSETS / "base"))
        )
    words = lesson.words(row)
    states = ["".join(words[place - 4 : place]) for place in range(start, end)]
    return dict(logits=policy, tokenizer=lesson.tokenizer, reference_logits=reference, states=states)


class Expected:
    """What the page has to say, by other means: `generate`'s filters, torch.distributions, and numbers on the data."""

    def __init__(self, widget, **view):
        view = {**widget.view, **view}
        logits, reference = (
            torch.tensor([[float(x) for x in widget.data[name][view["state"]]]], dtype=torch.float64)
            for name in ("logits", "reference" if widget.data["reference"] else "logits")
        )
        sampler = TopKLogitsWarper(view["top_k"])(None, logits / view["temperature"])
        if view["top_p"] < 1:
            sampler = TopPLogitsWarper(view["top_p"])(None, sampler)
        self.kept = int(torch.isfinite(sampler).sum())
        self.sampled, self.scored, self.reference = (
            Categorical(logits=x[0], validate_args=False)
            for x in (sampler, logits / view["score_temperature"], reference / view["score_temperature"])
        )
        self.draws = torch.tensor(widget.data["uniforms"][: view["draws"]], dtype=torch.float64)

    def estimates(self) -> list[list[float]]:
        """[drawn, expected, spread] for each way and estimator, by the formulas of Schulman 2020."""
        found = []
        for drawn_from, said in ((getattr(self, a), getattr(self, b)) for a, b in WAYS):
            s = drawn_from.probs
            places = [next(v for v, x in enumerate(s.cumsum(0).tolist()) if x > u) for u in self.draws.tolist()]
            x = self.reference.logits - said.logits
            for terms in (-x, x**2 / 2, x.exp() - 1 - x):
                mean = (s * terms)[s > 0].sum()
                spread = (s * (terms - mean) ** 2)[s > 0].sum() ** 0.5
                found.append([float(terms[places].mean()), float(mean), float(spread)])
        return found


@pytest.fixture(scope="module")
def notebook(open_notebook):
    return open_notebook("divergence", *CELLS)


@pytest.fixture(scope="module")
def twin():
    """The same explorer in this process: its data are what the page has got."""
    return kl_explorer(**of_a_row(1))


@pytest.fixture
def real(notebook):
    widget = notebook.widget("KL explorer", REAL)
    notebook.set_view(widget, "real", FIRST)
    return widget


def table(widget, name: str) -> list[list[str]]:
    """The texts of a table's cells, row by row, heads of rows left out."""
    return [line.locator("td").all_inner_texts() for line in widget.locator(f"table.kl-{name} tr").all()]


def assert_shows(widget, expected: Expected) -> None:
    _, counts, entropies, divergences = table(widget, "summary")
    pair = expected.scored, expected.sampled
    assert counts == [str(len(expected.scored.probs)), str(expected.kept)]
    assert all(map(says, entropies, (float(one.entropy()) for one in pair))), entropies
    wanted = kl_divergence(*pair), kl_divergence(*reversed(pair))
    assert all(map(says, divergences, map(float, wanted))), (divergences, wanted)
    lines = [line for line in table(widget, "estimates") if len(line) == 5]
    truth = float(kl_divergence(expected.scored, expected.reference))
    for line, numbers in zip(lines, expected.estimates(), strict=True):
        assert all(map(says, line[:3], numbers)), (line, numbers)
        assert (line[4] == "✓ right") == (abs(numbers[1] / truth - 1) < 0.005)


def test_numbers_follow_the_sliders(real, twin):
    """Rejects top-p before top-k, filters before the temperature, a cut that is not scaled up again, KLs that are
    swapped, a spread that is that of the mean, draws that JavaScript maps to other tokens.
    """
    assert_shows(real, Expected(twin))
    view = {}
    for label, name, value in (
        ("sampler: temperature", "temperature", 1.5), ("sampler: top-k", "top_k", 5), ("sampler: top-p", "top_p", 0.6),
        ("scored: temperature", "score_temperature", 1.0), ("sampler: top-p", "top_p", 1),
        ("sampler: top-k", "top_k", 1),
    ):  # fmt: skip
        real.get_by_label(label).fill(str(value))
        view[name] = value
        assert_shows(real, Expected(twin, **view))
    real.get_by_label("State").select_option(index=2)
    real.get_by_role("radio", name="1000").check()
    assert_shows(real, Expected(twin, **view, state=2, draws=1000))


def test_what_is_cut_is_said_in_words(real, twin):
    """Rejects a cut that only a colour tells, the wrong filter named, and a finite KL where support is missing."""
    real.get_by_label("sampler: top-k").fill("3")
    words = [line[-1] for line in table(real, "tokens")[1:]]
    expected = Expected(twin, top_k=3)
    assert words[expected.kept - 1][0] in "+−0" and words[expected.kept] in ("✂ cut by top-p", "✂ cut by top-k")
    assert words[3:12] == ["✂ cut by top-k"] * 9 and words[12] == "✂ 157 of 157 cut"
    assert table(real, "summary")[3][0] == "∞"
    assert f"The sampler can draw {expected.kept} of 169 tokens" in real.locator(".kl-about").inner_text()
    shares = [float(line[2]) for line in table(real, "tokens")[1 : 1 + expected.kept]]
    assert sum(shares) == pytest.approx(1, abs=2e-3)


def test_step_zero_has_a_hidden_cause(real, twin):
    """Rejects a table in which a forward pass heals the sampler, or in which the sampler's numbers show nothing."""
    expected = Expected(twin)
    gap = (expected.sampled.logits - expected.scored.logits)[expected.sampled.probs > 0]
    entropy_error = float(expected.sampled.entropy() - expected.scored.entropy())
    bug, fix = (table(real, "step-zero")[i] for i in (1, 2))
    wanted = (
        float(kl_divergence(expected.sampled, expected.scored)),
        entropy_error,
        float((1 - (-gap).exp()).abs().max()),
    )
    assert all(says(text.removeprefix("✗ "), x) for text, x in zip(bug, wanted)) and bug[3] == "–"
    assert fix[:3] == ["✓ 0"] * 3 and says(fix[3].removeprefix("✗ "), float(gap.abs().max()))
    real.get_by_role("button", name="Make the sampler match").click()
    assert table(real, "step-zero")[1:] == [["✓ 0", "✓ 0", "✓ 0", "–"], ["✓ 0"] * 4]


def test_by_keyboard_alone(notebook, real, twin):
    """Rejects controls that need a mouse, or lose the focus when the page is brought up to date."""
    keyboard = notebook.page.keyboard
    real.get_by_label("State").focus()
    keyboard.press("ArrowDown")
    keyboard.press("Tab")
    keyboard.press("ArrowLeft")  # 10 draws
    keyboard.press("Tab")
    keyboard.press("Enter")  # match
    keyboard.press("Tab")
    keyboard.press("ArrowRight")  # temperature 0.75
    keyboard.press("Tab")
    keyboard.press("Home")  # top-k 1
    keyboard.press("ArrowRight")
    keyboard.press("Tab")
    keyboard.press("ArrowLeft")  # top-p 0.99
    keyboard.press("Tab")
    keyboard.press("ArrowLeft")
    view = dict(state=1, draws=10, temperature=0.75, top_k=2, top_p=0.99, score_temperature=0.65)
    assert_shows(real, Expected(twin, **view))
    notebook.wait_for_python(f"print(real.view == {{**real.view, **{view}}})", "True")


def test_other_logits(notebook):
    """Rejects a token or a state that becomes markup, ties that are cut apart by top-k, a logit of -inf that makes NaN
    of everything, and a NaN that is hidden.
    """
    widget = notebook.widget("KL explorer", NASTY)
    assert widget.locator("script, img").count() == 0
    assert widget.locator("option").all_inner_texts() == ["</option><script>", "🙂"]
    names = widget.locator(".kl-tokens th[scope=row]").all_inner_texts()
    assert names[:3] == ["two⏎lines", "🙂👍🏽", rollouts.NASTY[4]] and rollouts.NASTY[0] in names
    widget.get_by_label("sampler: top-p").fill("1")
    widget.get_by_label("sampler: top-k").fill("2")
    assert table(widget, "summary")[1] == ["7", "3"]  # 3.0, and both 2.0
    assert says(table(widget, "summary")[2][1], entropy_of([3 / 0.7, 2 / 0.7, 2 / 0.7]))
    widget.get_by_label("State").select_option(index=1)
    assert table(widget, "summary")[2] == ["NaN", "NaN"]
    wide = notebook.widget("KL explorer", WIDE)
    assert table(wide, "summary")[1][0] == "2000"
    assert "<b>none</b>" in notebook.widget("KL explorer", REAL).locator(".kl-matrix").inner_text()


def entropy_of(logits: list[float]) -> float:
    total = sum(map(math.exp, logits))
    return -sum(math.exp(x) / total * math.log(math.exp(x) / total) for x in logits)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_legible(notebook, real, theme):
    """Rejects text that a theme makes faint, on cut rows too."""
    notebook.theme(theme)
    assert too_faint(real) == []
    assert "[object" not in real.inner_text()
    notebook.page.set_viewport_size({"width": 1360, "height": 1400})
    notebook.picture(real, f"divergence_{theme.lower()}")
    notebook.theme("Light")
