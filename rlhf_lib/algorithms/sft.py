"""Supervised fine-tuning: imitate the reference summaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..engine import distributed, models, optimiser
from ..engine.batching import micro_batch, own_buckets
from ..maths.alignment import action_mask_from_lengths
from ..maths.records import Texts
from ..maths.shapes import ActionMask, Scalar
from . import bounds
from .parts import Parts


def train_sft(state: SFTState, batches: Iterable[Texts], config: SFTConfig, parts: Parts = Parts()) -> Iterator[dict]:
    """One optimiser step for each batch of prompts with their reference summaries; yields the metrics of each."""
    for batch in batches:
        factor = parts.schedule(state.step, config.steps)
        optimiser.set_learning_rates(state.optimizer, config.learning_rate * factor)
        own_losses = (_accumulate(state, *partial) for partial in _losses(state.model, batch, config, parts))
        loss = distributed.total(sum(own_losses))
        (grad_norm,) = optimiser.step(state.optimizer, max_grad_norm=config.max_grad_norm)
        state.step += 1
        yield dict(step=state.step, loss=loss, grad_norm=grad_norm, learning_rate=config.learning_rate * factor)


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Every number of SFT. N+ is Huang et al. 2024."""

    steps: int = 912  # optimiser steps; N+ makes one pass over 116,722 rows
    batch_size: int = 128  # rows a step, N+
    micro_batch_size: int = 32  # rows in memory at once; changes no result
    learning_rate: float = 3e-6  # N+, with cosine decay to 0
    adam_eps: float = 1e-5  # N+
    max_grad_norm: float | None = None  # N+ does not clip
    imitate_query: bool = True  # N+ puts the loss on the query as well; only padding is left out

    def __post_init__(self):
        bounds.at_least(1, self, "steps", "batch_size", "micro_batch_size")
        bounds.above_zero(self, "learning_rate", "adam_eps", "max_grad_norm")


@dataclass
class SFTState:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0


def new_state(model: nn.Module, config: SFTConfig) -> SFTState:
    """A state before its first step."""
    optimizer = optimiser.make_optimizer([model.parameters()], learning_rate=config.learning_rate, eps=config.adam_eps)
    return SFTState(model, optimizer)


def target_mask(texts: Texts, *, imitate_query: bool) -> ActionMask:
    """[B, T-1], True at the tokens to imitate: the response with its EOS, and with `imitate_query` the query too."""
    from_token = torch.ones_like(texts.prompt_lengths) if imitate_query else texts.prompt_lengths
    return action_mask_from_lengths(from_token, texts.sequence_lengths, texts.tokens.shape[1])


def _losses(
    model: nn.Module, batch: Texts, config: SFTConfig, parts: Parts
) -> Iterator[tuple[Scalar, dict[str, Tensor]]]:
    """Mean loss of each micro-batch, scaled by its share of the batch's targets, and what it was made of."""
    total = target_mask(batch, imitate_query=config.imitate_query).sum()
    for index in own_buckets(batch, config.micro_batch_size):
        texts = micro_batch(batch, batch, index)
        mask = target_mask(texts, imitate_query=config.imitate_query)
        log_probs, _ = parts.score_actions(model, texts.tokens, mask, temperature=1.0, entropy=models.no_entropy)
        loss = parts.masked_mean(parts.sft_loss(log_probs, mask), mask)
        yield float(mask.sum() / total) * loss, {**vars(texts), "target_mask": mask, "log_probs": log_probs}


def _accumulate(state: SFTState, loss: Scalar, evidence: dict[str, Tensor]) -> float:
    optimiser.backward("the SFT loss", loss, state.optimizer, evidence)
    return float(loss.detach())
