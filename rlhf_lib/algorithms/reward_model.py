"""Reward modelling: from which of two summaries was preferred, learn to score one (Bradley and Terry 1952)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..engine import distributed, optimiser
from ..engine.batching import in_micro_batches, own_pairs
from ..maths.records import Texts
from ..maths.shapes import Lengths, PerRow
from . import bounds
from .parts import Parts


def train_reward_model(
    state: RewardModelState, batches: Iterable[Comparisons], config: RewardModelConfig, parts: Parts = Parts()
) -> Iterator[dict]:
    """One optimiser step for each batch of comparisons; yields the metrics of each."""
    for batch in batches:
        factor = parts.schedule(state.step, config.steps)
        optimiser.set_learning_rates(state.optimizer, config.learning_rate * factor, config.head_learning_rate * factor)
        loss, agreement, count = 0.0, 0.0, len(batch.chosen)
        for texts, *pairs in own_pairs(batch.texts, batch.chosen, batch.rejected, config.micro_batch_size):
            scores = parts.read_score(parts.state_values(state.model, texts.tokens), texts)
            chosen, rejected = (scores[places] for places in pairs)
            share = parts.preference_loss(chosen, rejected).sum() / count
            evidence = {**vars(texts), "chosen": pairs[0], "rejected": pairs[1], "scores": scores}
            optimiser.backward("the preference loss", share, state.optimizer, evidence)
            loss, agreement = loss + float(share.detach()), agreement + float((chosen > rejected).float().sum() / count)
        grad_norms = optimiser.step(state.optimizer, max_grad_norm=config.max_grad_norm)
        state.step += 1
        yield dict(
            step=state.step, loss=distributed.total(loss), agreement=distributed.total(agreement),
            grad_norm_body=grad_norms[0], grad_norm_head=grad_norms[1], learning_rate=config.learning_rate * factor,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """Every number of reward modelling. N+ is Huang et al. 2024."""

    steps: int = 1451  # optimiser steps; N+ makes one pass over 92,858 pairs
    posts_per_batch: int = 64  # all pairs of one post stay in one batch (Ouyang et al. 2022); N+ has one pair a post
    micro_batch_size: int = 128  # pairs in memory at once; changes results by rounding only
    learning_rate: float = 3e-6  # of the body, N+, with cosine decay to 0
    head_learning_rate: float = 3e-6  # of the linear head, which starts from noise; N+ has one rate for both
    adam_eps: float = 1e-5  # N+
    max_grad_norm: float | None = None  # N+ does not clip

    def __post_init__(self):
        bounds.at_least(1, self, "steps", "posts_per_batch", "micro_batch_size")
        bounds.above_zero(self, "learning_rate", "head_learning_rate", "adam_eps", "max_grad_norm")


@dataclass
class RewardModelState:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0


@dataclass(frozen=True)
class Comparisons:
    """Texts, each scored once, and the pairs among them: rows of `texts` that were chosen and rejected."""

    texts: Texts
    chosen: Lengths
    rejected: Lengths


def new_state(model: nn.Module, config: RewardModelConfig) -> RewardModelState:
    """A state before its first step."""
    groups = [model.base_model.parameters(), model.score.parameters()]
    optimizer = optimiser.make_optimizer(groups, learning_rate=config.learning_rate, eps=config.adam_eps)
    return RewardModelState(model, optimizer)


@torch.no_grad()
def score_texts(model: nn.Module, texts: Texts, *, micro_batch_size: int, parts: Parts = Parts()) -> PerRow:
    """[B] scores in reward units, less the model's `reward_offset`."""
    (scores,) = in_micro_batches(
        lambda part: (parts.read_score(parts.state_values(model, part.tokens), part),), texts, micro_batch_size
    )
    return scores


def centre(model: nn.Module, references: Texts, *, micro_batch_size: int, parts: Parts = Parts()) -> float:
    """Make reference summaries average 0: sets the model's `reward_offset`, which our `state_values` subtracts.

    source  Huang et al. 2024 (they set the head's bias; Hugging Face's Llama head has none)
    """
    model.config.reward_offset = 0.0
    scores = score_texts(model, references, micro_batch_size=micro_batch_size, parts=parts)
    model.config.reward_offset = float(scores.mean())
    return model.config.reward_offset
