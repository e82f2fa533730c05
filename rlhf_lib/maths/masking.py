"""Aggregation over the entries that count. True in a mask means "counts"; values off the mask are never read.

Entries off the mask are replaced, not multiplied by zero: `nan * 0` is `nan`, and one bad number in padding would
spread to every result and every gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

WHITEN_EPS = 1e-8  # inside the root


def mask_from_lengths(lengths: Int[Tensor, "B"], width: int) -> Bool[Tensor, "B width"]:
    """True at the first `lengths[b]` places of row b. Made from lengths, never from token ids: PAD may equal EOS."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def keep(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], otherwise: float = 0.0) -> Float[Tensor, "*shape"]:
    """`x` where the mask is True, `otherwise` elsewhere; no gradient flows from elsewhere."""
    _check_same_shape(x, mask)
    return torch.where(mask, x, otherwise)


def masked_sum(x: Float[Tensor, "..."], mask: Bool[Tensor, "..."], dim: int | None = None) -> Float[Tensor, "..."]:
    """Sum of the entries that count, over everything or along `dim`; 0 where nothing counts."""
    return keep(x, mask).sum() if dim is None else keep(x, mask).sum(dim)


def masked_mean(x: Float[Tensor, "..."], mask: Bool[Tensor, "..."], dim: int | None = None) -> Float[Tensor, "..."]:
    """Mean of the entries that count, over everything or along `dim`; NaN where nothing counts, so that it is seen."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim) / count


def masked_var(x: Float[Tensor, "..."], mask: Bool[Tensor, "..."], dim: int | None = None) -> Float[Tensor, "..."]:
    """Variance of the entries that count, divided by their count (not by count - 1): one entry gives 0."""
    x = keep(x, mask)  # before the square: its gradient would be nan * 0 where padding is nan
    mean = masked_mean(x, mask, dim)
    return masked_mean((x - (mean if dim is None else mean.unsqueeze(dim))) ** 2, mask, dim)


def masked_softmax(logits: Float[Tensor, "..."], mask: Bool[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Softmax over the entries that count; 0 elsewhere, and 0 throughout where nothing counts."""
    return keep(torch.softmax(keep(logits, mask, otherwise=torch.finfo(logits.dtype).min), dim), mask)


def whiten(x: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Shift and scale the entries that count to mean 0 and variance 1; 0 elsewhere.

    x, mask  any equal shapes; give the whole rollout, not a minibatch, and whiten once
    returns  same shape, no unit; a single entry gives 0
    source   Huang et al. 2024 whiten advantages after the returns are made. Differs from TRL's `masked_whiten`:
             the variance divides by the count, and the mean is never added back
    """
    x = keep(x, mask)
    spread = torch.rsqrt(masked_var(x, mask) + WHITEN_EPS)
    return keep((x - masked_mean(x, mask)) * spread, mask)


def _check_same_shape(x: Tensor, mask: Tensor) -> None:
    if x.shape != mask.shape:
        raise ValueError(f"x has shape {tuple(x.shape)} but its mask has shape {tuple(mask.shape)}; they must be equal")
