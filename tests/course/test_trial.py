"""Training with the learner's functions: they are really called, and a wrong one makes the run worse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.course import train_with
from rlhf_lib.course.checking import check
from rlhf_lib.course.exercises import MODULES
from rlhf_lib.course.fine_tuning import FineTuning
from rlhf_lib.course.sandbox import instead_of
from rlhf_lib.course.short_runs import SHORT, short_run
from rlhf_lib.course.trial import PPO, NothingToTrainWith, Trial, trial
from rlhf_lib.maths import advantages, losses, masking
from tests.course.written import solutions_of, solved

# It pays k1 and watches k3; the others are for paper.
NOT_IN_PPO = {"kl_k2", "round_to_bfloat16", "loss_scales", "held_bytes", "layer_bytes"}
ONE_UPDATE = replace(SHORT, updates=1, batch_size=8)
ONE_STEP = FineTuning(updates=1, rows=8, posts=2, unseen=2)
SMALLEST = {"06_sft_and_reward_model": ONE_STEP}


@pytest.mark.parametrize("lesson", [lesson for lesson in MODULES if lesson != "08_debugging_lab"])  # only tests there
def test_every_answer_is_called_and_trains_like_the_library(lesson):
    """Rejects a trial that runs the library's functions twice, and a solution that trains differently."""
    for name in solutions_of(lesson):
        assert getattr(check, name)(solved(name)).passed
    run = train_with(lesson, SMALLEST.get(lesson, ONE_UPDATE))
    assert list(run.calls) == [exercise.name for exercise in MODULES[lesson].EXERCISES]
    assert all(count > 0 for name, count in run.calls.items() if name not in NOT_IN_PPO), run.calls
    assert run.first_update_agrees


def test_the_whole_run_trains_with_every_earlier_answer():
    """Rejects a lesson 07 that forgets what was written before it, or brings in what PPO has no use for."""
    for lesson in ("07_full_gpu_run", "03_gae", "05_ppo_loss", "06_sft_and_reward_model"):
        for name in solutions_of(lesson):
            assert getattr(check, name)(solved(name)).passed
    run = train_with("07_full_gpu_run", ONE_UPDATE)
    assert {"train_ppo", "gae", "policy_loss", "read_score"} < set(run.calls)
    assert not {"sft_loss", "preference_loss", "target_mask"} & set(run.calls)
    assert all(run.calls.values()) and run.first_update_agrees


def test_the_negative_of_gae_makes_it_worse():
    """Rejects a trial in which the learner's function does not matter."""
    run = trial({"gae": lambda *args, **hyper: -advantages.gae(*args, **hyper)}, SHORT)
    assert run.yours[-1]["score"] < run.yours[0]["score"] - 0.5
    assert run.library[-1]["score"] > run.yours[-1]["score"] + 1
    assert not run.first_update_agrees
    assert "is NOT the library's" in repr(run)
    assert run.picture().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "judged_by", "falls"),
    [("sft_loss", "unseen_nats_per_token", True), ("preference_loss", "unseen_accuracy", False)],
)
def test_the_negative_of_a_loss_makes_it_worse(name, judged_by, falls):
    """Rejects a trial that trains SFT or reward model without the learner's loss, or judges it by that loss."""
    loss = getattr(losses, name)
    run = trial({name: lambda *args: -loss(*args)}, FineTuning(updates=4, posts=4, unseen=12))
    mine, library = ([step[judged_by] for step in steps] for steps in (run.yours, run.library))
    assert (library[-1] < library[0] and mine[-1] > mine[0]) if falls else (mine[-1] < 0.5 < 0.6 < library[-1])
    assert run.calls[name] > 0
    assert "4 steps of SFT and of the reward model" in repr(run) and "is NOT the library's" in repr(run)


def test_a_notebook_shows_words_and_picture(capsys):
    """Rejects a picture in the place of the words: then nobody reads what was called, and whether it agrees."""
    run = Trial({"gae": 3}, [dict.fromkeys(PPO.shown, 1.0)], [dict.fromkeys(PPO.shown, 2.0)])
    run._ipython_display_()
    assert capsys.readouterr().out == f"{run!r}\n<IPython.core.display.Image object>\n"


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
