"""The shifts of lesson 02 move what they say, and the recorded runs are theirs."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from rlhf_lib.algorithms import ppo
from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.algorithms.step_zero import StepZeroError
from rlhf_lib.course.lesson import recorded
from rlhf_lib.course.shifts import EIGHT_UPDATES, SHIFTS, shift, shifted_run
from rlhf_lib.course.short_runs import SHORT, short_run
from rlhf_lib.maths.alignment import is_last
from rlhf_lib.pipeline.assets import load_rollout

ROLLOUT = load_rollout()
JUDGED = ROLLOUT.values  # before the first update the critic is a copy of the reward model
DOUBTING = replace(ROLLOUT, values=ROLLOUT.values / 2)


def test_the_recorded_runs_are_of_these_shifts():
    """Rejects a record of other mistakes, other settings or too few seeds than the lesson shows."""
    found = recorded("02_shifts")
    assert found["config"] == asdict(EIGHT_UPDATES)
    assert list(found["runs"]) == [one.name for one in SHIFTS]
    for seeds in found["runs"].values():
        assert list(seeds) == ["0", "1", "2"]
        assert all(len(run["gold"]) == EIGHT_UPDATES.updates for run in seeds.values())


def test_nothing_is_the_library():
    """Rejects a replay that changes something by itself."""
    rewards = ppo.token_rewards(ROLLOUT, SHORT, Parts())
    right = ppo.estimate_targets(ROLLOUT, rewards, SHORT, Parts()).advantages
    assert torch.equal(shift("nothing").advantages(ROLLOUT, JUDGED)[1], right)


@pytest.mark.parametrize("one", SHIFTS[1:], ids=lambda one: one.name)
def test_every_shift_moves_something(one):
    """Rejects a mistake that is not made: with a critic that doubts, only log-probs leave the advantages alone."""
    right, moved = (s.advantages(DOUBTING, JUDGED)[0] for s in (shift("nothing"), one))
    mask = ROLLOUT.action_mask
    assert torch.allclose(moved[mask], right[mask], atol=1e-5) == (one.moves == "log-probs")


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_one_slot_later_differs_by_the_critics_error_behind_the_eos(lam):
    """Rejects two of the three changes, and a score that is lost or paid twice.

    Paid one later, the last choice has delta = V' - V and, carried, lam (s - V'), with V' the value behind the EOS:
    together s - V - (1 - lam)(s - V'), where the library has s - V.
    """
    right, later = (
        shift(name).advantages(DOUBTING, JUDGED, replace(SHORT, lam=lam))[0] for name in ("nothing", "N+ and TRL")
    )
    has_room = ROLLOUT.sequence_lengths < ROLLOUT.tokens.shape[1]
    error = (1 - lam) * (ROLLOUT.scores - ROLLOUT.scores / 2)
    last = is_last(ROLLOUT.action_mask)
    torch.testing.assert_close((right - later)[last], torch.where(has_room, error, 0.0), rtol=1e-4, atol=1e-5)


def test_a_run_that_step_zero_would_refuse_is_noted():
    """Rejects a run that stops, one that hides what was seen, and assertions left switched off."""
    config = replace(SHORT, updates=1, batch_size=8)
    run = shifted_run(shift("log-probs one late"), config)
    assert run.refused.startswith("sampler_forward_gap is ")
    assert len(run.metrics) == 1
    with pytest.raises(StepZeroError):
        next(short_run(shift("log-probs one late").parts, config))
