"""One server and one browser for all tests of this folder; each file opens one notebook.

They end with the folder, not with the session: Playwright keeps an event loop running that nbval could not live with.
"""

import pytest

from . import lab as jupyter


def pytest_collection_modifyitems(items):
    """Without a browser, or without what drives it, the tests of this folder are skipped, and say why."""
    reason = missing()
    for item in items:
        if reason and "tests/browser/" in item.path.as_posix():
            item.add_marker(pytest.mark.skip(reason=reason))


def missing() -> str:
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "no playwright: pip install -e .[test]"
    return "" if jupyter.browser_path() else "no Chromium or Chrome is installed (or named by CHROMIUM_PATH)"


@pytest.fixture(scope="package")
def lab(tmp_path_factory):
    with jupyter.running_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="package")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=jupyter.browser_path(), args=list(jupyter.CHROMIUM))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def open_notebook(lab, browser):
    """Makes a notebook of these cells, opens it and runs it. At the end the browser must have had no complaint."""
    opened = []

    def open_cells(name: str, *cells: str) -> jupyter.Notebook:
        jupyter.write_notebook(lab.folder / f"{name}.ipynb", *cells)
        notebook = jupyter.Notebook(browser, lab, f"{name}.ipynb")
        opened.append(notebook)
        notebook.run_all()
        return notebook

    yield open_cells
    complaints = [complaint for notebook in opened for complaint in notebook.complaints]
    for notebook in opened:
        notebook.close()
    assert not complaints, complaints
