"""How far the learner is: tries, hints, answers that passed; and the hints themselves, one step at a time."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .exercises import EXERCISES, MODULES, by_name, of_lesson
from .verdict import SIGNS
from .work import read_json, work_folder, write_text

ONE_TRY = {"tries": 0, "hints": 0, "passed": False, "score": ""}


def note(name: str, status: str, score: str = "") -> None:
    """Remember that a check was run, and the score where there is one. A passed exercise stays passed."""
    if status != "not attempted":
        _change(name, lambda entry: {
            "tries": entry["tries"] + 1,
            "passed": entry["passed"] or status == "passed",
            "score": entry["score"] if entry["passed"] else score,
        })  # fmt: skip


@dataclass(frozen=True)
class Hint:
    """One step of help."""

    exercise: str
    step: int
    steps: int
    text: str

    def __repr__(self) -> str:
        more = "" if self.step == self.steps else f'  (hint("{self.exercise}") again: the next step)'
        return f"Hint {self.step} of {self.steps} for {self.exercise}: {self.text}{more}"


def hint(exercise: str | Callable, step: int | None = None) -> Hint:
    """The next step of help for an exercise, by name or function; `step` shows one again.

    raises  KeyError for an unknown exercise, ValueError for a step that there is not
    """
    found = by_name(exercise if isinstance(exercise, str) else exercise.__name__)
    steps = len(found.hints)
    if step is None:
        step = min(_entry(found.name)["hints"] + 1, steps)
        _change(found.name, lambda entry: {"hints": step})
    if not 1 <= step <= steps:
        raise ValueError(f"there are hints 1 to {steps}, not {step}")
    return Hint(found.name, step, steps, found.hints[step - 1])


@dataclass(frozen=True)
class Row:
    """One exercise in the table of progress."""

    lesson: str
    exercise: str
    status: str
    tries: int
    hints: int
    score: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        status = f"{SIGNS[self.status]} {self.status}" + (f", {self.score}" if self.score else "")
        return self.lesson, self.exercise, status, str(self.tries), str(self.hints)


@dataclass(frozen=True)
class Progress:
    """The table; `done` of `rows` have passed."""

    rows: tuple[Row, ...]

    @property
    def done(self) -> int:
        return sum(row.status == "passed" for row in self.rows)

    def __repr__(self) -> str:
        table = [HEADINGS, *(row.cells for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in table]
        return "\n".join([*lines, f"{self.done} of {len(self.rows)} passed"])

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{cell}</th>" for cell in HEADINGS)
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row.cells) + "</tr>"
            for row in self.rows
        )
        bar = f"<progress value='{self.done}' max='{len(self.rows)}' aria-label='exercises passed'></progress>"
        return f"<table><tr>{head}</tr>{body}</table>{bar} {self.done} of {len(self.rows)} passed"


HEADINGS = ("lesson", "exercise", "status", "tries", "hints")


def progress(lesson: str | None = None) -> Progress:
    """All exercises and how they stand, or those of one lesson.

    raises  KeyError for a lesson without exercises
    """
    if lesson is not None and lesson not in MODULES:
        raise KeyError(f"there is no lesson {lesson!r} with exercises; there are {', '.join(MODULES)}")
    return Progress(tuple(_row(e.lesson, e.name) for e in (of_lesson(lesson) if lesson else EXERCISES.values())))


def _row(lesson: str, name: str) -> Row:
    entry = _entry(name)
    status = "passed" if entry["passed"] else "wrong" if entry["tries"] else "not attempted"
    return Row(lesson, name, status, entry["tries"], entry["hints"], entry["score"])


def _entry(name: str) -> dict:
    return {**ONE_TRY, **read_json(_file()).get(name, {})}


def _change(name: str, change: Callable[[dict], dict]) -> None:
    everything = read_json(_file())
    entry = {**ONE_TRY, **everything.get(name, {})}
    write_text(_file(), json.dumps({**everything, name: {**entry, **change(entry)}}, indent=2) + "\n")


def _file() -> Path:
    return work_folder() / "progress.json"
