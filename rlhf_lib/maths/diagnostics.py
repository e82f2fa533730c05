"""Numbers to look at while PPO runs. Each one reads only the actions that count."""

from __future__ import annotations

import torch

from .alignment import check_one_wider, check_same_actions, values_before
from .kl import kl_k3
from .losses import log_ratio
from .masking import keep, masked_mean, masked_var
from .shapes import ActionMask, PerAction, PerState, Scalar


def approx_kl(log_probs: PerAction, old_log_probs: PerAction, action_mask: ActionMask) -> PerAction:
    """k3 estimate of KL(old || current) of each action, in nats: how far this update has moved; 0 off the mask."""
    return kl_k3(torch.zeros_like(log_probs), log_ratio(log_probs, old_log_probs, action_mask))


def clip_fraction(
    log_probs: PerAction, old_log_probs: PerAction, advantages: PerAction, action_mask: ActionMask, *, clip: float
) -> PerAction:
    """1 where the clipped term is the larger loss, so that the action has no gradient; its masked mean is the fraction.

    A ratio outside [1-clip, 1+clip] is not enough: with A > 0 and r < 1-clip the unclipped term still rules.
    """
    check_same_actions(log_probs, advantages)
    ratio = log_ratio(log_probs, old_log_probs, action_mask).exp()
    is_clipped = -advantages * ratio.clamp(1 - clip, 1 + clip) > -advantages * ratio
    return keep(is_clipped.to(ratio.dtype), action_mask)


def step_zero_gaps(
    log_probs: PerAction, old_log_probs: PerAction, ref_log_probs: PerAction, sampler_log_probs: PerAction,
    action_mask: ActionMask,
) -> dict[str, Scalar]:  # fmt: skip
    """Three numbers that are 0, up to rounding, before the first update. Any two can be 0 while the third is not.

    log_probs  [B, T-1] nats, of the policy as it trains; `old_` as it scored the rollout, `sampler_` as it drew it
    returns    kl_before_first_update           mean |old - ref|, in nats: bounds the k1 estimate of the KL
               ratio_error_before_first_update  max |ratio - 1|, with ratio = pi / pi_old as in the loss
               sampler_forward_gap              max |sampler - old|, in nats
    raises     ValueError unless all have one shape
    """
    check_same_actions(log_probs, old_log_probs, ref_log_probs, sampler_log_probs, action_mask)
    ratio = log_ratio(log_probs, old_log_probs, action_mask).exp()
    return dict(
        kl_before_first_update=masked_mean((old_log_probs - ref_log_probs).abs(), action_mask),
        ratio_error_before_first_update=(ratio - 1).abs().max(),
        sampler_forward_gap=keep((sampler_log_probs - old_log_probs).abs(), action_mask).max(),
    )


def explained_variance(values: PerState, returns: PerAction, action_mask: ActionMask) -> Scalar:
    """1 - Var(R - V) / Var(R): 1 is perfect, 0 no better than a constant, negative worse; NaN if R is constant."""
    check_one_wider(values, returns)
    spread = masked_var(returns, action_mask)
    unexplained = masked_var(returns - values_before(values), action_mask)
    return 1 - unexplained / torch.where(spread > 0, spread, torch.nan)
