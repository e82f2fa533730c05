"""The lessons that show an instrument, opened and run from top to bottom in a real JupyterLab."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest

from . import lab as jupyter
from .contrast import too_faint

LESSONS = sorted((jupyter.ROOT / "notebooks").glob("*.ipynb"))
SHOWING = [path for path in LESSONS if "course.widgets" in path.read_text(encoding="utf-8")]
KEYS = {"radio": "ArrowRight", "range": "ArrowLeft", "checkbox": "Space", "select-one": "ArrowDown", "text": "ArrowUp"}


def instruments_in(path: Path) -> int:
    """How many the committed file shows: each leaves its first state as a page; a dashboard leaves its name."""
    outputs = [output.get("data", {}) for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
    return sum(
        "to use the instrument" in data.get("text/html", "") or "Dashboard(" in data.get("text/plain", "")
        for data in outputs
    )


@pytest.fixture
def lesson(lab, browser, request):
    path = shutil.copy(request.param, lab.folder)
    notebook = jupyter.Notebook(browser, lab, Path(path).name)
    notebook.run_all()
    yield notebook, request.param
    assert notebook.complaints == []
    notebook.close()


@pytest.mark.parametrize("lesson", SHOWING, ids=lambda path: path.stem, indirect=True)
def test_a_lesson_runs_and_its_instruments_answer(lesson):
    """Rejects a lesson that only runs without a front end, an instrument that does not appear in it, one whose control
    fails, and text that is faint with the lesson's own data.
    """
    notebook, path = lesson
    widgets = notebook.page.locator("section.rlhf")
    widgets.first.wait_for()
    assert widgets.count() == instruments_in(path) > 0
    for widget in widgets.all():
        widget.scroll_into_view_if_needed()
        assert too_faint(widget) == []
        for kind, key in KEYS.items():
            for control in widget.locator("input, select").all()[:40]:
                if control.evaluate("control => control.type") == kind:
                    control.press(key)
        assert too_faint(widget) == []
        notebook.picture(widget, f"{path.stem}_{widget.get_attribute('aria-label').lower().replace(' ', '_')}")
