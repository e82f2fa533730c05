"""The keys and values of what Hugging Face's models have read: what they call them, and how they want them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor


@functools.cache
def cache_name() -> str:
    """`cache` since Transformers 5.24, which warns at each `past_key_values` and will refuse it from 5.40 on."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    names = {field.name for field in fields(CausalLMOutputWithPast)}
    return "cache" if "cache" in names else "past_key_values"


def cache_of(keys_and_values: Sequence[tuple[Tensor, Tensor]], *, copies: int = 1):
    """A cache that has these, for so many rows; whatever grows in it is new."""
    cache = _kind()()
    for layer, both in enumerate(keys_and_values):
        cache.update(*(numbers.repeat_interleave(copies, 0) for numbers in both), layer)
    return cache


@functools.cache
def _kind() -> type:
    """Hugging Face's own, but that under autocast it holds numbers of autocast, which attention reads anyway.

    Rotation makes the keys float32, and theirs would then hold the values so as well: twice the memory, and a copy of
    all of it for every token.
    """
    from transformers import DynamicCache

    class Cache(DynamicCache):
        def update(self, keys: Tensor, values: Tensor, *rest, **others) -> tuple[Tensor, Tensor]:
            if torch.is_autocast_enabled(keys.device.type):
                keys, values = (numbers.to(torch.get_autocast_dtype(keys.device.type)) for numbers in (keys, values))
            return super().update(keys, values, *rest, **others)

    return Cache
