"""Answers that passed: one readable Python file a lesson, from which they can be loaded again, and trained with."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

from . import sandbox
from .exercises import PREAMBLES, by_name, of_lesson
from .work import in_words, move_aside, set_aside, work_folder, write_text


def keep(name: str, source: str) -> str:
    """Write a passing answer into its lesson's file; a different one that stood there is set aside first.

    returns  where it is now, in words
    """
    lesson = by_name(name).lesson
    path, sources = _file_of(lesson), sources_of(lesson)
    if sources.get(name) != source:
        if path.exists():
            set_aside(path)
        write_text(path, _page(lesson, {**sources, name: source}))
    return in_words(path)


def sources_of(lesson: str) -> dict[str, str]:
    """Name to source of each answer to the lesson's exercises that has passed, in the order of the exercises."""
    path = _file_of(lesson)
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:  # edited by hand until it broke
        move_aside(path, f"line {error.lineno}: {error.msg}")
        return {}
    found = {node.name: _segment(text, node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    return {exercise.name: found[exercise.name] for exercise in of_lesson(lesson) if exercise.name in found}


def load(lesson: str) -> dict[str, Callable]:
    """The lesson's passing answers as functions of one module: they call each other by name."""
    return sandbox.load_all(sources_of(lesson), PREAMBLES[lesson])


def _file_of(lesson: str) -> Path:
    return work_folder() / "answers" / f"{lesson}.py"


def _page(lesson: str, sources: dict[str, str]) -> str:
    ordered = [sources[exercise.name].rstrip() for exercise in of_lesson(lesson) if exercise.name in sources]
    head = f'"""My answers to {lesson}. A check rewrites this file when one passes; what changed is in earlier/."""'
    return "\n\n\n".join([f"{head}\n\n{PREAMBLES[lesson].strip()}", *ordered]) + "\n"


def _segment(text: str, node: ast.FunctionDef) -> str:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno]) + "\n"
