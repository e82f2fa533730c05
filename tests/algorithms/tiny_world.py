"""Four small models in the places that PPO has for them, and batches for them to work on."""

from __future__ import annotations

import torch

from rlhf_lib.algorithms import ppo
from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.algorithms.ppo import PPOConfig, PPOState
from rlhf_lib.algorithms.reward_model import Comparisons
from rlhf_lib.engine.models import scorer_from_policy
from rlhf_lib.maths.records import Prompts
from tests.tiny import PAD, VOCAB, disturb, ragged_prompts, ragged_texts, tiny_llama

CONFIG = PPOConfig(
    updates=4, batch_size=8, minibatches=2, epochs=2, micro_batch_size=3, response_length=5, learning_rate=1e-3,
    kl_coef=0.3, entropy_coef=0.01, gamma=0.9, lam=0.8,
)  # fmt: skip
PARTS = Parts()
OFTEN = 2  # a token that these policies write often enough to end some rows, and not all


def prompt_batches(updates: int = CONFIG.updates, rows: int = CONFIG.batch_size) -> list[Prompts]:
    return [ragged_prompts(rows, seed=seed) for seed in range(updates)]


def new_state(
    config: PPOConfig = CONFIG, parts: Parts = PARTS, *, seed: int = 0, vocab: int = VOCAB, **rest
) -> PPOState:
    """Before the first update: policy and reference are equal, critic and reward model are not."""
    policy = rest.pop("policy", None) or tiny_llama(vocab=vocab)
    critic, reward_model = (scorer_from_policy(tiny_llama(vocab=vocab), seed=seed) for seed in (1, 2))
    reward_model.config.reward_offset = 0.4
    rest = dict(seed=seed, eos_token_id=OFTEN, pad_token_id=PAD) | rest
    return ppo.new_state(policy, disturb(critic), disturb(reward_model), config, parts, **rest)


def moved_state(config: PPOConfig = CONFIG) -> PPOState:
    """After some training: the policy has left its reference."""
    state = new_state(config)
    disturb(state.policy, by=0.1, seed=4)
    return state


def rollout_and_targets(state: PPOState, config: PPOConfig = CONFIG, parts: Parts = PARTS):
    rollout = ppo.collect(state, prompt_batches()[0], config, parts)
    return rollout, ppo.estimate_targets(rollout, ppo.token_rewards(rollout, config, parts), config, parts)


def whole_minibatch(state: PPOState, config: PPOConfig = CONFIG) -> ppo.Minibatch:
    """A rollout whose policy has moved on since, so that ratios lie on both sides of the clip."""
    minibatch = ppo.Minibatch(*rollout_and_targets(state, config))
    disturb(state.policy, by=0.02, seed=5)
    disturb(state.critic, by=0.02, seed=5)
    return minibatch


def comparisons(rows: int = 6, seed: int = 0) -> Comparisons:
    """Pairs that share texts."""
    chosen = torch.arange(rows - 1)
    return Comparisons(ragged_texts(rows, seed), chosen, (chosen * 2 + 1) % rows)
