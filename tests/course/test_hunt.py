"""Tests that learners write: judged by the mutants they kill, and only if they accept what is right."""

from __future__ import annotations

import pytest

from rlhf_lib.course import progress, train_with
from rlhf_lib.course.checking import check
from rlhf_lib.course.exercises import EXERCISES, PREAMBLES
from rlhf_lib.course.hunt import MutantHunt, kills
from tests.course.written import written

HUNTS = {name: exercise for name, exercise in EXERCISES.items() if isinstance(exercise, MutantHunt)}


def verdict_on(body: str, name: str = "test_whiten"):
    """What the check says of a test with this body."""
    argument = name.removeprefix("test_")
    return getattr(check, name)(written(f"def {name}({argument}):\n    {body}\n", PREAMBLES["08_debugging_lab"]))


@pytest.mark.parametrize("name", HUNTS)
def test_ours_accepts_the_right_one_and_kills_every_mutant(name):
    """Rejects a mutant that nothing small enough to work out by hand can kill, and hints that lead nowhere."""
    hunt = HUNTS[name]
    hunt.library(hunt.under_test)
    assert [mutant.says for mutant in hunt.mutants if not kills(hunt.library, mutant.answer)] == []
    assert len(hunt.mutants) >= 5 and len(set(hunt.hints)) == 3


def test_a_test_that_asserts_nothing_kills_nothing():
    """Rejects a score for having run."""
    verdict = verdict_on("whiten(torch.ones(1, 2), as_mask('##'))")
    assert (verdict.status, verdict.score) == ("wrong", "0 of 10 mutants")
    assert "torchtune" in verdict.mistake and len(verdict.rows) == 10


def test_a_test_that_fails_on_everything_kills_nothing():
    """Rejects full marks for `assert False`."""
    verdict = verdict_on("assert False, 'never'")
    assert (verdict.status, verdict.score) == ("wrong", "0 of 10 mutants")
    assert "rejects the library's whiten" in verdict.says and "line 2" in verdict.details[0]


def test_a_comparison_with_the_library_is_refused():
    """Rejects a test that kills every mutant by asking the library what is right."""
    body = "import rlhf_lib.maths.masking as m; x = torch.ones(1, 2); assert whiten(x, x > 0) is m.whiten(x, x > 0)"
    assert verdict_on(body).status == "error"


def test_a_test_that_breaks_is_not_a_test():
    """Rejects counting a NameError as a killed mutant."""
    verdict = verdict_on("assert_that(whiten)")
    assert verdict.status == "error" and "assert_that" in verdict.says


def test_a_test_without_end_is_stopped(monkeypatch):
    """Rejects a check that hangs with the learner's loop."""
    monkeypatch.setattr("rlhf_lib.course.hunt.TIME_LIMIT", 0.2)
    assert "too long" in verdict_on("while True: pass").says


def test_the_score_is_shown_and_the_best_stays():
    """Rejects progress that only knows passed or not, and one that forgets a full score."""
    verdict_on("x = torch.tensor([[1.0, 3.0]]); assert abs(whiten(x, x > 0).mean()) < 1e-6")
    (row,) = [row for row in progress("08_debugging_lab").rows if row.exercise == "test_whiten"]
    assert row.cells[2] == "✗ wrong, 2 of 10 mutants"
    mask = "as_mask('..##.', '.####')"
    full = f"assert_is(place_score(torch.tensor([5.0, 7.0]), {mask}), [[0, 0, 0, 5, 0], [0, 0, 0, 0, 7]])"
    assert verdict_on(full, "test_place_score").passed
    verdict_on("pass", "test_place_score")
    (row,) = [row for row in progress("08_debugging_lab").rows if row.exercise == "test_place_score"]
    assert row.cells[2] == "✓ passed, 8 of 8 mutants"


def test_tests_do_not_train():
    """Rejects a run that claims to train with functions that PPO never calls."""
    with pytest.raises(KeyError, match="08_debugging_lab"):
        train_with("08_debugging_lab")
