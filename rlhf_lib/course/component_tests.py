"""Tests of single components, small enough to be checked by hand. Each takes a function and raises AssertionError
unless it is right: PPO's own, a learner's, or a mutant.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

NAN = math.nan


def test_place_score(place_score: Callable) -> None:
    """Raises AssertionError unless place_score(scores, action_mask) pays each row's score once, for its last choice.

    scores [B], action_mask [B, T-1], result [B, T-1]
    """
    mask = as_mask("..##.", ".####", "#....")
    paid = place_score(torch.tensor([5.0, 7.0, -1.0]), mask)
    assert_is(paid, [[0, 0, 0, 5, 0], [0, 0, 0, 0, 7], [-1, 0, 0, 0, 0]])


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


def as_mask(*rows: str) -> Tensor:
    """A mask as one draws it: "#" counts."""
    return torch.tensor([[place == "#" for place in row] for row in rows])


def assert_is(got: Tensor, expected: list[list[float]]) -> None:
    """Equal to eight digits, NaN nowhere."""
    torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-8)
