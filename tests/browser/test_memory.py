"""The memory budget's instrument in a real browser, against `estimate` called in Python."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf_lib.course.widgets.memory import GROUPS, NUMBERS, SHAPES
from rlhf_lib.engine.memory_budget import GIB, ModelShape, Plan, estimate

from .contrast import too_faint

CELLS = [
    "from rlhf_lib.course.widgets import memory_budget\n"
    "from tests.browser.test_memory import PLAN\n"
    "from rlhf_lib.engine.memory_budget import GIB",
    "budget = memory_budget(PLAN, gpu=15 * GIB)\nbudget",
]
SHAPE = ModelShape(layers=6, width=512, heads=8, kv_heads=4, feed_forward=1408, vocabulary=30_000, tied=True)
PLAN = Plan(policy=SHAPE, batch=32, micro_batch=8, prompt=256, response=53, device="cuda")
FIRST = dict(
    model=0, vocabulary=30_000, trainable_layers=6, gpu=15, numbers="float32", gradient_checkpointing=False,
    shared_trunk=False, batch=32, micro_batch=8, prompt=256, response=53,
)  # fmt: skip


@pytest.fixture(scope="module")
def notebook(open_notebook):
    return open_notebook("memory", *CELLS)


@pytest.fixture
def widget(notebook):
    widget = notebook.widget("Memory budget")
    notebook.set_view(widget, "budget", FIRST)
    assert_shows(widget, PLAN)
    return widget


def columns(widget) -> list[list[str]]:
    """The table's numbers, phase by phase."""
    rows = widget.locator(".memory-table tbody tr")
    texts = [rows.nth(i).locator("td").all_inner_texts() for i in range(rows.count())]
    return [list(column) for column in zip(*texts, strict=True)]


def wanted(plan: Plan) -> list[list[str]]:
    found = []
    for phase in estimate(plan).phases:
        amounts = [sum(phase.rows.get(row, 0) for row in rows) for _, rows in GROUPS]
        found.append([*(f"{a / GIB:.2f}" if a else "" for a in amounts), f"{phase.total / GIB:.2f}"])
    return found


def assert_shows(widget, plan: Plan, gpu: float = 15) -> None:
    """The sentence comes last: when it is there, so is all else."""
    budget = estimate(plan)
    fits = "fits" if budget.fits(int(gpu * GIB)) else "does not fit"
    sentence = f"{budget.peak / GIB:.2f} GiB in {budget.phase} ({budget.highest.when}): {fits} {gpu:g} GiB"
    widget.locator(".memory-says", has_text=sentence).wait_for(timeout=5000)
    assert columns(widget) == wanted(plan)


SLIDERS = [
    ("micro-batch", {"micro_batch": 4}), ("batch", {"batch": 64}), ("prompt", {"prompt": 512}),
    ("response", {"response": 128}), ("vocabulary", {}), ("layers that train", {"trainable_layers": 5}),
]  # fmt: skip
KEYS = {"micro-batch": "ArrowLeft", "layers that train": "ArrowLeft"}


@pytest.mark.parametrize(("label", "change"), SLIDERS, ids=[label for label, _ in SLIDERS])
def test_each_slider_by_keyboard(notebook, widget, label, change):
    """Rejects a slider that sets another number, one step too far, or that only a mouse can move."""
    slider = widget.get_by_role("slider", name=label, exact=True)
    slider.focus()
    notebook.page.keyboard.press(KEYS.get(label, "ArrowRight"))
    plan = replace(PLAN, policy=replace(SHAPE, vocabulary=32_000)) if label == "vocabulary" else replace(PLAN, **change)
    assert_shows(widget, plan)
    assert notebook.page.evaluate("document.activeElement.type") == "range"


def test_what_is_chosen(notebook, widget):
    """Rejects numbers of another width, a toggle the wrong way round, and a model without its own vocabulary and
    layers.
    """
    for name, (dtype, autocast) in list(NUMBERS.items())[::-1]:
        widget.get_by_role("radio", name=name, exact=True).check()
        assert_shows(widget, replace(PLAN, dtype=dtype, autocast=autocast))
    widget.get_by_role("checkbox", name="gradient checkpointing").check()
    assert_shows(widget, replace(PLAN, gradient_checkpointing=True))
    widget.get_by_role("checkbox", name="gradient checkpointing").uncheck()
    widget.get_by_role("combobox", name="model").select_option("Llama-3.2-1B")
    llama = SHAPES["Llama-3.2-1B"]
    assert_shows(widget, replace(PLAN, policy=llama))
    assert widget.get_by_role("slider", name="layers that train").get_attribute("aria-valuetext") == "16"
    notebook.wait_for_python("print(budget.planned(budget.view).policy.vocabulary)", "128256")


def test_frozen_layers_held_once(notebook, widget):
    """Rejects a trunk that is counted three times, or that goes where nothing is frozen."""
    box = widget.get_by_role("checkbox", name="frozen layers held once")
    box.check()
    assert_shows(widget, PLAN)
    notebook.set_view(widget, "budget", {**FIRST, "shared_trunk": True, "trainable_layers": 2})
    assert_shows(widget, replace(PLAN, shared_trunk=True, trainable_layers=2))


def test_bars_and_line_are_to_scale(notebook, widget):
    """Rejects a bar that starts in the wrong place, a piece that is left out, and a line at another size."""
    left = "(pieces) => pieces.map((p) => [Number(p.getAttribute('x')), Number(p.getAttribute('width'))])"
    for gpu in (15, 1):
        notebook.set_view(widget, "budget", {**FIRST, "gpu": gpu})
        assert_shows(widget, PLAN, gpu)
        pieces = widget.locator(".memory-piece").evaluate_all(left)
        line = float(widget.locator(".memory-gpu").get_attribute("x1"))
        start = pieces[0][0]
        a_gib = (line - start) / gpu
        for index, phase in enumerate(estimate(PLAN).phases):
            (first, _), *_, (last, width) = pieces[7 * index : 7 * index + 7]
            assert first == start
            assert last + width - start == pytest.approx(phase.total / GIB * a_gib, rel=1e-3)
    assert "too-much" in widget.locator(".memory-says").get_attribute("class")


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_legible(notebook, widget, theme):
    """Rejects text that a theme makes faint, in the bars too."""
    notebook.theme(theme)
    assert too_faint(widget) == []
    notebook.picture(widget, f"memory_{theme.lower()}")
    notebook.theme("Light")
