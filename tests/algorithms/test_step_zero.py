"""The three assertions before the first update: each mistake trips its own, and no other."""

from dataclasses import replace

import pytest
import torch

from rlhf_lib.algorithms.ppo import collect, train_ppo
from rlhf_lib.algorithms.step_zero import LIMITS, StepZeroError, assert_step_zero
from rlhf_lib.engine.sampling import sample
from tests.algorithms.tiny_world import CONFIG, PARTS, new_state, prompt_batches
from tests.tiny import tiny_llama


def step_zero(state, parts=PARTS) -> dict[str, float]:
    return assert_step_zero(state.policy, collect(state, prompt_batches()[0], CONFIG, parts), CONFIG, parts)


def tripped(state, monkeypatch, parts=PARTS, before_training=lambda: None) -> set[str]:
    """The assertions that fail, each tried alone."""
    rollout = collect(state, prompt_batches()[0], CONFIG, parts)
    before_training()
    names = set()
    for name in LIMITS:
        with monkeypatch.context() as only:
            only.setattr("rlhf_lib.algorithms.step_zero.LIMITS", {name: LIMITS[name]})
            try:
                assert_step_zero(state.policy, rollout, CONFIG, parts)
            except StepZeroError as error:
                assert str(error).startswith(f"{name} is ")
                names.add(name)
    return names


def test_fresh_state_passes():
    """Rejects limits that honest rounding breaks, and numbers that nobody gets to see."""
    found = step_zero(new_state())
    assert set(found) == set(LIMITS)
    state = new_state()
    next(train_ppo(state, prompt_batches(), CONFIG))
    assert state.step_zero == found


def test_one_weight_of_the_reference_trips_the_kl(monkeypatch):
    """Rejects a check that compares the policy with itself."""
    state = new_state()
    with torch.no_grad():
        state.reference.lm_head.weight[7, 3] += 0.01
    assert tripped(state, monkeypatch) == {"kl_before_first_update"}
    with pytest.raises(StepZeroError, match=r"kl_before_first_update is .* must be below 1e-06: policy and reference"):
        next(train_ppo(state, prompt_batches(), CONFIG))


def test_kl_terms_that_cancel_still_trip(monkeypatch):
    """Rejects the mean of k1, whose terms have both signs: a reference at another temperature, off both ways."""
    state = new_state()
    rollout = collect(state, prompt_batches()[0], CONFIG, PARTS)
    signs = torch.where(torch.arange(rollout.action_mask.sum()) % 2 == 0, 0.1, -0.1)
    signs[-1] -= signs.sum()
    off = torch.zeros_like(rollout.ref_log_probs).masked_scatter(rollout.action_mask, signs)
    with pytest.raises(StepZeroError, match="kl_before_first_update"):
        assert_step_zero(state.policy, replace(rollout, ref_log_probs=rollout.old_log_probs + off), CONFIG, PARTS)


def test_another_sampling_temperature_trips_the_third_alone(monkeypatch):
    """Rejects a set of checks without the third: sampling at 1.4 T and scoring at T passes the first two."""

    def hotter(*args, temperature, **rest):
        return sample(*args, temperature=1.4 * temperature, **rest)

    assert tripped(new_state(), monkeypatch, replace(PARTS, sample=hotter)) == {"sampler_forward_gap", "sampler_kl"}


def test_dropout_in_training_trips_the_ratio_alone(monkeypatch):
    """Rejects a ratio taken from the rollout's own numbers, without a forward pass as in training."""
    torch.manual_seed(0)
    state = new_state(policy=tiny_llama(attention_dropout=0.3))
    assert tripped(state, monkeypatch) == set()
    found = tripped(state, monkeypatch, before_training=state.policy.train)
    assert found == {"ratio_error_before_first_update"}


def test_dropout_everywhere_trips_the_ratio_too(monkeypatch):
    """Rejects checks that an unreproducible policy passes."""
    torch.manual_seed(0)
    state = new_state(policy=tiny_llama(attention_dropout=0.3))
    state.policy.train()
    assert tripped(state, monkeypatch) == set(LIMITS)


def test_one_action_is_enough(monkeypatch):
    """Rejects means where the worst action counts: one of all actions is scored otherwise in training."""
    state = new_state()
    rollout = collect(state, prompt_batches()[0], CONFIG, PARTS)
    one = torch.zeros_like(rollout.action_mask)
    one[tuple(rollout.action_mask.nonzero()[-1])] = True
    for name, expected in (("old_log_probs", "ratio_error"), ("sampler_log_probs", "sampler_forward_gap")):
        wrong = replace(rollout, **{name: getattr(rollout, name) + 2e-4 * one})
        if name == "old_log_probs":
            wrong = replace(wrong, ref_log_probs=wrong.old_log_probs)
        with pytest.raises(StepZeroError, match=expected):
            assert_step_zero(state.policy, wrong, CONFIG, PARTS)


def test_nan_is_not_small():
    """Rejects `found > limit`, which is False for NaN."""
    state = new_state()
    rollout = collect(state, prompt_batches()[0], CONFIG, PARTS)
    with pytest.raises(StepZeroError, match="kl_before_first_update is nan"):
        assert_step_zero(state.policy, replace(rollout, ref_log_probs=rollout.ref_log_probs * torch.nan), CONFIG, PARTS)


def test_only_before_the_first_update():
    """Rejects assertions that stop every run at its second update, or when it is continued."""
    state = new_state()
    assert len(list(train_ppo(state, prompt_batches(2), CONFIG))) == 2
    assert state.update == 2
