"""A check that runs before its stub: in place of a NameError's traceback, a line that says which cell to run first."""

from __future__ import annotations

import re
import sys
from types import TracebackType

from .verdict import Verdict

GIVEN_TO = r"\b(?:check\.{name}|predicted)\(\s*{name}\b"  # in a cell: what is judged, and by what


def say_which_cell_to_run() -> None:
    """From here on, in this notebook; elsewhere, and beside another handler of errors, nothing changes."""
    shell = _shell()
    if shell is not None and not shell.custom_exceptions:
        shell.set_custom_exc((NameError,), _explain)


def _shell():
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    return get_ipython()


def _explain(
    shell, kind: type[NameError], error: NameError, trace: TracebackType, tb_offset: int | None = None
) -> None:  # fmt: skip
    """IPython calls this for each NameError of a cell. It stays one: cells that wait behind it are not run."""
    name = str(getattr(error, "name", None) or "")
    cell = shell.user_ns["In"][-1]
    if name and name not in shell.user_ns and re.search(GIVEN_TO.format(name=re.escape(name)), cell):
        from IPython.display import display

        display(Verdict(name, "not attempted", f"First run the cell above that defines `{name}`, then this one."))
    else:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
