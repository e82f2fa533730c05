"""Policy and critic with one trunk: the setting in which the value coefficient matters."""

from __future__ import annotations

from ...algorithms import ppo
from ...algorithms.parts import Parts
from ...algorithms.ppo_config import PPOConfig
from ...engine import models, optimiser
from ..short_runs import new_state


def shared_trunk(config: PPOConfig, parts: Parts = Parts(), **rest) -> ppo.PPOState:
    """A state whose critic reads the policy's own layers; only its head is its own, and it begins at nothing."""
    state = new_state(config, parts, **rest)
    critic = models.scorer_from_policy(state.policy, seed=0)
    critic.model = state.policy.model
    state.critic = critic
    state.optimizer = optimiser.make_optimizer(
        [state.policy.parameters(), critic.score.parameters()], learning_rate=config.learning_rate, eps=config.adam_eps
    )
    return state
