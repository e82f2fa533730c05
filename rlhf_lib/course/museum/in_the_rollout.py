"""Bugs of the rollout: which texts are written, by whom, and what the models are asked about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...engine import models, sampling
from ...maths import kl, losses
from ..careless import Careless
from ..shifts import late, shift
from .bug import Bug, always

TOP_P, DROPPED = 0.9, 0.1


def _write_hotter(model, *texts, temperature, **tokens):
    return sampling.sample(model, *texts, temperature=1.0, **tokens)


def _write_top_p(model, *texts, temperature, **tokens):
    """The sampler's own log-probs are those of what it drew from: filtered and normalised again."""
    return sampling.sample(Careless(model, _only_top_p, temperature=temperature), *texts, temperature=1.0, **tokens)


def _only_top_p(_, logits: Tensor) -> Tensor:
    from transformers import TopPLogitsWarper

    return TopPLogitsWarper(TOP_P)(None, logits)


def _believe_the_sampler() -> Mapping[str, Callable]:
    """The KL takes the sampler's scores for the policy's. It is the two together that are wrong."""
    wrote = []

    def sample(*args, **how):
        wrote[:] = [_write_top_p(*args, **how)]
        return wrote[0]

    def kl_k1(log_p, log_q):
        return kl.kl_k1(wrote[0].sampler_log_probs, log_q)

    return dict(sample=sample, kl=kl_k1)


def _move_the_mask() -> Mapping[str, Callable]:
    def sample(*args, **how):
        samples = sampling.sample(*args, **how)
        return replace(samples, action_mask=late(samples.action_mask))

    return dict(sample=sample)


def _read_one_early(per_state, texts):
    return per_state.gather(1, texts.sequence_lengths[:, None] - 2).squeeze(1)


def _read_negated(per_state, texts):
    return -models.read_score(per_state, texts)


def _drop_while_training(model, tokens, action_mask, *, temperature, entropy=losses.entropy):
    _set_dropout(model, DROPPED if torch.is_grad_enabled() else 0.0)
    return models.score_actions(model, tokens, action_mask, temperature=temperature, entropy=entropy)


def _set_dropout(model: nn.Module, share: float) -> None:
    model.train(share > 0)
    for layer in model.base_model.layers:
        layer.self_attn.attention_dropout = share


def _the_policy_itself(policy: nn.Module) -> nn.Module:
    return policy


BUGS = (
    Bug(
        name="sampled hotter than scored",
        stage="rollout",
        rung="intention",
        says="the sampler draws at temperature 1, all else works at 0.7",
        symptom="the texts are worse than the policy, and PPO takes them for its own",
        seen_in="the write-up (REFERENCES.md#writeup) for temperature and top-p together; "
        "https://github.com/natolambert/rlhf-book/issues/489",
        found_by="sampler_forward_gap: the sampler's log-probs against a forward pass's",
        fix="one temperature for sampling, scoring, ratio and entropy",
        family="another distribution is sampled",
        plant=always(sample=_write_hotter),
    ),
    Bug(
        name="top-p sampling",
        stage="rollout",
        rung="understanding",
        says=f"the sampler keeps the likeliest {TOP_P:.0%} of the probability, the loss scores the whole softmax",
        symptom="what is drawn is likelier than the policy finds it; importance ratios are about another policy",
        seen_in="the write-up (REFERENCES.md#writeup); https://github.com/huggingface/trl/issues/2358",
        found_by="sampler_forward_gap",
        fix="no filters while PPO collects",
        family="another distribution is sampled",
        plant=always(sample=_write_top_p),
    ),
    Bug(
        name="KL from the sampler's scores",
        stage="rollout",
        rung="understanding",
        says="the KL is taken from the scores that `generate` returns, which top-p has filtered",
        symptom="the KL is not zero before the first update",
        seen_in="the write-up's first bug (REFERENCES.md#writeup); https://github.com/huggingface/trl/issues/235",
        found_by="the KL before the first update; sampler_forward_gap",
        fix="a forward pass of its own for every log-probability that is used",
        family="another distribution is sampled",
        plant=_believe_the_sampler,
    ),
    Bug(
        name="log-probs one late",
        stage="rollout",
        rung="implementation",
        says="each token is scored by the logits of the state that has already read it",
        symptom="the policy learns to predict a token from itself; what it writes does not get better",
        seen_in="the write-up (REFERENCES.md#writeup): logits and tokens lined up without the shift",
        found_by="sampler_forward_gap",
        fix="logits of state t are about token t+1: shift in one place",
        family="another distribution is sampled",
        plant=lambda: shift("log-probs one late").changes,
    ),
    Bug(
        name="action mask one late",
        stage="rollout",
        rung="implementation",
        says="the mask of the states, used for the actions: the first word is left out, the first padding counts",
        symptom="quiet: most actions still count",
        seen_in="the write-up (REFERENCES.md#writeup): its masks were shifted with its actions",
        found_by="sampler_forward_gap: nobody drew the padding",
        fix="make masks from lengths, in action indexing",
        family="another distribution is sampled",
        plant=_move_the_mask,
    ),
    Bug(
        name="dropout while training",
        stage="rollout",
        rung="intention",
        says=f"`model.train()` turns attention dropout of {DROPPED:.0%} on whenever gradients are wanted",
        symptom="the ratio is not 1 on the first minibatch; clipping before anything was learned",
        seen_in="N+, detail 7, turns it off for that reason (REFERENCES.md#huang2024)",
        found_by="ratio_error_before_first_update",
        fix="no dropout in PPO",
        family="the ratio is not 1 at the start",
        plant=always(score_actions=_drop_while_training),
    ),
    Bug(
        name="reference trains along",
        stage="rollout",
        rung="implementation",
        says="the reference is the policy itself, not a copy of it",
        symptom="the KL is 0 for ever, and nothing holds the policy back",
        seen_in="https://github.com/huggingface/trl/issues/288 mixes up reference and old policy",
        found_by="the KL *after* the first update",
        fix="a frozen deep copy",
        family="the reference moves",
        plant=always(prepare_reference=_the_policy_itself),
    ),
    Bug(
        name="score read one early",
        stage="rollout",
        rung="understanding",
        says="the reward model is read at the last word, before it has seen the EOS",
        symptom="the score means less; ending early or late is neither here nor there",
        seen_in="what Transformers does when PAD equals EOS; https://github.com/jingyaogong/minimind/issues/541",
        found_by="a component test: the score of a text must depend on its EOS",
        fix="gather at sequence_lengths - 1",
        family="no sign in the log",
        plant=always(read_score=_read_one_early),
    ),
    Bug(
        name="reward sign",
        stage="rollout",
        rung="implementation",
        says="the score is negated",
        symptom="gold falls from the first update on, while what PPO calls the score rises",
        seen_in="any loss that is minimised where a reward was to be maximised",
        found_by="a component test: a good text must score above a bad one",
        fix="look at ten texts with their scores",
        family="the score is upside down",
        plant=always(read_score=_read_negated),
    ),
)
