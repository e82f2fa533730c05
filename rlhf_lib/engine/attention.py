"""Attention whose weights come from our own `masked_softmax`: slower than the fused kernels, and open to look into."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..maths.masking import masked_softmax

OPEN = "masked_softmax"  # the name under which Transformers knows it


def with_open_attention(model: nn.Module) -> nn.Module:
    """The same model, its attention weights made by `masked_softmax`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(OPEN, attend)
    AttentionMaskInterface.register(OPEN, whole_mask)
    model.set_attn_implementation(OPEN)
    return model


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, *, scaling: float, **_
) -> tuple[Tensor, Tensor]:
    """softmax(query key^T scaling) value, over the keys that the mask lets through.

    query           [B, H, queries, D/H]; key and value [B, H/groups, keys, D/H]
    attention_mask  [B, 1, queries, keys] True where the query may look: never ahead, never at padding
    returns         [B, queries, H, D/H], and the weights [B, H, queries, keys]
    """
    key, value = (_for_every_head(states, query.shape[1]) for states in (key, value))
    logits = query @ key.transpose(-1, -2) * scaling
    weights = masked_softmax(logits, attention_mask.expand_as(logits))
    return (weights @ value).transpose(1, 2).contiguous(), weights


def whole_mask(*args, **rest) -> Tensor:
    """The boolean mask as a tensor, also where a fused kernel would do without one."""
    from transformers.masking_utils import sdpa_mask

    skips = {name: False for name in rest if name.startswith("allow_is_") and name.endswith("_skip")}
    return sdpa_mask(*args, **{**rest, **skips, "allow_is_causal_skip": False})


def _for_every_head(states: Tensor, heads: int) -> Tensor:
    return torch.repeat_interleave(states, heads // states.shape[1], dim=1)
