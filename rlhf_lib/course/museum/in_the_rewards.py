"""Bugs between a text's score and its tokens' rewards."""

from __future__ import annotations

import torch

from ...maths import rewards
from ...maths.masking import keep
from ..shifts import shift
from .bug import Bug, always


def _in_the_last_column(scores, action_mask):
    placed = torch.zeros(action_mask.shape)
    placed[:, -1] = scores
    return placed


def _on_every_token(scores, action_mask):
    """Rows whose score is the fixed one of a missing EOS are paid it for every token."""
    placed = rewards.place_score(scores, action_mask)
    return torch.where((scores == -1.0)[:, None] & action_mask, scores[:, None], placed)


def _pay_the_kl(placed_scores, kl_per_token, action_mask, *, kl_coef):
    return keep(placed_scores + kl_coef * kl_per_token, action_mask)


def _penalise_the_whole_row(placed_scores, kl_per_token, action_mask, *, kl_coef):
    """As a mean over the padded row, paid where the score is."""
    of_the_row = kl_per_token.mean(1, keepdim=True).expand_as(kl_per_token)
    return keep(placed_scores - kl_coef * torch.where(placed_scores != 0, of_the_row, 0), action_mask)


BUGS = (
    Bug(
        name="rewards one late",
        stage="rewards",
        rung="implementation",
        says="every reward is one slot late; the score falls into the padding",
        symptom="scores drop at once, and the critic explains its returns better than ever: there is nothing in them",
        seen_in="the write-up's longest hunt (REFERENCES.md#writeup)",
        found_by="a component test: the rewards of a row must add up to its score",
        fix="pay at the last True of action_mask",
        family="the score does not arrive",
        plant=lambda: shift("rewards one late").changes,
    ),
    Bug(
        name="score lost in the padding",
        stage="rewards",
        rung="implementation",
        says="the score is put into the last column, which is padding in all rows but the longest",
        symptom="only the longest texts are paid",
        seen_in="https://github.com/wyf3/llm_related/issues/37",
        found_by="a component test: the rewards of a row must add up to its score",
        fix="pay at the last True of action_mask",
        family="the score does not arrive",
        plant=always(place_score=_in_the_last_column),
    ),
    Bug(
        name="penalty on every token",
        stage="rewards",
        rung="implementation",
        says="the -1 for a missing EOS is paid for every token of the row",
        symptom="texts get short, at the price of what they say",
        seen_in="the write-up's final code, by reading: it indexes [B, T], not [B] (REFERENCES.md#writeup)",
        found_by="a component test on a row without EOS",
        fix="replace the score of the row *before* it is placed",
        family="something is paid many times",
        plant=always(place_score=_on_every_token),
    ),
    Bug(
        name="KL paid instead of charged",
        stage="rewards",
        rung="implementation",
        says="the KL is added to the reward",
        symptom="the policy is paid for leaving the reference: KL runs away",
        seen_in="https://github.com/huggingface/trl/issues/204 shows the same curve",
        found_by="kl_per_sequence; a component test: more KL, less reward",
        fix="minus",
        family="the KL runs away",
        plant=always(penalise_kl=_pay_the_kl),
    ),
    Bug(
        name="KL averaged over the padded row",
        stage="rewards",
        rung="intention",
        says="the penalty is the KL's mean over all slots, prompt and padding included, and not its sum",
        symptom="the penalty hardly counts; the policy drifts farther",
        seen_in="https://github.com/natolambert/rlhf-book/pull/216 lists an unmasked KL",
        found_by="a component test with padding appended: nothing may change",
        fix="one penalty for each token that was chosen",
        family="the KL runs away",
        plant=always(penalise_kl=_penalise_the_whole_row),
    ),
)
