"""Losses, one term for each action (or pair). The caller reduces them, with a masked mean over the global batch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .alignment import check_one_wider, check_same_actions, values_before
from .masking import keep
from .shapes import ActionMask, PerAction, PerRow, PerState, Scalar


def sft_loss(log_probs: PerAction, target_mask: ActionMask) -> PerAction:
    """-log p of each token to imitate, in nats; 0 off the mask. N+ imitates the query as well as the response."""
    return keep(-log_probs, target_mask)


def preference_loss(chosen_scores: PerRow, rejected_scores: PerRow) -> PerRow:
    """-log sigmoid(chosen - rejected), one term for each pair, in nats.

    source  Bradley and Terry 1952; Stiennon et al. 2020, section 3.4. The difference is all that counts: adding the
            same number to both changes nothing, which is why the scores are centred after training
    """
    return -torch.nn.functional.logsigmoid(chosen_scores - rejected_scores)


def log_ratio(log_probs: PerAction, old_log_probs: PerAction, action_mask: ActionMask) -> PerAction:
    """log pi(a|s) - log pi_old(a|s), and 0 off the mask: masked *before* anybody takes the exponential."""
    check_same_actions(log_probs, old_log_probs, action_mask)
    return keep(log_probs - old_log_probs, action_mask)


def policy_loss(
    log_probs: PerAction, old_log_probs: PerAction, advantages: PerAction, action_mask: ActionMask, *, clip: float
) -> PerAction:
    """max(-A r, -A clip(r, 1-clip, 1+clip)) with r = pi/pi_old; 0 off the mask.

    log_probs, old_log_probs  [B, T-1] nats, both of the *same* distribution family: same temperature, no filtering
    advantages                [B, T-1] whitened, no gradient
    returns                   [B, T-1] terms whose masked mean is minimised
    source                    Schulman et al. 2017, eq. 7, with its sign turned: a loss, not an objective
    """
    check_same_actions(log_probs, advantages)
    ratio = log_ratio(log_probs, old_log_probs, action_mask).exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return keep(torch.maximum(unclipped, clipped), action_mask)


def value_loss(
    values: PerState, old_values: PerState, returns: PerAction, action_mask: ActionMask, *, clip: float
) -> PerAction:
    """max((V - R)^2, (V_clipped - R)^2) / 2, V kept within `clip` of its value at the rollout; 0 off the mask.

    values, old_values  [B, T]   reward units; the value after the last choice is never read
    returns             [B, T-1] reward units
    clip                reward units (unlike the policy's, which is a ratio)
    raises              ValueError if values is not exactly one wider than returns
    source              Huang et al. 2024 (and OpenAI baselines before): 0.2, with the factor 1/2
    """
    check_one_wider(values, returns)
    check_one_wider(old_values, action_mask)
    now, before = values_before(values), values_before(old_values)
    clipped = before + (now - before).clamp(-clip, clip)
    worse = torch.maximum(keep(now - returns, action_mask) ** 2, keep(clipped - returns, action_mask) ** 2)
    return worse / 2


def entropy(logits: Float[Tensor, "*places V"]) -> Float[Tensor, "*places"]:
    """-sum p log p of the distribution at each place, in nats. A logit of -inf adds 0 and no gradient, never NaN."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * torch.where(log_p > -torch.inf, log_p, 0.0)).sum(-1)


def combine_losses(policy: Scalar, value: Scalar, entropy: Scalar, *, value_coef: float, entropy_coef: float) -> Scalar:
    """policy + value_coef * value - entropy_coef * entropy (Schulman et al. 2017, eq. 9, as a loss)."""
    return policy + value_coef * value - entropy_coef * entropy
