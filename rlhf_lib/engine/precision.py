"""Fewer bits where they do no harm: a model's layers by autocast; weights, heads, log-probabilities and losses stay
float32.

Between layers states stay float32, too. The head is no layer because its rounding would go straight into
log-probabilities: in bfloat16 a logit of 10 is off by up to 0.03, a seventh of what clipping lets a ratio move. It runs
only where something is chosen, so that it costs little.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from .models import layers_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# By how much the limits of step zero grow. Seen in bfloat16 between sampler and forward pass, in nats: the worst token
# off by 0.01 in the tiny world and by 0.08 of 64 tokens of SmolLM2, of thousands by more; the mean by 0.0001 and 0.001.
# A sampler with top-p 0.9: 0.1 and 0.03.
SLACK = {"float32": 1, "float16": 200, "bfloat16": 2000}
SLACK_OF_WORST = {"float32": 1, "float16": 1000, "bfloat16": 10_000}


def slack(name: str, numbers: str) -> int:
    """What the limit of step zero with this name is multiplied by where layers run in these numbers."""
    return (SLACK_OF_WORST if name == "sampler_forward_gap" else SLACK)[numbers]


def of(model: nn.Module) -> str:
    """The numbers in which its layers run."""
    return getattr(model.base_model, "precision", "float32")


def in_precision(model: nn.Module, precision: str) -> nn.Module:
    """The same model, the matrix products of its layers in these numbers, whoever runs them."""
    model.base_model.precision = precision
    if precision != "float32":
        for layer in layers_of(model):
            layer.forward = partial(_autocast, DTYPES[precision], layer.forward)  # a closure would not be copied
    return model


def _autocast(dtype: torch.dtype, forward: Callable, states: torch.Tensor, *inputs, **settings):
    with torch.autocast(states.device.type, dtype=dtype):
        return forward(states, *inputs, **settings)
