"""How much better each choice turned out than the critic expected."""

from __future__ import annotations

import torch

from .alignment import another_follows, check_one_wider, check_same_actions, values_after, values_before
from .masking import keep
from .shapes import ActionMask, PerAction, PerState


def td_errors(values: PerState, rewards: PerAction, action_mask: ActionMask, *, gamma: float) -> PerAction:
    """delta_t = r_t + gamma * V_{t+1} - V_t, with V = 0 after the last choice, and 0 off the mask.

    values   [B, T]    reward units; read only in states where something is chosen
    rewards  [B, T-1]  reward units, paid for choice t
    returns  [B, T-1]  reward units
    raises   ValueError if values is not exactly one wider than rewards and action_mask
    source   Schulman et al. 2016, eq. 10. Differs: the cap on length counts as an end, nothing is bootstrapped there
    """
    check_one_wider(values, rewards)
    check_same_actions(rewards, action_mask)
    next_values = keep(values_after(values), another_follows(action_mask))
    return keep(rewards + gamma * next_values - values_before(values), action_mask)


def gae(values: PerState, rewards: PerAction, action_mask: ActionMask, *, gamma: float, lam: float) -> PerAction:
    """A_t = delta_t + gamma * lam * A_{t+1}: the advantage of each choice, 0 off the mask, not whitened.

    values       [B, T]    reward units
    rewards      [B, T-1]  reward units, paid for choice t
    action_mask  [B, T-1]  True where the policy chose
    returns      [B, T-1]  reward units
    raises       ValueError if values is not exactly one wider than rewards and action_mask
    source       Schulman et al. 2016, eq. 16, for finite rows: lam=0 gives the TD error, lam=1 reward-to-go minus V
    """
    deltas = td_errors(values, rewards, action_mask, gamma=gamma)
    advantages = torch.zeros_like(deltas)
    carried = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        carried = torch.where(action_mask[:, t], deltas[:, t] + gamma * lam * carried, 0.0)
        advantages[:, t] = carried
    return advantages


def returns(advantages: PerAction, values: PerState, action_mask: ActionMask) -> PerAction:
    """What the critic should have said: A_t + V_t where the policy chose, 0 elsewhere.

    advantages  [B, T-1] reward units, *not* whitened (whitened ones have no unit, and would train the critic on noise)
    values      [B, T]   reward units, the very ones that made the advantages
    source      Schulman et al. 2016, section 5; Huang et al. 2024 make returns before whitening as well
    """
    check_one_wider(values, advantages)
    return keep(advantages + values_before(values), action_mask)
