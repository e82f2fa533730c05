"""Lesson 09: what a narrow float format does to numbers, to PPO's loss and to its gradient.

For learning. A run trains in the formats that `engine` sets up, and PyTorch's own `GradScaler` moves its loss scale;
the functions here do the same in a few lines that can be looked into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..maths.losses import log_ratio
from ..maths.masking import keep
from ..maths.shapes import ActionMask, PerAction

Flags, Scales = Bool[Tensor, "N"], Float[Tensor, "N"]  # one for each step
LOG_RATIO_LIMIT = 20.0  # nats, verl's: a ratio of 485 million


def round_to_bfloat16(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The nearest number that bfloat16 has, as float32; of two equally near ones the one whose last bit is 0.

    x        any shape, float32. NaN stays NaN; beyond bfloat16's largest number the nearest one is infinity
    returns  the same shape, float32
    source   IEEE 754, round to nearest, ties to even. bfloat16 is float32 without the last 16 bits of the fraction
    """
    bits = x.contiguous().view(torch.int32)
    last_kept = (bits >> 16) & 1
    rounded = (bits + 0x7FFF + last_kept) & ~0xFFFF
    return torch.where(x.isnan(), x, rounded.view(torch.float32))


def safe_ratio(log_probs: PerAction, old_log_probs: PerAction, action_mask: ActionMask, *, limit: float) -> PerAction:
    """pi/pi_old in float32 at least, its logarithm kept within `limit` nats before the exponential; 1 off the mask.

    log_probs, old_log_probs  [B, T-1] nats, in any float format
    limit                     nats; beyond it the ratio stands still and its gradient is 0, where it would be 0 * inf
    returns                   [B, T-1] in float32, or in the format of the arguments if that is wider
    source                    verl, with a limit of 20. Differs: N+ and TRL do not limit it
    """
    wide = torch.promote_types(log_probs.dtype, torch.float32)
    return log_ratio(log_probs.to(wide), old_log_probs.to(wide), action_mask).clamp(-limit, limit).exp()


def loss_scales(gradients_finite: Flags, *, first_scale: float, growth_interval: int) -> Scales:
    """The loss scale that each step is taken with, where scales are found by trying.

    gradients_finite  [N] whether step n's gradients were; if not, the step is skipped
    first_scale       of step 0
    growth_interval   so many steps in a row without a skip double the scale; a skipped step halves it
    returns           [N], float64
    source            Micikevicius et al. 2018; PyTorch's GradScaler, with its factors of 2 and 1/2
    """
    scale, in_a_row, found = first_scale, 0, []
    for finite in gradients_finite.tolist():
        found.append(scale)
        in_a_row = in_a_row + 1 if finite else 0
        if not finite:
            scale /= 2
        elif in_a_row == growth_interval:
            scale, in_a_row = scale * 2, 0
    return torch.tensor(found, dtype=torch.float64)


def policy_loss_over(
    log_probs: PerAction, old_log_probs: PerAction, advantages: PerAction, action_mask: ActionMask,
    *, clip: float, ratio: Callable = safe_ratio,
) -> PerAction:  # fmt: skip
    """`losses.policy_loss` over another ratio: the same numbers as long as no log ratio reaches LOG_RATIO_LIMIT."""
    r = ratio(log_probs, old_log_probs, action_mask, limit=LOG_RATIO_LIMIT)
    unclipped, clipped = -advantages * r, -advantages * r.clamp(1 - clip, 1 + clip)
    return keep(torch.maximum(unclipped, clipped), action_mask)


# ------------------------------------------------------------------------------------------- where does it overflow?


class Seen(NamedTuple):
    """A tensor on the way to the loss: the size of its largest number, and of its largest gradient."""

    name: str
    format: str
    value: float
    gradient: float


def trace_loss(
    log_probs: PerAction, old_log_probs: PerAction, advantages: PerAction, action_mask: ActionMask,
    *, clip: float, scale: float, dtype: torch.dtype,
) -> list[Seen]:  # fmt: skip
    """PPO's policy loss with the ratio in `dtype`, operation by operation, forward and backward.

    scale    the mean loss is multiplied with it before backward; gradients are shown as they come, still scaled
    returns  every tensor from the log-probabilities to the scaled loss, in the order of the forward pass
    """
    tensors: dict[str, Tensor] = {}

    def keep_as(name: str, x: Tensor) -> Tensor:
        x.retain_grad()
        return tensors.setdefault(name, x)

    new = keep_as("log_probs", log_probs.detach()[action_mask].requires_grad_())
    narrow = keep_as("log ratio", (new - old_log_probs[action_mask]).to(dtype))
    ratio = keep_as("ratio = exp(log ratio)", narrow.exp())
    minus_a = -advantages[action_mask].to(dtype)
    unclipped = keep_as("-A ratio", minus_a * ratio)
    clipped = keep_as("-A clip(ratio)", minus_a * ratio.clamp(1 - clip, 1 + clip))
    loss = keep_as("the mean of the larger", torch.maximum(unclipped, clipped).float().mean())
    keep_as("loss x scale", loss * scale).backward()
    return [
        Seen(name, str(x.dtype).removeprefix("torch."), _largest(x), _largest(x.grad)) for name, x in tensors.items()
    ]


def first_not_finite(trace: list[Seen]) -> str:
    """Where it breaks, in the order of computing: forward from the log-probabilities, then backward from the loss."""
    in_order = [(seen.value, f"forward, {seen.name}") for seen in trace]
    in_order += [(seen.gradient, f"backward, the gradient of {seen.name}") for seen in reversed(trace)]
    return next((where for size, where in in_order if not size < float("inf")), "nowhere")


def _largest(x: Tensor) -> float:
    """The largest absolute value; NaN if there is one."""
    return float(x.detach().float().abs().max())
