"""What Hugging Face's models call the keys and values of what they have read: an argument of theirs and an output."""

from __future__ import annotations

import functools
from dataclasses import fields


@functools.cache
def cache_name() -> str:
    """`cache` since Transformers 5.24, which warns at each `past_key_values` and will refuse it from 5.40 on."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    names = {field.name for field in fields(CausalLMOutputWithPast)}
    return "cache" if "cache" in names else "past_key_values"
