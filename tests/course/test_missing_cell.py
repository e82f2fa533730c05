"""A check cell before its stub: one line says what to run first, and every other NameError looks as it always did."""

from __future__ import annotations

import pytest
from IPython.core.interactiveshell import InteractiveShell

from rlhf_lib.course import missing_cell


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs cells one after the other in a shell of its own; what the last one showed, and whether it succeeded."""
    shell = InteractiveShell()
    monkeypatch.setattr(missing_cell, "_shell", lambda: shell)

    def run(*cells: str) -> tuple[str, bool]:
        for cell in ("from rlhf_lib.course import check, predicted", *cells):
            capsys.readouterr()
            succeeded = shell.run_cell(cell, store_history=True).success
        return capsys.readouterr().out, succeeded

    return run


@pytest.mark.parametrize("cell", ["check.gae(gae)", "verdict = check.gae(gae)", "predicted(\n    gae,\n    x=1,\n)"])
def test_it_says_which_cell_to_run_first(run, cell):
    """Rejects a traceback, and a cell that counts as one that ran, so that those behind it follow."""
    shown, succeeded = run(cell)
    wanted = "[○] gae: not attempted. First run the cell above that defines `gae`, then this one.\n"
    assert (shown, succeeded) == (wanted, False)


@pytest.mark.parametrize(
    "cells",
    [
        ("check.gae(gea)",),
        ("gae",),
        ("check.gae(returns)",),
        ("def gae():\n    return rewards", "gae()"),
        ("def helper():\n    raise NameError('gae', name='gae')", "gae = helper", "check.gae(gae())"),
        ("x = [unknown for _ in 'a']  # check.gae(gae)",),
    ],
)
def test_another_missing_name_keeps_its_traceback(run, cells):
    """Rejects an explanation that hides where an error comes from."""
    shown, succeeded = run(*cells)
    assert "NameError" in shown and "First run the cell" not in shown
    assert not succeeded


def test_another_handler_stays():
    """Rejects a course that takes the place of a handler which somebody has set."""
    shell = InteractiveShell()
    shell.set_custom_exc((NameError,), lambda *_, **__: None)
    before = shell.CustomTB
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(missing_cell, "_shell", lambda: shell)
        missing_cell.say_which_cell_to_run()
    assert shell.CustomTB == before
