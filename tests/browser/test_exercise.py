"""An exercise as a learner meets it: a copy in a real JupyterLab, answered by keyboard, judged in rendered panels."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest

from tests.course.written import solution

from . import lab as jupyter
from .contrast import too_faint

LESSON = "03_gae"
Cells = namedtuple("Cells", "stub check")
CELLS = {"td_errors": Cells("03-05", "03-06"), "gae": Cells("03-08", "03-09"), "returns": Cells("03-11", "03-12")}
PREDICTION, PROGRESS = "03-15", "03-19"
READS_PADDING = "return keep(rewards + gamma * values_after(values) - values_before(values), action_mask)"


class Learner:
    """Somebody with the exercise open."""

    def __init__(self, notebook: jupyter.Notebook):
        self.notebook, self.page = notebook, notebook.page

    def cell(self, cell_id: str):
        place = self.page.evaluate(
            "id => jupyterapp.shell.currentWidget.content.model.sharedModel.cells.findIndex(cell => cell.id === id)",
            cell_id,
        )
        return self.page.locator(".jp-Notebook .jp-Cell").nth(place)

    def panel(self, name: str):
        return self.cell(CELLS[name].check if name in CELLS else name).locator(".jp-RenderedHTML .rlhf-verdict")

    def run(self, cell_id: str) -> None:
        self.cell(cell_id).locator(".cm-line").first.click()
        self.notebook.command("notebook:run-cell")

    def answer(self, name: str, body: str) -> None:
        """Put it in the place of the stub's last line, which is `raise` or a `return`; then run stub and check."""
        self.cell(CELLS[name].stub).locator(".cm-line").last.click()
        for key in ("End", "Shift+Home"):
            self.page.keyboard.press(key)
        self.page.keyboard.insert_text(body)
        for cell_id in CELLS[name]:
            self.run(cell_id)

    def progress(self) -> str:
        self.run(PROGRESS)
        return self.cell(PROGRESS).locator(".jp-RenderedHTML").inner_text()


@pytest.fixture
def learner(lab, browser):
    """A fresh copy, its owner's folder empty, opened and run as it is: no cell may fail."""
    shutil.rmtree(lab.work, ignore_errors=True)
    shutil.copy(jupyter.ROOT / "exercises" / f"{LESSON}.ipynb", lab.folder)
    notebook = jupyter.Notebook(browser, lab, f"{LESSON}.ipynb")
    notebook.run_all()
    yield Learner(notebook)
    assert notebook.complaints == []
    notebook.close()


def body_of(name: str) -> str:
    """What the solution has in the place of the stub's last line."""
    return solution(name).partition("### BEGIN SOLUTION\n")[2].strip()


def test_from_opening_to_passing(learner, lab):
    """Rejects a verdict that is not rendered, one that stays when the answer has changed, a mistake without its name,
    a check whose pass is not counted, and an answer that is not kept as it was written.
    """
    kept = lab.work / "answers" / f"{LESSON}.py"
    for name in (*CELLS, PREDICTION):
        assert "not attempted" in learner.panel(name).inner_text()
    assert "0 of 3 passed" in learner.progress()

    learner.answer("td_errors", READS_PADDING)
    said = learner.panel("td_errors").inner_text()
    assert "td_errors: wrong" in said and "you bootstrapped from padding" in said
    assert not kept.exists() and "0 of 3 passed" in learner.progress()

    for done, name in enumerate(CELLS, 1):
        learner.answer(name, body_of(name))
        assert f"{name}: passed" in learner.panel(name).inner_text()
        assert f"{done} of 3 passed" in learner.progress()
    assert all(body_of(name) in kept.read_text(encoding="utf-8") for name in CELLS)


def test_verdicts_are_legible(learner):
    """Rejects a panel or a table of progress that one theme makes faint."""
    learner.answer("td_errors", READS_PADDING)
    learner.answer("returns", body_of("returns"))
    for theme in ("Light", "Dark"):
        learner.notebook.theme(theme)
        for name, status in {"td_errors": "wrong", "gae": "not attempted", "returns": "passed"}.items():
            assert status in learner.panel(name).inner_text()
            assert too_faint(learner.panel(name)) == []
        assert "1 of 3 passed" in learner.progress()
        assert too_faint(learner.cell(PROGRESS).locator(".jp-RenderedHTML")) == []
        learner.notebook.picture(learner.panel("td_errors"), f"verdict_{theme.lower()}")


def test_a_check_before_its_stub(learner):
    """Rejects a traceback where a line says what to run first."""
    learner.notebook.run_python("del gae")
    learner.run(CELLS["gae"].check)
    learner.panel("gae").get_by_text("First run the cell above that defines `gae`, then this one.").wait_for()
    assert "NameError" not in learner.cell(CELLS["gae"].check).inner_text()
    for cell_id in CELLS["gae"]:
        learner.run(cell_id)
    learner.panel("gae").get_by_text("Fill in the stub above").wait_for()
