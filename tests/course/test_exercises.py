"""The checks themselves are checked: right answers pass, known mistakes are named, unknown ones are rejected."""

from __future__ import annotations

import inspect
import itertools
import re
import typing

import pytest

from rlhf_lib.course.checking import check, judge
from rlhf_lib.course.exercises import EXERCISES, MODULES, PREAMBLES
from rlhf_lib.course.hunt import MutantHunt
from rlhf_lib.course.observe import expect, observe
from rlhf_lib.course.sandbox import CannotLoad, load
from tests.course.mutations import mutants
from tests.course.written import cells_of, solution, solutions_of, solved, written
from tests.helpers import annotations_off

TWINS = [pytest.param(name, twin, id=f"{name}: {twin.says}") for name, e in EXERCISES.items() for twin in e.twins]
# Changes that change nothing, each with the reason why nobody can tell.
EQUIVALENT: dict[str, set[str]] = {
    # what stands off the mask is selected away once more, in value and gradient
    "masked_var": {"distances = torch.where(mask, x - (mean if dim is None else mean.unsqueeze(dim)), 1.0)"},
    "whiten": {"x = torch.where(mask, x, 1.0)"},
    # what stands for "nowhere" is any number below all places
    "place_score": {"last = torch.where(action_mask, places, -2).amax(1, keepdim=True)"},
    # without check_one_wider, keep refuses the same widths in other words
    "td_errors": {"pass"},
    # what replaces the infinity is multiplied by a probability of 0
    "entropy": {"finite = log_p.masked_fill(log_p == -torch.inf, 1.0)"},
}


FUNCTIONS = [name for name, exercise in EXERCISES.items() if not isinstance(exercise, MutantHunt)]  # see test_hunt


def each(names=EXERCISES):
    return pytest.mark.parametrize("name", list(names))


@each(FUNCTIONS)
def test_the_library_meets_the_specification(name):
    """Rejects a specification that disagrees with the function it specifies, in value or gradient."""
    exercise = EXERCISES[name]
    with annotations_off():
        for case in exercise.sorted_cases:
            assert observe(exercise.library, case).agrees_with(expect(exercise.specification, case)), case.label


@each()
def test_the_solution_passes_and_is_kept(name, work_folder):
    """Rejects a solution that its own check refuses, and an answer that cannot be loaded again."""
    lesson = EXERCISES[name].lesson
    for other in solutions_of(lesson):
        verdict = getattr(check, other)(solved(other))
        assert verdict.passed, str(verdict)
        if other == name:
            break
    assert f"def {name}(" in (work_folder / "answers" / f"{lesson}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "twin"), TWINS)
def test_a_known_mistake_is_named(name, twin):
    """Rejects a check that lets a known mistake pass, or names another one."""
    verdict = judge(EXERCISES[name], twin.answer)
    assert verdict.status == "wrong"
    assert verdict.mistake == f"The mistake: {twin.says}."


@each(FUNCTIONS)
def test_unknown_mistakes_are_rejected(name):
    """Rejects a check that only knows its catalogue: every small change of the solution must fail, three unnamed."""
    lesson, source = EXERCISES[name].lesson, solution(name)
    unnamed = 0
    for line, text in mutants(source):
        try:
            wrong = load(name, {**solutions_of(lesson), name: text}, PREAMBLES[lesson])
        except CannotLoad:
            continue
        verdict = judge(EXERCISES[name], wrong)
        unnamed += not verdict.passed and not verdict.mistake
        assert verdict.passed == (line in EQUIVALENT.get(name, set())), line
    assert unnamed >= 3


@each()
def test_an_untouched_stub_is_not_attempted(name):
    """Rejects a stub that counts as wrong, or raises."""
    stub = written(f"def {name}(*args, **hyper):\n    raise NotImplementedError\n")
    assert getattr(check, name)(stub).status == "not attempted"


@each()
def test_the_solution_has_the_library_s_signature(name):
    """Rejects a stub that asks for other arguments, or promises something else, than the function it stands for."""
    mine, library = solved(name), EXERCISES[name].library
    plain = [[(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()] for f in (mine, library)]
    assert plain[0] == plain[1]
    assert inspect.getdoc(mine) == inspect.getdoc(library)
    assert typing.get_type_hints(mine).keys() == typing.get_type_hints(inspect.unwrap(library)).keys()


@each(FUNCTIONS)
def test_an_exercise_is_complete(name):
    """Rejects too few mistakes, hints or cases, and two mistakes that nobody could tell apart."""
    exercise = EXERCISES[name]
    assert len(exercise.twins) >= 5
    assert len(set(exercise.hints)) == 3
    assert exercise.sorted_cases == sorted(exercise.sorted_cases, key=lambda case: case.size)
    assert all(1 <= value <= 5 for value in (exercise.difficulty, exercise.importance))
    shown = [[observe(twin.answer, case) for case in exercise.sorted_cases] for twin in exercise.twins]
    for one, other in itertools.combinations(shown, 2):
        assert not all(a.agrees_with(b) for a, b in zip(one, other, strict=True))


@each(MODULES)
def test_every_exercise_of_a_lesson_is_solved(name):
    """Rejects a lesson whose solution leaves one out, or answers in another order."""
    assert list(solutions_of(name)) == [exercise.name for exercise in MODULES[name].EXERCISES]


@each(MODULES)
def test_the_notebook_shows_what_the_check_assumes(name):
    """Rejects imports that a check does not run with, and a badge that says something else than the record."""
    cells = cells_of(name)
    (imports,) = [text for text, tags in cells if "imports" in tags]
    assert [line for line in imports.splitlines() if line] == [line for line in PREAMBLES[name].splitlines() if line]
    badges = [
        match for text, _ in cells for match in re.findall(r"difficulty (\S+) · importance (\S+) · (\d+) min", text)
    ]
    for exercise in MODULES[name].EXERCISES:
        dots = ["●" * value + "○" * (5 - value) for value in (exercise.difficulty, exercise.importance)]
        assert (*dots, str(exercise.minutes)) in badges
    text = "\n".join(text for text, _ in cells)
    for exercise in MODULES[name].EXERCISES:
        assert f'hint("{exercise.name}")' in text
        assert f"check.{exercise.name}({exercise.name})" in text
    trains = any(exercise.name in FUNCTIONS for exercise in MODULES[name].EXERCISES)
    assert (f'train_with("{name}")' in text) == trains
    assert f'progress("{name}")' in text
