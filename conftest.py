"""`pytest --nbval` runs each notebook in the environment that its outputs were made in, and shows how long it took.

Never with xdist: it would spread the cells of one notebook over several kernels.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf_lib.course.notebooks.environment import BUDGET_SECONDS, kernel_environment

ROOT = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("nbval", False) or config.getoption("nbval_lax", False):
        if not config.option.nbval_sanitize_with:
            config.option.nbval_sanitize_with = str(ROOT / "tests" / "nbval_sanitize.cfg")
        config.pluginmanager.register(NotebookRuns(), "notebook-runs")


class NotebookRuns:
    """Prepares the kernel of each notebook, and adds up its seconds."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()  # by the notebook's path in the repository
        self.work = tempfile.TemporaryDirectory(prefix="rlhf-work-", ignore_cleanup_errors=True)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        """nbval starts a kernel while it sets up the first cell of a file; the kernel inherits what stands here."""
        if item.path.suffix == ".ipynb" and item.parent.kernel is None:
            with environment(kernel_environment(tempfile.mkdtemp(dir=self.work.name))):
                return (yield)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        notebook = report.nodeid.split("::")[0]
        if notebook.endswith(".ipynb"):
            self.seconds[notebook] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.seconds:
            return
        terminalreporter.section("seconds per notebook")
        for notebook, seconds in self.seconds.items():
            budget = BUDGET_SECONDS.get(notebook.split("/")[0])
            over = budget is not None and seconds > budget
            line = f"{seconds:7.1f} of {budget or '-':>3}  {notebook}{'   OVER BUDGET' if over else ''}"
            terminalreporter.write_line(line, red=over, bold=over)

    def pytest_unconfigure(self) -> None:
        self.work.cleanup()


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Exactly these variables for a while; the unit tests keep their own."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
