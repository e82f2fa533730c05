"""Policy and critic with networks of their own, but one gradient norm for both, which is clipped."""

from __future__ import annotations

import torch
from torch import nn

from ...algorithms import ppo
from ...algorithms.parts import Parts
from ...algorithms.ppo_config import PPOConfig
from ..short_runs import new_state

LIMIT = 1.0  # of the norm


def jointly_clipped(config: PPOConfig, parts: Parts = Parts(), **rest) -> ppo.PPOState:
    """A state whose optimiser, before each step, makes all gradients together no longer than LIMIT.

    A large value loss then shortens the policy's gradient too. The library would clip each network by itself, or not.
    """
    state = new_state(config, parts, **rest)
    state.optimizer.register_step_pre_hook(_clip_all)
    return state


def _clip_all(optimizer: torch.optim.Optimizer, *_) -> None:
    nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], LIMIT)
