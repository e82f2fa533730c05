"""TD errors, generalised advantages, returns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lib.maths.advantages import gae, returns, td_errors
from rlhf_lib.maths.masking import whiten
from tests import helpers
from tests.helpers import assert_close, call, ragged_cases
from tests.maths.specifications import assert_meets_specification

NAMES = ("values", "rewards", "action_mask")
unit = st.floats(0, 1, width=16)


@pytest.mark.parametrize("fn", [td_errors, gae, returns])
def test_specification(fn):
    assert_meets_specification(fn)


@given(ragged_cases, unit, unit)
def test_gae_is_the_double_sum(case, gamma, lam):
    """Rejects a recursion that crosses a row's end, or mixes gamma and lam, for any lengths."""
    hyper = dict(gamma=gamma, lam=lam)
    assert_close(call(gae, case, NAMES, **hyper), call(helpers.gae_spec, case, NAMES, **hyper))


@given(ragged_cases, unit)
def test_the_ends_of_lam(case, gamma):
    """Rejects lam in the wrong place: 0 gives the TD error, 1 the reward to go minus the value."""
    assert_close(call(gae, case, NAMES, gamma=gamma, lam=0.0), call(td_errors, case, NAMES, gamma=gamma))
    mask, advantages = case["action_mask"], call(gae, case, NAMES, gamma=gamma, lam=1.0)
    assert_close(returns(advantages, case["values"], mask),
                 helpers.reward_to_go_spec(case["rewards"], mask, gamma=gamma))  # fmt: skip


@given(ragged_cases, unit, unit)
def test_a_perfect_critic_is_never_surprised(case, gamma, lam):
    """Rejects any bootstrap after the last choice: with V the true reward to go, every advantage is 0."""
    mask, rewards = case["action_mask"], case["rewards"]
    worth = torch.nn.functional.pad(helpers.reward_to_go_spec(rewards, mask, gamma=gamma), (0, 1), value=7.0)
    advantages = gae(worth, rewards, mask, gamma=gamma, lam=lam)
    assert_close(advantages, torch.zeros_like(advantages))
    assert_close(returns(advantages, worth, mask), torch.where(mask, worth[:, :-1], 0.0))


def test_returns_keep_their_unit():
    """Rejects returns from whitened advantages: doubling rewards and values must double the returns."""
    case = helpers.CASES[1]
    mask, doubled = case["action_mask"], case | {"values": 2 * case["values"], "rewards": 2 * case["rewards"]}
    once, twice = (returns(call(gae, c, NAMES, gamma=1.0, lam=0.95), c["values"], mask) for c in (case, doubled))
    assert_close(twice, 2 * once)
    whitened = returns(whiten(case["advantages"], mask), case["values"], mask)
    assert (whitened - returns(case["advantages"], case["values"], mask)).abs().max() > 0.1


def test_arguments_are_left_alone():
    """Rejects an edit in place, which would spoil the rollout for the next epoch."""
    case = helpers.CASES[1]
    before = {name: tensor.clone() for name, tensor in case.items()}
    call(gae, case, NAMES, gamma=0.9, lam=0.8)
    for name, tensor in before.items():
        assert_close(case[name], tensor)


def test_float32():
    """Rejects a promotion to float64, and a loss of digits along the recursion."""
    helpers.assert_float32_agrees(td_errors, NAMES, gamma=0.9)
    helpers.assert_float32_agrees(gae, NAMES, gamma=0.9, lam=0.8)
    helpers.assert_float32_agrees(returns, ("advantages", "values", "action_mask"))
