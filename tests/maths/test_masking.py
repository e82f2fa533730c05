"""Aggregation: what does not count is never read."""

import pytest
import torch
from hypothesis import assume, given

from rlhf_lib.maths import masking
from rlhf_lib.maths.masking import keep, mask_from_lengths, masked_mean, masked_softmax, masked_sum, masked_var, whiten
from tests import helpers
from tests.helpers import assert_close, bools, ragged_cases
from tests.maths.specifications import assert_meets_specification


@pytest.mark.parametrize("fn", [mask_from_lengths, keep, masked_sum, masked_mean, masked_var, masked_softmax, whiten])
def test_specification(fn):
    assert_meets_specification(fn)


@given(ragged_cases)
def test_whitened_has_mean_0_and_variance_1(case):
    """Rejects a mean added back, a variance by count - 1, and statistics over padding."""
    x, mask = case["rewards"], case["action_mask"]
    assume(mask.sum() > 1)
    entries = whiten(x, mask)[mask]
    spread = x[mask].var(correction=0)
    assert_close(entries.mean(), torch.zeros_like(spread))
    assert_close(entries.var(correction=0), spread / (spread + masking.WHITEN_EPS))


@given(ragged_cases)
def test_whitening_forgets_a_constant(case):
    """Rejects a mean left in, or added back."""
    x, mask = case["rewards"], case["action_mask"]
    assert_close(whiten(x + 8, mask), whiten(x, mask))


def test_variance_far_from_zero():
    """Rejects E[x^2] - E[x]^2, which in float32 is all rounding here. By hand: deviations -1, 0, 1."""
    x = torch.tensor([[10_000.0, 10_001.0, 10_002.0, 0.0]])
    assert_close(masked_var(x, bools("xxx.")), torch.tensor(2 / 3))


@given(ragged_cases)
def test_softmax_is_a_distribution_that_forgets_a_constant(case):
    """Rejects a softmax that is masked but not normalised again, or that reads padding."""
    x, mask = case["rewards"], case["action_mask"]
    probabilities = masked_softmax(x, mask)
    assert_close(probabilities.sum(1), torch.ones(len(x), dtype=x.dtype))
    assert_close(masked_softmax(x + 8, mask), probabilities)


def test_a_global_mean_is_not_a_mean_of_means():
    """By hand: (1 + 2 + 3 + 10) / 4 = 4, where the row means 2 and 10 would give 6."""
    x = helpers.floats([1, 2, 3], [10, 99, 99])
    assert_close(masked_mean(x, bools("xxx", "x..")), helpers.floats(4)[0])


def test_float32():
    """Rejects a promotion to float64, and a loss of digits."""
    for fn in (masked_sum, masked_mean, masked_var, masked_softmax, whiten):
        helpers.assert_float32_agrees(fn, ("rewards", "action_mask"))
