"""Functions as a learner writes them: from text, in a cell; and the solutions, as they stand in their notebooks."""

from __future__ import annotations

import ast
import itertools
import json
import linecache
import textwrap
from collections.abc import Callable
from pathlib import Path

from rlhf_lib.course.exercises import EXERCISES, PREAMBLES, by_name

SOLUTIONS = Path(__file__).parent.parent.parent / "solutions"
_cells = itertools.count()


def written(text: str, preamble: str = "") -> Callable:
    """The last function that a cell with this text defines; its source can be found, as IPython's can."""
    text = textwrap.dedent(text)
    filename = f"<cell {next(_cells)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict = {}
    exec(preamble, namespace)
    exec(compile(text, filename, "exec"), namespace)
    name = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)][-1]
    return namespace[name]


def solution(name: str) -> str:
    """The source of an exercise's function in its solution notebook."""
    return solutions_of(by_name(name).lesson)[name]


def solutions_of(lesson: str) -> dict[str, str]:
    """All functions of a lesson's solution notebook that are answers, by name."""
    found = {}
    for text, _ in cells_of(lesson):
        if "### BEGIN SOLUTION" not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name in EXERCISES:
                found[node.name] = ast.get_source_segment(text, node) + "\n"
    return found


def cells_of(lesson: str) -> list[tuple[str, list[str]]]:
    """Text and tags of every cell of a solution notebook."""
    notebook = json.loads((SOLUTIONS / f"{lesson}.ipynb").read_text(encoding="utf-8"))
    return [("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in notebook["cells"]]


def solved(name: str) -> Callable:
    """The solution as a learner would have it in a cell."""
    lesson = by_name(name).lesson
    others = "\n".join(text for other, text in solutions_of(lesson).items() if other != name)
    return written(f"{others}\n{solution(name)}", PREAMBLES[lesson])
