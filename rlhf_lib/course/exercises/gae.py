"""Lesson 03: TD errors, generalised advantage estimation, returns."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...maths import advantages
from ..exercise import Case, Exercise, Twin
from .cases import as_wide_as_actions, of_every_shape, on, refuse_other_widths, rows_of

PREAMBLE = """
import torch

from rlhf_lib.maths.alignment import another_follows, check_one_wider, values_after, values_before
from rlhf_lib.maths.masking import keep
from rlhf_lib.maths.shapes import ActionMask, PerAction, PerState
"""

# ------------------------------------------------------------------------------------------------ what is right


def td_errors_specification(values: Tensor, rewards: Tensor, action_mask: Tensor, *, gamma: float) -> Tensor:
    """One choice at a time; what follows the last one is worth 0."""
    refuse_other_widths(values, rewards)
    found = torch.zeros_like(rewards)
    for row, places in enumerate(rows_of(action_mask)):
        for t in places:
            after = float(values[row, t + 1]) if t != places[-1] else 0.0
            found[row, t] = float(rewards[row, t]) + gamma * after - float(values[row, t])
    return found


def gae_specification(values: Tensor, rewards: Tensor, action_mask: Tensor, *, gamma: float, lam: float) -> Tensor:
    """The sum as it stands in the paper: A_t = sum over l of (gamma lam)^l delta_{t+l}, within the row."""
    deltas = td_errors_specification(values, rewards, action_mask, gamma=gamma)
    found = torch.zeros_like(rewards)
    for row, places in enumerate(rows_of(action_mask)):
        for start, t in enumerate(places):
            found[row, t] = sum(
                (gamma * lam) ** distance * float(deltas[row, later]) for distance, later in enumerate(places[start:])
            )
    return found


def returns_specification(advantages: Tensor, values: Tensor, action_mask: Tensor) -> Tensor:
    """A_t + V_t where something was chosen."""
    refuse_other_widths(values, advantages)
    found = torch.zeros_like(advantages)
    for row, places in enumerate(rows_of(action_mask)):
        for t in places:
            found[row, t] = float(advantages[row, t]) + float(values[row, t])
    return found


# ------------------------------------------------------------------------------------------------ what is tried


def _cases(names: tuple[str, ...], *hyper: dict[str, float]) -> Callable[[], list[Case]]:
    """Every shape with each set of hyper-parameters in turn."""

    def make() -> list[Case]:
        settings = hyper or ({},)
        return [
            Case(label, {**{name: tensors[name] for name in names}, **settings[number % len(settings)]})
            for number, (label, tensors) in enumerate([*of_every_shape() * len(settings), *as_wide_as_actions()])
        ]

    return make


GAMMAS = ({"gamma": 1.0}, {"gamma": 0.9}, {"gamma": 0.5})
GAMMAS_AND_LAMS = ({"gamma": 1.0, "lam": 0.95}, {"gamma": 0.9, "lam": 0.8}, {"gamma": 0.5, "lam": 1.0},
                   {"gamma": 0.95, "lam": 0.0}, {"gamma": 0.8, "lam": 0.3})  # fmt: skip

# ------------------------------------------------------------------------------------------------ what goes wrong


def _follows(mask: Tensor) -> Tensor:
    return mask & pad(mask[:, 1:], (0, 1))


def _late(x: Tensor) -> Tensor:
    return pad(x[:, :-1], (1, 0))


def _td_with(
    next_values: Callable = lambda v, m: on(_follows(m), v[:, 1:]), reward: Callable = lambda r: r
) -> Callable:  # fmt: skip
    def td_errors(values, rewards, action_mask, *, gamma):
        return on(action_mask, reward(rewards) + gamma * next_values(values, action_mask) - values[:, :-1])

    return td_errors


def _gae_with(deltas: Callable | None = None, decay: Callable = lambda gamma, lam: gamma * lam) -> Callable:
    def gae(values, rewards, action_mask, *, gamma, lam):
        left = (deltas or _td_with())(values, rewards, action_mask, gamma=gamma)
        found, carried = torch.zeros_like(left), torch.zeros_like(left[:, 0])
        for t in reversed(range(left.shape[1])):
            carried = torch.where(action_mask[:, t], left[:, t] + decay(gamma, lam) * carried, 0.0)
            found[:, t] = carried
        return found

    return gae


def _gae_forwards(values, rewards, action_mask, *, gamma, lam):
    deltas = _td_with()(values, rewards, action_mask, gamma=gamma)
    found, carried = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in range(deltas.shape[1]):
        carried = torch.where(action_mask[:, t], deltas[:, t] + gamma * lam * carried, 0.0)
        found[:, t] = carried
    return found


def _gae_unmasked(values, rewards, action_mask, *, gamma, lam):
    deltas = rewards + gamma * values[:, 1:] - values[:, :-1]
    found, carried = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        carried = deltas[:, t] + gamma * lam * carried
        found[:, t] = carried
    return on(action_mask, found)


def _whitened(x: Tensor, mask: Tensor) -> Tensor:
    entries = x[mask]
    return on(mask, (x - entries.mean()) / (entries.var(unbiased=False) + 1e-8).sqrt())


def _gae_whitened(values, rewards, action_mask, *, gamma, lam):
    return _whitened(_gae_with()(values, rewards, action_mask, gamma=gamma, lam=lam), action_mask)


TD_TWINS = (
    Twin(
        "you bootstrapped from padding: after a row's last choice comes nothing, so its next value must be 0, not "
        "whatever the critic says of the state behind the EOS",
        _td_with(lambda v, m: v[:, 1:]),
        "the write-up's code, whose values reach one slot behind the EOS",
    ),
    Twin("you left the next value out: without it this is r - V, not a TD error",
         _td_with(lambda v, m: torch.zeros_like(v[:, 1:]))),
    Twin(
        "your next value is the value of the state itself: values are state-indexed, the state after choice t is t+1",
        _td_with(lambda v, m: on(_follows(m), v[:, :-1])),
    ),
    Twin("your rewards are one slot late: the reward for choice t stands at place t", _td_with(reward=_late),
         "the write-up's longest bug: the reward model reads at the EOS state, the reward belongs to the EOS action"),
    Twin(
        "you discounted the reward as well: gamma belongs to the next value only",
        lambda values, rewards, action_mask, *, gamma: _td_with(reward=lambda r: gamma * r)(
            values, rewards, action_mask, gamma=gamma
        ),
    ),
    Twin(
        "you forgot gamma",
        lambda values, rewards, action_mask, *, gamma: _td_with()(values, rewards, action_mask, gamma=1.0),
    ),
    Twin(
        "you left junk where nothing was chosen: prompt and padding must hold 0, or the recursion picks it up",
        lambda values, rewards, action_mask, *, gamma: (
            rewards + gamma * on(_follows(action_mask), values[:, 1:]) - values[:, :-1]
        ),
    ),
    Twin(
        "you multiplied by the mask: 0 times NaN is NaN, so one bad number in padding comes through; select instead",
        lambda values, rewards, action_mask, *, gamma: (
            (rewards + gamma * values[:, 1:] * _follows(action_mask) - values[:, :-1]) * action_mask
        ),
    ),
)  # fmt: skip

GAE_TWINS = (
    Twin(
        "you bootstrapped from padding: the value behind a row's last choice leaks into every advantage before it",
        _gae_with(_td_with(lambda v, m: v[:, 1:])),
        "the write-up's code, with weight 1 - lambda (it zeroes V one slot too late)",
    ),
    Twin("you let the recursion run through padding: what is carried must be 0 where nothing was chosen", _gae_unmasked,
         "https://github.com/natolambert/rlhf-book/pull/216"),
    Twin("you forgot lambda in the decay: this is the Monte Carlo advantage",
         _gae_with(decay=lambda gamma, lam: gamma)),
    Twin("you forgot gamma in the decay: it is gamma times lambda",
         _gae_with(decay=lambda gamma, lam: lam)),
    Twin("you carried nothing: this is the TD error alone, as if lambda were 0",
         _gae_with(decay=lambda gamma, lam: 0.0)),
    Twin("you ran forwards: credit flows from later choices to earlier ones", _gae_forwards),
    Twin("your rewards are one slot late", _gae_with(_td_with(reward=_late))),
    Twin("you whitened inside: then the returns made from these advantages have no unit", _gae_whitened,
         "ash80/RLHF_in_notebooks, notebook 3, cell 46"),
    Twin(
        "you returned the returns: advantage plus value is what the critic should say, not how much better it was",
        lambda values, rewards, action_mask, *, gamma, lam: on(
            action_mask, _gae_with()(values, rewards, action_mask, gamma=gamma, lam=lam) + values[:, :-1]
        ),
    ),
    Twin(
        "you have the sign turned: PPO would unlearn whatever worked",
        lambda values, rewards, action_mask, *, gamma, lam: -_gae_with()(
            values, rewards, action_mask, gamma=gamma, lam=lam
        ),
    ),
)  # fmt: skip

RETURNS_TWINS = (
    Twin(
        "you built them from whitened advantages: those have no unit, and the critic would learn noise",
        lambda advantages, values, action_mask: on(action_mask, _whitened(advantages, action_mask) + values[:, :-1]),
        "ash80/RLHF_in_notebooks, notebook 3, cell 46; the write-up",
    ),
    Twin("you added the value of the state after the choice: choice t was made in state t",
         lambda advantages, values, action_mask: on(action_mask, advantages + values[:, 1:])),
    Twin("you returned the advantages alone", lambda advantages, values, action_mask: on(action_mask, advantages)),
    Twin("you subtracted the value: the advantage already is return minus value",
         lambda advantages, values, action_mask: on(action_mask, advantages - values[:, :-1])),
    Twin("you left junk where nothing was chosen", lambda advantages, values, action_mask: advantages + values[:, :-1]),
    Twin("you multiplied by the mask: 0 times NaN is NaN; select instead",
         lambda advantages, values, action_mask: (advantages + values[:, :-1]) * action_mask),
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ the exercises

EXERCISES = (
    Exercise(
        lesson="03_gae",
        library=advantages.td_errors,
        specification=td_errors_specification,
        cases=_cases(("values", "rewards", "action_mask"), *GAMMAS),
        twins=TD_TWINS,
        hints=(
            "Write down, for one row, what stands before and after each choice. Which value has no choice behind it?",
            "Take `values_before` and `values_after` from the library's alignment. The value after a choice may be "
            "read only where another choice follows.",
            "`another_follows(action_mask)` is the mask for the next value, `action_mask` the one for the result; "
            "`keep(x, mask)` puts 0 elsewhere without ever reading it.",
        ),
        difficulty=2,
        importance=5,
        minutes=10,
    ),
    Exercise(
        lesson="03_gae",
        library=advantages.gae,
        specification=gae_specification,
        cases=_cases(("values", "rewards", "action_mask"), *GAMMAS_AND_LAMS),
        twins=GAE_TWINS,
        hints=(
            "The sum over later TD errors can be carried along: what does the advantage at t have to do with the one "
            "at t+1?",
            "Start with the TD errors. Walk the columns from the last to the first and carry one number a row.",
            "In column t: where something was chosen, the carried number becomes delta_t plus gamma times lambda times "
            "what was carried; elsewhere it becomes 0.",
        ),
        difficulty=3,
        importance=5,
        minutes=15,
    ),
    Exercise(
        lesson="03_gae",
        library=advantages.returns,
        specification=returns_specification,
        cases=_cases(("advantages", "values", "action_mask")),
        twins=RETURNS_TWINS,
        hints=(
            "The advantage says how much better a choice turned out than the critic expected. What should it have "
            "expected?",
            "Advantage plus the value of the state in which the choice was made; mind the two widths.",
            "`values_before(values)` is as wide as the advantages; `keep` the sum where something was chosen.",
        ),
        difficulty=1,
        importance=4,
        minutes=5,
    ),
)
