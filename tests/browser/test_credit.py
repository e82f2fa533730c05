"""The GAE explorer in a real browser, against the library's functions and the double sum of the paper."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lib.maths import advantages
from rlhf_lib.pipeline.assets import load_rollout
from tests.helpers import gae_spec

from . import rollouts
from .contrast import too_faint
from .reading import says

CELLS = [
    """
from rlhf_lib.course.widgets import gae_explorer
from rlhf_lib.pipeline.assets import load_rollout
from rlhf_lib.worlds.tiny_tldr.tokenizer import make_tokenizer
from tests.browser import rollouts
""",
    "real = gae_explorer(load_rollout(), make_tokenizer(), row=1)\nreal",
    "nasty = gae_explorer(*rollouts.nasty(), kl_coef=0.3)\nnasty",
    "single = gae_explorer(*rollouts.single())\nsingle",
    "wide = gae_explorer(*rollouts.wide())\nwide",
]
REAL, NASTY, SINGLE, WIDE = range(4)
COLUMNS = ("deltas", "advantages", "monteCarlo", "returns")


@pytest.fixture(scope="module")
def notebook(open_notebook):
    return open_notebook("credit", *CELLS)


@pytest.fixture
def real(notebook):
    """The explorer of the shipped rollout at its row 1, as it was at first."""
    widget = notebook.widget("GAE explorer", REAL)
    notebook.set_view(widget, "real", dict(row=1, gamma=1.0, lam=0.95, rewards=[], values=[]))
    return widget


def choices(rollout, row: int, kl_coef: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards and values of a row's choices, by loops."""
    places = [t for t, counts in enumerate(rollout.action_mask[row].tolist()) if counts]
    score = rollout.scores[row] if rollout.has_eos[row] else torch.tensor(-1.0)
    kl = [float(rollout.old_log_probs[row, t] - rollout.ref_log_probs[row, t]) for t in places]
    rewards = torch.tensor([[-kl_coef * k for k in kl]], dtype=torch.float64)
    rewards[0, -1] += score
    return rewards, rollout.values[row, places].double()[None]


def column(widget, name: str) -> list[str]:
    return widget.locator(f"td.credit-{name}").all_inner_texts()


def assert_shows(widget, rewards, values, *, gamma: float, lam: float) -> None:
    """Against the library, and the library against the double sum."""
    mask = torch.ones_like(rewards, dtype=torch.bool)
    wider = torch.nn.functional.pad(values, (0, 1), value=math.nan)
    now = advantages.gae(wider, rewards, mask, gamma=gamma, lam=lam)
    torch.testing.assert_close(now, gae_spec(wider, rewards, mask, gamma=gamma, lam=lam), equal_nan=True)
    wanted = dict(
        deltas=advantages.td_errors(wider, rewards, mask, gamma=gamma),
        advantages=now,
        monteCarlo=advantages.gae(wider, rewards, mask, gamma=gamma, lam=1.0),
        returns=advantages.returns(now, wider, mask),
    )
    for name in COLUMNS:
        found = column(widget, name)
        assert len(found) == rewards.shape[1]
        assert all(map(says, found, wanted[name][0].tolist())), (name, found, wanted[name])


def test_numbers_follow_the_sliders(notebook, real):
    """Rejects gamma and lambda mixed up, an exponent that is one off, a value read after the last choice."""
    rewards, values = choices(load_rollout(), 1)
    assert_shows(real, rewards, values, gamma=1.0, lam=0.95)
    for gamma, lam in ((1.0, 0.5), (0.9, 0.5), (0.0, 0.5), (0.9, 0.0), (0.9, 1.0)):
        real.get_by_label("gamma").fill(str(gamma))
        real.get_by_label("lambda").fill(str(lam))
        assert_shows(real, rewards, values, gamma=gamma, lam=lam)


def test_the_ends_are_named(real):
    """Rejects ends that are the wrong way round: lambda 0 is the TD error, lambda 1 Monte Carlo."""
    slider = real.get_by_label("lambda")
    slider.press("Home")
    assert column(real, "advantages") == column(real, "deltas")
    assert "every advantage is its own TD error" in real.inner_text()
    assert slider.get_attribute("aria-valuetext") == "0, TD error"
    slider.press("End")
    assert column(real, "advantages") == column(real, "monteCarlo")
    assert "Monte Carlo, every advantage" in real.inner_text()


def test_an_edited_reward_moves_credit_backwards(notebook, real):
    """Rejects an edit that moves what comes after it, is lost on the way to Python, or cannot be undone."""
    rewards, values = choices(load_rollout(), 1)
    before = column(real, "advantages")
    field = real.get_by_label("rewards[58]")
    field.fill("1.99996")
    field.press("Enter")
    real.get_by_label("rewards[59]").focus()  # and the rounded number in the field is not taken for another edit
    rewards[0, 4] = 1.99996
    assert_shows(real, rewards, values, gamma=1.0, lam=0.95)
    moved = [bool(text) for text in column(real, "moved")]
    assert moved == [True] * 5 + [False] * 5
    assert says(column(real, "moved")[0].removeprefix("▲ +"), 1.99996 * 0.95**4)
    assert column(real, "advantages")[5:] == before[5:]
    notebook.wait_for_python("print(real.view['rewards'])", "[[4, 1.99996]]")
    real.get_by_role("button", name="Undo").click()
    assert column(real, "advantages") == before


def test_by_keyboard_alone(notebook, real):
    """Rejects sliders and fields that need a mouse, and a field that loses the focus when the page is brought up to
    date.
    """
    rewards, values = choices(load_rollout(), 0)
    keyboard = notebook.page.keyboard
    real.get_by_label("Row (of 64)").focus()
    keyboard.press("ArrowUp")
    keyboard.press("Tab")
    for _ in range(5):
        keyboard.press("ArrowLeft")  # lambda 0.90
    keyboard.press("Tab")
    keyboard.press("ArrowLeft")  # gamma 0.99
    keyboard.press("Tab")  # not to the button, which has nothing to undo
    keyboard.press("Tab")
    for _ in range(3):
        keyboard.press("ArrowUp")
    values[0, 0] = round(float(show_to_three(values[0, 0])) + 0.3, 3)
    assert_shows(real, rewards, values, gamma=0.99, lam=0.9)


def show_to_three(x) -> str:
    """What the field holds when the first arrow is pressed."""
    return f"{float(x):.3f}"


def test_what_is_not_a_number(real):
    """Rejects a word that is taken for 0, and a NaN or an infinity that cannot be looked at."""
    rewards, values = choices(load_rollout(), 1)
    field = real.get_by_label("values[60]")
    field.fill("many")
    field.press("Enter")
    assert field.get_attribute("aria-invalid") == "true"
    assert_shows(real, rewards, values, gamma=1.0, lam=0.95)
    for text, value in (("nan", math.nan), ("-inf", None), ("-Infinity", -math.inf)):
        field.fill(text)
        field.press("Enter")
        if value is not None:
            values[0, 6] = value
            assert_shows(real, rewards, values, gamma=1.0, lam=0.95)


def test_other_rows(notebook):
    """Rejects what only a shipped row survives: no EOS, poison around the response, one choice, 127 choices."""
    widget, (rollout, _) = notebook.widget("GAE explorer", NASTY), rollouts.nasty()
    for row in range(3):
        widget.get_by_label("Row (of 3)").select_option(index=row)
        assert_shows(widget, *choices(rollout, row, 0.3), gamma=1.0, lam=0.95)
    widget.get_by_label("Row (of 3)").select_option(index=0)
    assert widget.locator("td.rlhf-token").all_inner_texts()[1:3] == ["🙂👍🏽", rollouts.NASTY[4]]
    assert widget.locator("img, script").count() == 0
    assert_shows(notebook.widget("GAE explorer", SINGLE), *choices(rollouts.single()[0], 0), gamma=1.0, lam=0.95)
    assert_shows(notebook.widget("GAE explorer", WIDE), *choices(rollouts.wide()[0], 0), gamma=1.0, lam=0.95)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_legible(notebook, real, theme):
    """Rejects text that a theme makes faint, in fields too."""
    notebook.theme(theme)
    field = real.get_by_label("rewards[58]")
    field.fill("2")
    field.press("Enter")
    assert too_faint(real) == []
    notebook.picture(real, f"credit_{theme.lower()}")
    notebook.theme("Light")
