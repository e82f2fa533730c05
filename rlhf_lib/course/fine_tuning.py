"""A short SFT run and a short reward-model run on the tiny world, from the shipped weights: seconds, not minutes."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..algorithms import reward_model, sft
from ..algorithms.parts import Parts
from ..engine import models
from ..engine.run_folder import RunFolder
from ..maths.alignment import action_mask_from_lengths
from ..maths.masking import masked_mean
from ..maths.records import Texts
from ..pipeline import comparisons
from ..pipeline.run import Run
from ..pipeline.settings import TINY, EngineConfig
from ..pipeline.texts import reference_texts
from ..worlds.tiny_tldr.world import ASSETS, TinyTLDR
from .short_runs import hide_loading_bars


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How long both runs are; all other numbers are those of the tiny preset."""

    updates: int = 6  # optimiser steps of each
    rows: int = 32  # reference summaries a step of SFT
    posts: int = 8  # a step of the reward model: four summaries of each, all their pairs
    unseen: int = 24  # posts, to judge both by


def fine_tuning_run(
    parts: Parts = Parts(), config: FineTuning = FineTuning(), *, seed: int = 0
) -> Iterator[dict]:  # fmt: skip
    """SFT from the base model beside a reward model from the SFT model: both losses, and how unseen posts fare.

    The library judges unseen posts, whatever the parts are: a loss that is turned round would fall as well.
    """
    world = TinyTLDR(seed)
    texts, pairs = reference_texts(world, world.posts("evaluation", config.unseen)), unseen_preferences(config, seed)
    policy, imitating = _sft_steps(world, parts, config)
    scorer, preferring = _reward_model_steps(world, parts, config, seed)
    for imitated, preferred in zip(imitating, preferring, strict=True):
        yield dict(
            sft_loss=imitated["loss"],
            preference_loss=preferred["loss"],
            unseen_nats_per_token=nats_per_token(policy, texts),
            unseen_accuracy=accuracy(scorer, pairs, seed=seed),
        )


@functools.cache
def preferences(split: str, posts: int, *, seed: int = 0) -> list[dict]:
    """What readers chose among four summaries of each post, written by the shipped SFT model; rows as `run` keeps them.

    split  "preferences" to train on, "held_out_preferences" to judge by
    """
    hide_loading_bars()
    policy = models.freeze(models.load_policy(ASSETS / "sft"))
    with _tiny_run(seed) as run:
        return list(comparisons.label(run, policy, split, posts))


def unseen_preferences(config: FineTuning, seed: int) -> list[dict]:
    return preferences("held_out_preferences", config.unseen, seed=seed)


def accuracy(scorer: nn.Module, rows: list[dict], *, seed: int = 0) -> float:
    """The mean probability that a reader prefers the summary that the model scores higher."""
    with _tiny_run(seed) as run:
        return comparisons.accuracy(run, scorer, rows)["accuracy"]


@torch.no_grad()
def nats_per_token(policy: nn.Module, texts: Texts) -> float:
    """-log p of the responses' tokens, EOS included, averaged over all of them."""
    mask = action_mask_from_lengths(texts.prompt_lengths, texts.sequence_lengths, texts.tokens.shape[1])
    log_probs, _ = models.score_actions(policy, texts.tokens, mask, temperature=1.0)
    return -float(masked_mean(log_probs, mask))


def _sft_steps(world: TinyTLDR, parts: Parts, config: FineTuning) -> tuple[nn.Module, Iterator[dict]]:
    settings = replace(TINY.sft, steps=config.updates, batch_size=config.rows)
    state = sft.new_state(models.load_policy(world.base_folder), settings)
    starts = range(0, config.updates * config.rows, config.rows)
    batches = (reference_texts(world, world.posts("sft", config.rows, start=start)) for start in starts)
    return state.model, sft.train_sft(state, batches, settings, parts)


def _reward_model_steps(
    world: TinyTLDR, parts: Parts, config: FineTuning, seed: int
) -> tuple[nn.Module, Iterator[dict]]:
    settings = replace(TINY.reward_model, steps=config.updates, posts_per_batch=config.posts)
    rows = preferences("preferences", config.updates * config.posts, seed=seed)
    scorer = models.scorer_from_policy(models.load_policy(ASSETS / "sft"), seed=seed)
    state = reward_model.new_state(scorer, settings)
    batches = comparisons.batches(world, rows, settings, seed=seed)
    return scorer, reward_model.train_reward_model(state, batches, settings, parts)


@contextmanager
def _tiny_run(seed: int) -> Iterator[Run]:
    """What the pipeline's functions want to be called with; nothing is written. On the CPU, as all short runs are."""
    settings = replace(TINY, seed=seed, engine=EngineConfig(device="cpu"))
    with tempfile.TemporaryDirectory() as folder:
        out = RunFolder(folder)
        yield Run(settings, TinyTLDR(seed), out, out, Parts(), lambda _, steps, *__, **___: steps)
