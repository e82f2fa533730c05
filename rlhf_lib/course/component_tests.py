"""Tests of single components, small enough to be checked by hand. Each takes a function and raises AssertionError
unless it is right: PPO's own, a learner's, or a mutant.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..maths.records import Texts

NAN = math.nan


def test_place_score(place_score: Callable) -> None:
    """Raises AssertionError unless place_score(scores, action_mask) pays each row's score once, for its last choice.

    scores [B], action_mask [B, T-1], result [B, T-1]
    """
    mask = as_mask("..##.", ".####", "#....")
    paid = place_score(torch.tensor([5.0, -1.0, 7.0]), mask)
    assert_is(paid, [[0, 0, 0, 5, 0], [0, 0, 0, 0, -1], [7, 0, 0, 0, 0]])


def test_whiten(whiten: Callable) -> None:
    """Raises AssertionError unless whiten(x, mask) brings what counts to mean 0 and variance 1, and the rest to 0.

    x, mask, result  [B, T-1]; the variance divides by the count, and 1e-8 is added to it before the root is taken
    """
    mask = as_mask("##.", "#..")
    x = torch.tensor([[1.0, 3.0, NAN], [5.0, NAN, NAN]], dtype=torch.float64)
    large, small = 2 / (8 / 3 + 1e-8) ** 0.5, 2e-4 / (8e-8 / 3 + 1e-8) ** 0.5
    assert_is(whiten(x, mask), [[-large, 0, 0], [large, 0, 0]])
    assert_is(whiten(x * 1e-4, mask), [[-small, 0, 0], [small, 0, 0]])
    assert_is(whiten(x[:, :1], as_mask("#", ".")), [[0], [0]])


def test_gae(gae: Callable) -> None:
    """Raises AssertionError unless gae(values, rewards, action_mask, gamma=.., lam=..) is the advantage of each choice.

    values [B, T]; rewards, action_mask, result [B, T-1]. The value behind the last choice is never read
    """
    mask = as_mask(".##.", ".#..")
    values = torch.tensor([[NAN, 1.0, 2.0, NAN, NAN], [NAN, 3.0, NAN, NAN, NAN]], dtype=torch.float64)
    rewards = torch.tensor([[NAN, 10.0, 20.0, NAN], [NAN, 5.0, NAN, NAN]], dtype=torch.float64)
    last = 20 - 2
    first = 10 + 0.5 * 2 - 1 + 0.5 * 0.25 * last
    assert_is(gae(values, rewards, mask, gamma=0.5, lam=0.25), [[0, first, last, 0], [0, 5 - 3, 0, 0]])


def test_read_score(read_score: Callable) -> None:
    """Raises AssertionError unless read_score(per_state, texts) is the number at the last token of each text."""
    lengths = torch.tensor([3, 4])
    texts = Texts(torch.zeros(2, 4, dtype=torch.long), torch.tensor([1, 2]), lengths, torch.tensor([True, True]))
    assert_is(read_score(torch.tensor([[1.0, 2.0, 3.0, 9.0], [5.0, 6.0, 7.0, 8.0]]), texts)[None], [[3, 8]])


def test_penalise_kl(penalise_kl: Callable) -> None:
    """Raises AssertionError unless each choice is charged kl_coef times its own KL, and nothing is paid elsewhere."""
    placed = torch.tensor([[0.0, 0.0, 3.0, NAN]])
    charged = penalise_kl(placed, torch.tensor([[NAN, 2.0, -4.0, NAN]]), as_mask(".##."), kl_coef=0.5)
    assert_is(charged, [[0, -1, 5, 0]])


def test_returns(returns: Callable) -> None:
    """Raises AssertionError unless the critic's target is its own value plus the advantage, as it came."""
    values = torch.tensor([[NAN, 1.0, 2.0, NAN, NAN]])
    assert_is(returns(torch.tensor([[NAN, 10.0, 20.0, NAN]]), values, as_mask(".##.")), [[0, 11, 22, 0]])


def test_policy_loss(policy_loss: Callable) -> None:
    """Raises AssertionError unless a ratio of 1 costs -A, however large, and a ratio beyond the clip is held there."""
    old, mask = torch.tensor([[-1.0, -1.0, NAN]]), as_mask("##.")
    advantages = torch.tensor([[30.0, -2.0, NAN]])
    assert_is(policy_loss(old.clone(), old, advantages, mask, clip=0.2), [[-30, 2, 0]])
    assert_is(policy_loss(old + 1, old, advantages, mask, clip=0.2), [[-36, 2 * math.e, 0]], digits=5)


def test_value_loss(value_loss: Callable) -> None:
    """Raises AssertionError unless it is half the square of what the state's own value is off, the worse of two."""
    values, old = torch.tensor([[1.0, 4.0, NAN]]), torch.tensor([[1.0, 2.0, NAN]])
    assert_is(value_loss(values, old, torch.tensor([[3.0, 4.0]]), as_mask("##"), clip=0.5), [[2, 1.125]])


def test_combine_losses(combine_losses: Callable) -> None:
    """Raises AssertionError unless the value loss counts value_coef times and the entropy is taken off."""
    two, three, half = torch.tensor(2.0), torch.tensor(3.0), torch.tensor(0.5)
    total = combine_losses(two, three, half, value_coef=0.1, entropy_coef=1.0)
    assert_is(total[None, None], [[1.8]], digits=5)


def test_masked_mean(masked_mean: Callable) -> None:
    """Raises AssertionError unless it is the mean of what counts."""
    assert_is(masked_mean(torch.tensor([[1.0, 3.0], [5.0, NAN]]), as_mask("##", "#."))[None, None], [[3]])


def test_ppo_schedule(ppo_schedule: Callable) -> None:
    """Raises AssertionError unless the rate falls from 1 at the first update to 1 / steps at the last."""
    assert [ppo_schedule(step, 4) for step in range(4)] == [1, 0.75, 0.5, 0.25]


def as_mask(*rows: str) -> Tensor:
    """A mask as one draws it: "#" counts."""
    return torch.tensor([[place == "#" for place in row] for row in rows])


def assert_is(got: Tensor, expected: list[list[float]], digits: int = 8) -> None:
    """Equal to so many digits, NaN nowhere."""
    close = 10.0**-digits
    torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), rtol=close, atol=close)
