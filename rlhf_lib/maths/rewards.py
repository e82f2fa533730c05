"""From one score for a whole text to one reward for each token."""

from __future__ import annotations

import torch

from .alignment import check_same_actions, is_last
from .masking import keep
from .shapes import ActionMask, PerAction, PerRow, RowMask


def replace_score_without_eos(scores: PerRow, has_eos: RowMask, *, score_without_eos: float) -> PerRow:
    """The score of a text that never ended is replaced, so that rambling past the cap cannot pay.

    scores   [B] reward units, one for each whole text; has_eos [B]
    source   Huang et al. 2024, the "EOS trick" with -1. Differs from TRL, which subtracts a penalty from the score
    """
    return torch.where(has_eos, scores, score_without_eos)


def place_score(scores: PerRow, action_mask: ActionMask) -> PerAction:
    """Pay each row's score for its last choice (the EOS, or the token at the cap); 0 elsewhere.

    scores       [B] reward units
    action_mask  [B, T-1] True where the policy chose; a row without a choice is paid nothing
    raises       ValueError unless there is one score for each row
    differs      N+ and TRL pay one slot later, on the first padding place, with masks moved to match
    """
    if scores.shape != action_mask.shape[:1]:
        raise ValueError(f"scores of shape {tuple(scores.shape)} do not fit a mask of shape {tuple(action_mask.shape)}")
    return keep(scores[:, None].expand(action_mask.shape), is_last(action_mask))


def penalise_kl(
    placed_scores: PerAction, kl_per_token: PerAction, action_mask: ActionMask, *, kl_coef: float
) -> PerAction:
    """r_t = score paid at t - kl_coef * KL_t, and 0 off the mask.

    placed_scores  [B, T-1] reward units; kl_per_token [B, T-1] nats
    source         Ziegler et al. 2019, eq. 2, paid token by token
    """
    check_same_actions(placed_scores, kl_per_token, action_mask)
    return keep(placed_scores - kl_coef * kl_per_token, action_mask)
