"""From one score to one reward for each token."""

import pytest
import torch
from hypothesis import given

from rlhf_lib.maths.rewards import penalise_kl, place_score, replace_score_without_eos
from tests import helpers
from tests.helpers import assert_close, bools, floats, ragged_cases
from tests.maths.specifications import assert_meets_specification


@pytest.mark.parametrize("fn", [replace_score_without_eos, place_score, penalise_kl])
def test_specification(fn):
    assert_meets_specification(fn)


@given(ragged_cases)
def test_nothing_is_lost_on_the_way(case):
    """Rejects a score paid twice or never: the rewards of a row add up to its score minus kl_coef times its KL."""
    mask, kl = case["action_mask"], case["kl_per_token"]
    rewards = penalise_kl(place_score(case["scores"], mask), kl, mask, kl_coef=0.1)
    assert_close(rewards.sum(1), case["scores"] - 0.1 * torch.where(mask, kl, 0.0).sum(1))


def test_three_steps_by_hand():
    """Rejects a replacement that wipes out the KL as well. Row 1 ended; row 2 did not, so its 9 becomes -1."""
    mask = bools(".xx.", "..xx")
    scores = replace_score_without_eos(floats(2, 9), torch.tensor([True, False]), score_without_eos=-1.0)
    rewards = penalise_kl(place_score(scores, mask), torch.ones_like(floats(*[[1] * 4] * 2)), mask, kl_coef=0.5)
    assert_close(rewards, floats([0, -0.5, 1.5, 0], [0, 0, -0.5, -1.5]))


def test_float32():
    """Rejects a promotion to float64."""
    helpers.assert_float32_agrees(place_score, ("scores", "action_mask"))
    helpers.assert_float32_agrees(penalise_kl, ("placed_scores", "kl_per_token", "action_mask"), kl_coef=0.1)
    helpers.assert_float32_agrees(replace_score_without_eos, ("scores", "has_eos"), score_without_eos=-1.0)
