"""A notebook that was run and saved, opened again with a new kernel and not run: as its owner or a reader finds it."""

from __future__ import annotations

import nbformat
import pytest

from rlhf_lib.course.notebooks.tidy import tidy

from . import lab as jupyter

CELLS = [
    "from rlhf_lib.course.widgets import alignment_microscope, gae_explorer, mask_explorer\n"
    "from tests.browser import rollouts",
    "alignment_microscope(*rollouts.nasty())",
    "gae_explorer(*rollouts.nasty())",
    "rollout, _ = rollouts.nasty()\nmask_explorer(rollout.values[:, :-1], rollout.action_mask, name='values')",
]
TITLES = ("Alignment microscope", "GAE explorer", "Mask explorer")


@pytest.fixture(scope="module")
def saved(lab, browser):
    """The file, after its row selector was moved to row 2."""
    path = jupyter.write_notebook(lab.folder / "saved.ipynb", *CELLS)
    notebook = jupyter.Notebook(browser, lab, path.name)
    notebook.run_all()
    notebook.widget("GAE explorer").get_by_label("Row (of 3)").select_option(index=2)
    notebook.command("docmanager:save")
    notebook.close()
    return path


@pytest.fixture
def reopened(lab, browser):
    """Opens a notebook of the server's folder and runs nothing."""
    opened = []

    def open_file(path):
        opened.append(jupyter.Notebook(browser, lab, path.name))
        return opened[0]

    yield open_file
    assert opened[0].complaints == []
    opened[0].close()


def test_a_learners_notebook_is_alive_again(saved, reopened):
    """Rejects a page of "Loading widget..." or "Error displaying widget", and an instrument that forgot its state."""
    notebook = reopened(saved)
    widgets = [notebook.widget(title) for title in TITLES]
    assert "Row 2: credit for each choice" in widgets[1].inner_text()
    widgets[1].get_by_label("Row (of 3)").select_option(index=0)
    assert "Row 0: credit for each choice" in widgets[1].inner_text()
    assert widgets[0].locator("td", has_text="NaN").count() > 0  # not null, which JSON would have made of it


def test_a_committed_notebook_is_readable(saved, reopened, lab):
    """Rejects a file that shows nothing without JavaScript, or in which a token is markup."""
    notebook = nbformat.read(saved, 4)
    path = lab.folder / "committed.ipynb"
    nbformat.write(tidy(notebook), path)
    outputs = [cell.outputs[0].data["text/html"] for cell in notebook.cells[1:]]
    page = reopened(path)
    tables = page.page.locator(".jp-OutputArea-output table")
    tables.first.wait_for()
    assert tables.count() == sum(html.count("<table>") for html in outputs) == 2 + 1 + 3
    text = page.page.locator(".jp-Notebook").inner_text()
    assert "Loading widget" not in text and "Error displaying widget" not in text
    assert "run the cell to use the instrument" in text and "<script>window.hacked = 1</script>" in text
    assert page.page.locator("section.rlhf, .jp-OutputArea-output img, .jp-OutputArea-output script").count() == 0
    page.picture(page.page.locator(".jp-Notebook"), "saved_light")
