"""The clip explorer in a real browser, against PPO's loss and its gradient by autograd, region by region."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lib.maths.diagnostics import clip_fraction
from rlhf_lib.maths.losses import policy_loss
from rlhf_lib.pipeline.assets import load_rollout

from . import rollouts
from .contrast import too_faint
from .reading import says

CELLS = [
    """
import torch
from rlhf_lib.course.widgets import clip_explorer
from tests.browser.test_clip import moved, nasty, wide
""",
    "real = clip_explorer(*moved())\nreal",
    "nasty = clip_explorer(*nasty(), clip=0.5)\nnasty",
    "wide = clip_explorer(*wide())\nwide",
]
REAL, NASTY, WIDE = range(3)
FIRST = dict(clip=0.2, ratio=1.4, advantage=1.0)
NAN, INF = math.nan, math.inf


def moved() -> tuple:
    """The shipped rollout after an imaginary update: log-probabilities, those of the rollout, advantages, mask."""
    rollout = load_rollout()
    generator = torch.Generator().manual_seed(0)
    old = rollout.old_log_probs
    return old + 0.3 * torch.randn(old.shape, generator=generator), old, torch.randn(old.shape, generator=generator), (
        rollout.action_mask
    )  # fmt: skip


def nasty() -> tuple:
    """One row: the six regions, edges, infinite ratios, NaN; and poison off the mask."""
    ratios = torch.tensor([[1.0, 1.6, 1.6, 0.4, 0.4, 0.5, 1.5, 1.6, INF, INF, NAN, 1.0, NAN]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, 1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 0.0, 2.0, -2.0, 1.0, NAN, NAN]])
    mask = torch.ones_like(advantages, dtype=torch.bool)
    mask[0, -1] = False
    return ratios.log(), torch.zeros_like(ratios), advantages.double(), mask


def wide() -> tuple:
    rollout, _ = rollouts.wide()
    return rollout.ref_log_probs, rollout.old_log_probs, rollout.values[:, :-1], rollout.action_mask


@pytest.fixture(scope="module")
def notebook(open_notebook):
    return open_notebook("clip", *CELLS)


@pytest.fixture
def real(notebook):
    widget = notebook.widget("Clip explorer", REAL)
    notebook.set_view(widget, "real", FIRST)
    return widget


def numbers_in(widget, name: str) -> list[str]:
    return widget.locator(f"table.clip-{name} tr td:last-child").all_inner_texts()


def assert_shows(widget, case: tuple, *, clip: float, ratio: float, advantage: float) -> None:
    log_probs, old, advantages, mask = case
    ratios, signs = (log_probs - old)[mask].exp(), advantages[mask]
    high, low = ratios > 1 + clip, ratios < 1 - clip
    regions = [
        (ratios - 1).abs() <= clip, high & (signs > 0), low & (signs < 0), low & (signs > 0), high & (signs < 0),
    ]  # fmt: skip
    counts = [int(region.sum()) for region in regions]
    assert numbers_in(widget, "regions") == [str(n) for n in (*counts, len(ratios) - sum(counts))]
    clipped, outside, loss = numbers_in(widget, "over-all")
    assert says(clipped, float(clip_fraction(*case, clip=clip)[mask].mean()))
    assert says(outside, 1 - counts[0] / len(ratios))
    assert says(loss, float(policy_loss(*case, clip=clip)[mask].double().mean())), loss
    hand = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    one = torch.ones(1, 1, dtype=torch.float64)
    value = policy_loss(hand, 0 * one, advantage * one, one > 0, clip=clip).sum()
    slope = torch.autograd.grad(value, hand)[0].item()
    assert all(map(says, numbers_in(widget, "at-hand"), (-value.item(), value.item(), slope)))


def test_numbers_follow_the_sliders(real):
    """Rejects regions that are mixed up, a clip fraction that counts what is outside, an objective with the loss's
    sign, a gradient in a clipped region, none where the policy went the wrong way.
    """
    case, view = moved(), dict(FIRST)
    assert_shows(real, case, **view)
    for name, value in (
        ("clip", 0.05), ("clip", 0.6), ("ratio", 1.75), ("advantage", -1.5), ("ratio", 0.3), ("advantage", 2.0),
        ("clip", 1.0), ("clip", 0.2), ("ratio", 1.0),
    ):  # fmt: skip
        real.get_by_role("slider", name=name).fill(str(value))
        view[name] = value
        assert_shows(real, case, **view)


@pytest.mark.parametrize(
    ("ratio", "advantage", "words"),
    [
        (1.1, 1, "within the clip (gradient)"),
        (1.5, 1, "A > 0, ratio above: has gained enough (clipped, no gradient)"),
        (0.5, -1, "A < 0, ratio below: has lost enough (clipped, no gradient)"),
        (0.5, 1, "A > 0, ratio below: went the wrong way (gradient leads back)"),
        (1.5, -1, "A < 0, ratio above: went the wrong way (gradient leads back)"),
        (1.5, 0, "outside, A = 0 or no number (nothing to learn)"),
    ],
)
def test_each_region_is_named(notebook, real, ratio, advantage, words):
    """Rejects a region that only a colour tells, or that is called by another's name."""
    notebook.set_view(real, "real", dict(clip=0.2, ratio=ratio, advantage=advantage))
    assert words in real.locator(".clip-about").inner_text()
    assert real.locator(".clip-regions tr.here").count() == 1


def test_a_click_sets_the_point(notebook, real):
    """Rejects a plane that is upside down or mirrored, an axis that is not the one of the points, and a click that
    Python does not hear of.
    """
    hand, plane = real.locator(".clip-plane .clip-hand"), real.locator("svg.clip-plane")
    notebook.set_view(real, "real", dict(clip=0.2, ratio=0.7, advantage=-1.3))
    place = hand.bounding_box()
    notebook.set_view(real, "real", FIRST)
    middle = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    box = plane.bounding_box()
    plane.click(position=dict(x=middle[0] - box["x"], y=middle[1] - box["y"]))
    found = real.evaluate("root => root.state().view")
    assert found["ratio"] == pytest.approx(0.7, abs=0.02)
    assert found["advantage"] == pytest.approx(-1.3, abs=0.06)  # two pixels
    assert_shows(real, moved(), **found)
    notebook.wait_for_python("print(real.view['ratio'] == {})".format(found["ratio"]), "True")
    log_probs, old, advantages, mask = moved()
    wanted = torch.stack([(log_probs - old)[mask].exp(), advantages[mask]], 1)
    nearest = real.locator(".clip-about").inner_text().split("Nearest action: row ")[1].rstrip(".")
    row, t, ratio, advantage = (part.split(" ")[-1].replace("−", "-") for part in nearest.split(", "))
    assert mask[int(row), int(t)]
    assert says(ratio, float((log_probs - old)[int(row), int(t)].exp())) and float(advantage) < 0
    assert (wanted - torch.tensor([[found["ratio"], found["advantage"]]])).norm(dim=1).min() < 0.3


def test_by_keyboard_alone(notebook, real):
    """Rejects a point that only a mouse can set."""
    keyboard = notebook.page.keyboard
    real.get_by_role("slider", name="clip").focus()
    keyboard.press("ArrowRight")
    keyboard.press("Tab")
    for _ in range(3):
        keyboard.press("ArrowLeft")
    keyboard.press("Tab")
    keyboard.press("Home")
    assert_shows(real, moved(), clip=0.21, ratio=1.25, advantage=-4)
    notebook.wait_for_python("print(real.view == dict(clip=0.21, ratio=1.25, advantage=-4))", "True")


def test_edges_and_what_is_not_a_number(notebook):
    """Rejects an edge of the clip that counts as outside, an infinite ratio that breaks the picture, a NaN that is
    counted in a region or hidden from the mean, and anything read off the mask.
    """
    widget = notebook.widget("Clip explorer", NASTY)
    assert numbers_in(widget, "regions") == ["4", "2", "1", "1", "2", "2"]
    assert numbers_in(widget, "over-all") == ["0.250", "0.667", "NaN"]
    paths = widget.locator(".clip-points").evaluate_all("paths => paths.map(path => path.getAttribute('d'))")
    assert not any("NaN" in path or "Infinity" in path for path in paths)
    large = notebook.widget("Clip explorer", WIDE)
    assert_shows(large, wide(), **FIRST)
    drawn = large.locator(".clip-points").evaluate_all("paths => paths.map(path => path.getAttribute('d')).join('')")
    step = math.ceil(int(wide()[3].sum()) / 2000)
    assert (
        drawn.count("M") == math.ceil(int(wide()[3].sum()) / step)
        and f"One action in {step} is drawn" in large.inner_text()
    )
    assert "Each sign is one action" in widget.inner_text()


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_legible(notebook, real, theme):
    """Rejects text that a theme makes faint, in the pictures too."""
    notebook.theme(theme)
    assert too_faint(real) == []
    notebook.picture(real, f"clip_{theme.lower()}")
    notebook.theme("Light")
