"""The mask explorer in a real browser, against the library's masked statistics and torch's own plain ones."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lib.maths.masking import masked_mean, masked_softmax, masked_var, whiten
from rlhf_lib.pipeline.assets import load_rollout

from .contrast import too_faint
from .reading import says

CELLS = [
    """
import torch
from rlhf_lib.course.widgets import mask_explorer
from rlhf_lib.pipeline.assets import load_rollout

rollout = load_rollout()
some = slice(0, 4), slice(47, 60)
""",
    "real = mask_explorer(rollout.values[:, :-1][some], rollout.action_mask[some], name='values <b>')\nreal",
    """single = mask_explorer(torch.tensor([[1.0, float("nan")]]), torch.tensor([[True, False]]))\nsingle""",
    """
generator = torch.Generator().manual_seed(0)
large = mask_explorer(torch.randn(64, 128, generator=generator), torch.rand(64, 128, generator=generator) < 0.5)
large""",
]
REAL, SINGLE, LARGE = range(3)
WAYS = ("plain", "multiplied", "selected")


@pytest.fixture(scope="module")
def notebook(open_notebook):
    return open_notebook("masks", *CELLS)


@pytest.fixture
def real(notebook):
    """The explorer of real values, as it was at first, and its tensor and mask."""
    widget, rollout = notebook.widget("Mask explorer", REAL), load_rollout()
    mask = rollout.action_mask[:4, 47:60]
    notebook.set_view(widget, "real", dict(flipped=[], padding="given", row=0))
    return widget, rollout.values[:4, 47:60].double(), mask


def grid_cell(widget, row: int, column: int):
    return widget.get_by_role("grid").locator("tr").nth(row + 1).locator("td").nth(column)


def texts(widget, title: str) -> list[str]:
    """The cells of the line with this header."""
    return (
        widget.locator("tr", has=widget.page.get_by_role("rowheader", name=title, exact=True))
        .locator("td")
        .all_inner_texts()
    )


def statistics(x, mask) -> dict[str, list[float]]:
    """Mean and variance by each way, then plain over selected. Multiplying is spelled out as people write it."""
    count = mask.sum()
    mean = (x * mask).sum() / count
    multiplied = {"mean": mean, "variance": (((x - mean) ** 2) * mask).sum() / count}
    plain = {"mean": x.mean(), "variance": x.var(correction=0)}
    selected = {"mean": masked_mean(x, mask), "variance": masked_var(x, mask)}
    return {
        name: [float(v) for v in (plain[name], multiplied[name], selected[name], plain[name] / selected[name])]
        for name in plain
    }


def by_row(x, mask, row: int) -> dict[str, torch.Tensor]:
    mean = (x * mask).sum() / mask.sum()
    spread = ((((x - mean) ** 2) * mask).sum() / mask.sum() + 1e-8).sqrt()
    softmax = torch.softmax(x, 1)
    return {
        "whitened, plain": ((x - x.mean()) / (x.var(correction=0) + 1e-8).sqrt())[row],
        "whitened, multiplied": ((x - mean) / spread * mask)[row],
        "whitened, selected": whiten(x, mask)[row],
        "softmax, plain": softmax[row],
        "softmax, multiplied": (softmax * mask)[row],
        "softmax, selected": masked_softmax(x, mask)[row],
    }


def assert_shows(widget, x, mask, row: int) -> None:
    assert f"Fill rate: {int(mask.sum())} of {mask.numel()} cells" in widget.inner_text()
    for name, values in statistics(x, mask).items():
        found = texts(widget, name)
        assert all(map(says, found, values)), (name, found, values)
    for title, values in by_row(x, mask, row).items():
        total, *found = texts(widget, title)
        assert all(map(says, found, values.tolist())), (title, found, values)
        assert says(total, float(values[mask[row]].sum()))


def test_numbers_follow_the_mask(real):
    """Rejects a variance over count - 1, a mean that counts padding, a softmax that leaks, a row that is not the one
    in focus.
    """
    widget, x, mask = real
    assert_shows(widget, x, mask, 0)
    for row, column in ((0, 0), (2, 4), (3, 12)):
        grid_cell(widget, row, column).click()
        mask[row, column] = not mask[row, column]
        assert_shows(widget, x, mask, row)


@pytest.mark.parametrize(("padding", "value"), [("one NaN", math.nan), ("one ∞", math.inf), ("all 9", 9.0)])
def test_poison_in_padding(real, padding, value):
    """Rejects a page on which multiplying survives a NaN, or selecting does not."""
    widget, x, mask = real
    widget.get_by_label(padding, exact=True).check()
    if padding == "all 9":
        x = torch.where(mask, x, value)
    else:
        x[tuple((~mask).nonzero()[0])] = value
    assert_shows(widget, x, mask, 0)
    assert (texts(widget, "mean")[1] == "NaN") == (padding != "all 9")
    assert texts(widget, "mean")[2] != "NaN"


def test_by_keyboard_alone(notebook, real):
    """Rejects a grid that only a mouse toggles."""
    widget, x, mask = real
    keyboard = notebook.page.keyboard
    widget.get_by_label("as given", exact=True).focus()
    for key in ("Tab", "Tab", "Control+Home", "ArrowDown", "ArrowRight", "End", "Space", "Home", "Enter"):
        keyboard.press(key)
    mask[1, 12], mask[1, 0] = not mask[1, 12], not mask[1, 0]
    assert_shows(widget, x, mask, 1)
    assert grid_cell(widget, 1, 0).get_attribute("aria-selected") == "true"
    notebook.wait_for_python("print(real.view['flipped'])", "[[1, 12], [1, 0]]")
    keyboard.press("Shift+Tab")
    keyboard.press("Enter")  # Reset the mask
    assert_shows(widget, x, load_rollout().action_mask[:4, 47:60], 1)


def test_nothing_counts(notebook):
    """Rejects a mean of nothing that is shown as a number."""
    widget = notebook.widget("Mask explorer", SINGLE)
    assert texts(widget, "mean") == ["NaN", "NaN", "1.000", "NaN"]
    grid_cell(widget, 0, 0).click()
    assert "a mean of nothing is NaN" in widget.inner_text()
    assert texts(widget, "mean")[2] == "NaN"
    assert texts(widget, "softmax, selected") == ["0", "0", "0"]


def test_large(notebook):
    """Rejects a page that loses cells of 64 rows x 128, or computes over the visible ones only."""
    widget = notebook.widget("Mask explorer", LARGE)
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(64, 128, generator=generator).double(), torch.rand(64, 128, generator=generator) < 0.5
    grid_cell(widget, 63, 127).click()
    mask[63, 127] = not mask[63, 127]
    assert_shows(widget, x, mask, 63)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_legible(notebook, real, theme):
    """Rejects text that a theme makes faint, counted or not, and a name that becomes markup."""
    notebook.theme(theme)
    widget, _, _ = real
    widget.get_by_label("one NaN").check()
    assert too_faint(widget) == []
    assert "values <b>" in widget.inner_text() and widget.locator("b").count() == 0
    notebook.picture(widget, f"masks_{theme.lower()}")
    notebook.theme("Light")
