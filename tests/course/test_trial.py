"""Training with the learner's functions: they are really called, and a wrong one makes the run worse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.course import train_with
from rlhf_lib.course.checking import check
from rlhf_lib.course.exercises import MODULES
from rlhf_lib.course.sandbox import instead_of
from rlhf_lib.course.short_runs import SHORT, short_run
from rlhf_lib.course.trial import NothingToTrainWith, trial
from rlhf_lib.maths import advantages, masking
from tests.course.written import solutions_of, solved

NOT_IN_PPO = {"kl_k2"}  # pays k1, watches k3
ONE_UPDATE = replace(SHORT, updates=1, batch_size=8)


@pytest.mark.parametrize("lesson", MODULES)
def test_every_answer_is_called_and_trains_like_the_library(lesson):
    """Rejects a trial that runs the library's functions twice, and a solution that trains differently."""
    for name in solutions_of(lesson):
        assert getattr(check, name)(solved(name)).passed
    run = train_with(lesson, ONE_UPDATE)
    assert list(run.calls) == [exercise.name for exercise in MODULES[lesson].EXERCISES]
    assert all(count > 0 for name, count in run.calls.items() if name not in NOT_IN_PPO), run.calls
    assert run.first_update_agrees


def test_the_negative_of_gae_makes_it_worse():
    """Rejects a trial in which the learner's function does not matter."""
    run = trial({"gae": lambda *args, **hyper: -advantages.gae(*args, **hyper)}, SHORT)
    assert run.yours[-1]["score"] < run.yours[0]["score"] - 0.5
    assert run.library[-1]["score"] > run.yours[-1]["score"] + 1
    assert not run.first_update_agrees
    assert "is NOT the library's" in repr(run)
    assert run.picture().startswith(b"\x89PNG")


def test_without_answers_it_says_so():
    """Rejects a trial that raises in an untouched exercise, or trains with nothing."""
    assert isinstance(train_with("03_gae"), NothingToTrainWith)
    with pytest.raises(KeyError, match="03_gea"):
        train_with("03_gea")


def test_a_function_is_put_in_the_library_s_place_and_back():
    """Rejects a swap that misses a module which imported the function by name, or that stays after an error."""
    from rlhf_lib.algorithms import ppo  # noqa: F401

    def other(x, mask):
        return x

    with pytest.raises(RuntimeError, match="on purpose"), instead_of({masking.keep: other}):
        assert masking.keep is advantages.keep is other
        raise RuntimeError("on purpose")
    assert masking.keep is advantages.keep is not other


def test_the_same_seed_is_the_same_run():
    """Rejects a short run that depends on what ran before it."""
    first, second = (list(short_run(Parts(), ONE_UPDATE)) for _ in range(2))
    assert first == second
    assert first != list(short_run(Parts(), ONE_UPDATE, seed=1))
