"""Short PPO runs on the tiny world, from the shipped SFT and reward model: seconds, not minutes.

For lessons and exercises, which swap one part and look at what changes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from ..algorithms import ppo
from ..algorithms.parts import Parts
from ..algorithms.ppo_config import PPOConfig
from ..engine import models
from ..engine.attention import with_open_attention
from ..pipeline.texts import PromptStream
from ..worlds.tiny_tldr.world import ASSETS, TinyTLDR

SHORT = PPOConfig(updates=5, batch_size=32, epochs=2, learning_rate=5e-4)


def new_state(
    config: PPOConfig = SHORT, parts: Parts = Parts(), *, seed: int = 0, open_attention: bool = False, **rest
) -> ppo.PPOState:
    """The four models of PPO before the first update, each with weights of its own.

    With `open_attention` their attention is computed by `masked_softmax`, which no fused kernel ever calls.
    """
    hide_loading_bars()
    policy, scorer = models.load_policy(ASSETS / "sft"), models.load_scorer(ASSETS / "reward_model")
    if open_attention:
        policy, scorer = with_open_attention(policy), with_open_attention(scorer)
    tokenizer = TinyTLDR(seed).tokenizer
    return ppo.new_state(
        policy, copy.deepcopy(scorer), scorer, config, parts,
        seed=seed, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **rest,
    )  # fmt: skip


def short_run(
    parts: Parts = Parts(), config: PPOConfig = SHORT, *, seed: int = 0, open_attention: bool = False
) -> Iterator[dict]:
    """The metrics of each update; the same seed gives the same posts, the same randomness and so the same run."""
    prompts = PromptStream(TinyTLDR(seed), "ppo", batch_size=config.batch_size, updates=config.updates)
    state = new_state(config, parts, seed=seed, open_attention=open_attention, judge=prompts.judge)
    return ppo.train_ppo(state, prompts.batches(), config, parts)


def hide_loading_bars() -> None:
    """Transformers shows a bar for every model that it loads; three of them before each run would only confuse."""
    from transformers.utils import logging

    logging.disable_progress_bar()
