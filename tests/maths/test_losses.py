"""Losses: value and gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lib.maths.losses import (
    combine_losses,
    entropy,
    log_ratio,
    policy_loss,
    preference_loss,
    sft_loss,
    value_loss,
)
from tests import helpers
from tests.helpers import assert_close, call, floats, gradient, ragged_cases
from tests.maths.specifications import assert_meets_specification

POLICY = ("log_probs", "old_log_probs", "advantages", "action_mask")
VALUE = ("values", "old_values", "returns", "action_mask")
clips = st.floats(0.0625, 0.5, width=16)


@pytest.mark.parametrize("fn", [sft_loss, preference_loss, log_ratio, policy_loss, value_loss, entropy, combine_losses])
def test_specification(fn):
    assert_meets_specification(fn)


@given(ragged_cases, clips)
def test_policy_loss_case_by_case(case, clip):
    """Rejects a wrong side of the clip, for any lengths and any band."""
    assert_close(call(policy_loss, case, POLICY, clip=clip), call(helpers.policy_loss_spec, case, POLICY, clip=clip))


@given(ragged_cases, clips)
def test_value_loss_case_by_case(case, clip):
    """Rejects the smaller of the two errors, and a band around anything but the old value."""
    assert_close(call(value_loss, case, VALUE, clip=clip), call(helpers.value_loss_spec, case, VALUE, clip=clip))


@given(ragged_cases)
def test_sft_is_policy_gradient_with_advantage_1(case):
    """Rejects a sign or a scale that differs between the two: imitation is REINFORCE with every advantage 1."""
    on_policy = case | {"old_log_probs": case["log_probs"], "advantages": torch.ones_like(case["advantages"])}
    imitation = gradient(sft_loss, case, ("log_probs", "action_mask"), into="log_probs")
    assert_close(gradient(policy_loss, on_policy, POLICY, into="log_probs", clip=0.2), imitation)


@given(ragged_cases)
def test_clipping_never_helps(case):
    """Rejects min for max: a clipped loss is at least the plain one, of the policy and of the critic."""
    wide = 1e6
    for fn, names in ((policy_loss, POLICY), (value_loss, VALUE)):
        assert (call(fn, case, names, clip=0.2) >= call(fn, case, names, clip=wide) - 1e-12).all()


def test_a_clipped_critic_can_only_be_called_back():
    """By hand: outside the band and worse for it (0.6 with return 1) no gradient; overshooting (-1) the full one."""
    case = dict(zip(VALUE, (floats([0.6, -1, 9]), floats([0, 0, 9]), floats([1, 1]), helpers.bools("xx")), strict=True))
    # the second result weighs 2: d/dV (V - 1)^2 / 2 = V - 1 = -2, twice
    assert_close(gradient(value_loss, case, VALUE, into="values", clip=0.2), floats([0, -4, 0]))


@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(-100, 100))
def test_only_the_difference_of_scores_counts(chosen, rejected, constant):
    """Rejects scores judged one by one; and swapping the pair costs exactly the difference."""
    chosen, rejected = floats(chosen), floats(rejected)
    loss = preference_loss(chosen, rejected)
    assert_close(preference_loss(chosen + constant, rejected + constant), loss)
    assert_close(preference_loss(rejected, chosen) - loss, chosen - rejected)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.floats(-100, 100))
def test_entropy_is_bounded_and_forgets_a_constant(logits, constant):
    """Rejects raw logits in place of log-probabilities, and another base of the logarithm."""
    logits = floats(logits)
    found = entropy(logits)
    assert_close(entropy(logits + constant), found)
    assert 0 <= found.item() <= floats(logits.shape[-1]).log().item() + 1e-12


def test_float32():
    """Rejects a promotion to float64, and a loss of digits."""
    helpers.assert_float32_agrees(policy_loss, POLICY, clip=0.2)
    helpers.assert_float32_agrees(value_loss, VALUE, clip=0.2)
    helpers.assert_float32_agrees(sft_loss, ("log_probs", "action_mask"))
    helpers.assert_float32_agrees(log_ratio, ("log_probs", "old_log_probs", "action_mask"))
