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

# By how much the limits of step zero grow. Seen of the sampler's gap in the tiny world: 0.01 nats in bfloat16, 0.001 in
# float16, 0.00001 in float32. A sampler at another temperature is off by more than all of them.
SLACK = {"float32": 1, "float16": 200, "bfloat16": 2000}


def slack(model: nn.Module) -> int:
    """What a limit for float32 is to be multiplied by where this model runs."""
    return SLACK[getattr(model.base_model, "precision", "float32")]


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
