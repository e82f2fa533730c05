"""`check.gae(gae)`: is it right, and if not, which mistake is it? A check never raises and never shows the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from torch import Tensor

from ..maths.records import Rows
from . import answers, journal, sandbox
from .exercise import Case, Exercise, Twin
from .exercises import EXERCISES, PREAMBLES, by_name
from .hunt import MutantHunt
from .observe import (
    ALIVE,
    INTO,
    TIME_LIMIT,
    LibraryCalled,
    Observation,
    TimeUp,
    differ_in_kind,
    expect,
    line_of,
    observe,
    same,
)
from .verdict import Verdict, as_text, kind_of


class Checks:
    """An attribute for each exercise: `check.gae` takes the learner's function and returns a `Verdict`."""

    def __getattr__(self, name: str) -> Callable[[Callable], Verdict]:
        try:
            exercise = by_name(name)
        except KeyError as error:
            raise AttributeError(error.args[0]) from None
        return lambda function: check_answer(exercise, function)

    def __dir__(self) -> list[str]:
        return list(EXERCISES)


check = Checks()


def check_answer(exercise: Exercise, function: Callable) -> Verdict:
    """Judge the function's source on its own; keep it if it passes, and note the try."""
    name = exercise.name
    if str(getattr(function, "__module__", "")).startswith("rlhf_lib"):
        return _error(name, "That is the library's own function: the exercise is to write it yourself.")
    try:
        source = sandbox.source_of(function)
        sources = {**answers.sources_of(exercise.lesson), name: source}
        with sandbox.instead_of({exercise.library: sandbox.refusing(exercise.library)}):
            verdict = judge(exercise, sandbox.load(name, sources, PREAMBLES[exercise.lesson]))
    except sandbox.CannotLoad as problem:
        verdict = _error(name, f"It could not be tried: {problem}.")
    if verdict.passed:
        use = "it tests what you write from now on" if isinstance(exercise, MutantHunt) else "runs can train with it"
        verdict = replace(verdict, next_step=f"Kept in {answers.keep(name, source)}: {use}.")
    journal.note(name, verdict.status, verdict.score)
    return verdict


def judge(exercise: Exercise, function: Callable) -> Verdict:
    """Compare with the specification case by case, the smallest first; name the mistake at the first difference."""
    if isinstance(exercise, MutantHunt):
        return exercise.judge(function)
    name = exercise.name
    for case, expected in _expected(name):
        seen = observe(function, case)
        if isinstance(seen.error, NotImplementedError):
            return Verdict(name, "not attempted", "Fill in the stub above, then run this cell again.")
        if not seen.agrees_with(expected):
            twin = known_mistake(exercise, function) if seen.error is None else None
            return _explain(exercise, case, expected, seen, twin)
    cases = exercise.sorted_cases
    gradients = ", gradients included" if any(case.gradients for case in cases) else ""
    return Verdict(name, "passed", f"It agrees with the specification on all {len(cases)} cases{gradients}.")


def known_mistake(exercise: Exercise, function: Callable) -> Twin | None:
    """The twin that shows the same as the function on every case, those aside that are there to be refused."""
    seen = [observe(function, case) for case in _accepted(exercise.name)]
    for twin, shown in _shown_by_twins(exercise.name):
        if all(one.agrees_with(other) for one, other in zip(seen, shown, strict=True)):
            return twin
    return None


@cache
def _expected(name: str) -> list[tuple[Case, Observation]]:
    """The smallest first; last those whose arguments have to be refused."""
    exercise = by_name(name)
    pairs = [(case, expect(exercise.specification, case)) for case in exercise.sorted_cases]
    return sorted(pairs, key=lambda pair: pair[1].error is not None)


def _accepted(name: str) -> list[Case]:
    return [case for case, expected in _expected(name) if expected.error is None]


@cache
def _shown_by_twins(name: str) -> list[tuple[Twin, list[Observation]]]:
    return [(twin, [observe(twin.answer, case) for case in _accepted(name)]) for twin in by_name(name).twins]


def _error(name: str, says: str) -> Verdict:
    return Verdict(name, "error", says)


def _explain(
    exercise: Exercise, case: Case, expected: Observation, seen: Observation, twin: Twin | None
) -> Verdict:  # fmt: skip
    """What is wrong in general, the known mistake if it is one, and the case to look at."""
    says, details = _what_happened(exercise, expected, seen)
    rows = [row for name, value in case.arguments.items() for row in _shown(name, value)]
    for name, right in expected.found.items() if seen.error is None else ():
        got = seen.found.get(name, "nothing")
        if not same(name, right, got, expected.tolerance):
            rows += [(f"expected {name}", as_text(right)), (f"your {name}", as_text(got))]
    return Verdict(
        exercise.name,
        "wrong" if seen.error is None else "error",
        says,
        mistake=f"The mistake: {twin.says}." if twin else "",
        details=details + ((f"Seen before: {twin.seen_in}.",) if twin and twin.seen_in else ()),
        case=case.label,
        rows=tuple(rows),
        printed=_first_lines(seen.printed),
        next_step=f'Stuck? hint("{exercise.name}") gives a first step.',
    )


def _shown(name: str, value: object) -> list[tuple[str, str]]:
    """An argument under its name; of a record every field."""
    if isinstance(value, Rows):
        return [(f"{name}.{field}", as_text(tensor)) for field, tensor in vars(value).items()]
    return [(name, as_text(value))]


def _what_happened(exercise: Exercise, expected: Observation, seen: Observation) -> tuple[str, tuple[str, ...]]:
    if expected.error is not None and isinstance(seen.error, Exception):
        return f"These arguments should be refused with a ValueError; it raised {type(seen.error).__name__}.", ()
    if seen.error is not None:
        return _of_error(exercise, seen.error)
    if seen.changed:
        names = " and ".join(f"`{name}`" for name in seen.changed)
        return f"It changes its argument {names} in place: whoever called it loses what was there.", ()
    for name, right in expected.found.items():
        if name not in seen.found:
            return f"It should return {', '.join(expected.found)}; it returns {', '.join(seen.found)}.", ()
        if difference := _difference(name, right, seen.found[name], expected.tolerance):
            return difference, ()
    extra = ", ".join(seen.found.keys() - expected.found.keys())
    return f"It returns more than it should: {extra}.", ()


def _difference(name: str, right: Tensor | str, got: Tensor | str, tolerance: float) -> str:
    """In words how two findings differ; "" if they do not."""
    if name in ALIVE:
        return "" if right == got else f"Its result is right, but there are too many {name}: {got}."
    if isinstance(right, str):
        return "" if right == got else "It accepts arguments that it should refuse with a ValueError."
    if isinstance(got, str):
        if got == "None":
            return "It returns None: is the `return` missing?"
        if name.startswith(INTO):
            return f"The {name} is {got}. Training would not move."
        return f"Its {name} should be a tensor, it is {got}."
    if got.shape != right.shape:
        return f"Its {name} has shape {tuple(got.shape)}, it should have {tuple(right.shape)}."
    if differ_in_kind(got, right):
        return f"Its {name} holds {kind_of(got)}, it should hold {kind_of(right)}."
    if same(name, right, got, tolerance):
        return ""
    if got.dtype != right.dtype:
        return f"Its {name} has only the precision of {kind_of(got)}: the arguments are {kind_of(right)}."
    if got.isnan().any() and not right.isnan().any():
        return f"Its {name} holds NaN: something was read that does not count, or divided by nothing."
    return f"Its {name} is not what it should be."


def _of_error(exercise: Exercise, error: BaseException) -> tuple[str, tuple[str, ...]]:
    if isinstance(error, TimeUp):
        return f"It was still running after {TIME_LIMIT:g} seconds: is there a loop that never ends?", ()
    if isinstance(error, LibraryCalled):
        return f"It calls the library's own `{exercise.name}`: the exercise is to write it yourself.", ()
    if missing := sandbox.unknown_name(error):
        known = "the imports at the top of the notebook and your answers that have passed"
        return f"`{missing}` is not known: a check runs your function alone, with {known}.", _line(exercise, error)
    return f"It raised {type(error).__name__}: {error}", _line(exercise, error)


def _line(exercise: Exercise, error: BaseException) -> tuple[str, ...]:
    found = line_of(error, sandbox.filename_of(exercise.name))
    return (f"In line {found[0]} of your function: {found[1]}",) if found else ()


def _first_lines(printed: str, lines: int = 3, width: int = 100) -> str:
    shown = [line[:width] for line in printed.strip().splitlines()]
    return " / ".join(shown[:lines]) + (" / ..." if len(shown) > lines else "")
