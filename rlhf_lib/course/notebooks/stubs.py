"""An exercise from its solution: what stands between the markers goes, everything else stays."""

from __future__ import annotations

import copy
import re

from nbformat import NotebookNode

from ...pipeline.errors import UserError
from .tidy import without_outputs

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
SOLUTION_ONLY = "solution-only"  # the tag of a cell that the exercise does without
STUB = "raise NotImplementedError"
BLOCK = re.compile(rf"^(?P<indent>[ \t]*){BEGIN}[ \t]*\n.*?^[ \t]*{END}[ \t]*$", re.MULTILINE | re.DOTALL)


def exercise_from(solution: NotebookNode, name: str) -> NotebookNode:
    """The same cells under the same ids, with stubs, without outputs.

    raises  UserError, which names the cell, if the markers do not pair up or stand outside a function
    """
    exercise = without_outputs(copy.deepcopy(solution))
    exercise.cells = [cell for cell in exercise.cells if SOLUTION_ONLY not in cell.metadata.get("tags", [])]
    for cell in exercise.cells:
        if cell.cell_type == "code":
            cell.source = _with_stubs(cell.source, f"{name}, cell {cell.id}")
    return exercise


def _with_stubs(source: str, where: str) -> str:
    blocks = list(BLOCK.finditer(source))
    markers = [line.strip() for line in source.splitlines() if re.match(r"\s*#.*\b(BEGIN|END) SOLUTION", line)]
    if markers != [BEGIN, END] * len(blocks):
        raise UserError(f"{where}: each {BEGIN!r} needs an {END!r} below it, on lines of their own")
    if any(not block["indent"] for block in blocks):
        raise UserError(f"{where}: a solution stands inside a function; tag a whole cell {SOLUTION_ONLY!r} instead")
    return BLOCK.sub(lambda block: block["indent"] + STUB, source)
