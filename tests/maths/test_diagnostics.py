"""What PPO shows while it runs."""

import pytest
import torch
from hypothesis import given

from rlhf_lib.maths.diagnostics import approx_kl, clip_fraction, explained_variance, step_zero_gaps
from rlhf_lib.maths.kl import kl_k3
from rlhf_lib.maths.losses import policy_loss
from tests import helpers
from tests.helpers import assert_close, call, gradient, ragged_cases
from tests.maths.specifications import assert_meets_specification

POLICY = ("log_probs", "old_log_probs", "advantages", "action_mask")


@pytest.mark.parametrize("fn", [approx_kl, clip_fraction, explained_variance, step_zero_gaps])
def test_specification(fn):
    assert_meets_specification(fn)


@given(ragged_cases)
def test_clipped_is_where_the_policy_gets_no_gradient(case):
    """Rejects a count of every ratio outside the band: half of them still have a gradient."""
    no_gradient = gradient(policy_loss, case, POLICY, into="log_probs", clip=0.2) == 0
    assert_close(call(clip_fraction, case, POLICY, clip=0.2) == 1, no_gradient & case["action_mask"])


@given(ragged_cases)
def test_approx_kl_is_k3_of_the_old_policy(case):
    """Rejects KL(current || old): the samples came from the old policy."""
    new, old, mask = (case[name] for name in ("log_probs", "old_log_probs", "action_mask"))
    assert_close(approx_kl(new, old, mask)[mask], kl_k3(old, new)[mask])
    assert_close(approx_kl(old, old, mask), torch.zeros_like(old))


def test_float32():
    """Rejects a promotion to float64, and a loss of digits."""
    helpers.assert_float32_agrees(approx_kl, ("log_probs", "old_log_probs", "action_mask"))
    helpers.assert_float32_agrees(clip_fraction, POLICY, clip=0.2)
    helpers.assert_float32_agrees(explained_variance, ("values", "returns", "action_mask"))
