"""torch.compile, one layer at a time: the layers of all models share what was compiled, and shapes are left open.

While a cache is filled, layers run as they are: each would need a version of its own.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import nn

from .models import layers_of


def compile_layers(model: nn.Module) -> nn.Module:
    """The same model; a layer is compiled when it first runs. What is computed stays the same up to rounding."""
    for layer in layers_of(model):
        layer.forward = partial(_forward, layer)  # a closure would keep this layer in a deep copy
    return model


def _forward(layer: nn.Module, *inputs, **settings):
    from transformers import Cache

    fills_cache = any(isinstance(value, Cache) for value in settings.values())
    return (_as_it_is if fills_cache else _compiled())(layer, *inputs, **settings)


def _as_it_is(layer: nn.Module, *inputs, **settings):
    return type(layer).forward(layer, *inputs, **settings)


@cache
def _compiled():
    return torch.compile(_as_it_is, dynamic=True)
