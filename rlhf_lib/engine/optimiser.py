"""One optimiser step from the losses of several micro-batches, and the learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from . import distributed, loss_scaling, zero
from .sharding import is_sharded, own_part, put_together

OVERFLOW = "gradients overflow in float16 however small the loss is scaled: take bfloat16 or float32"


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; the weights are those of before this step.

    evidence   the tensors of the micro-batch in which it showed, by name, with the terms of its loss
    gradients  each weight that had a gradient, with this gradient
    """

    def __init__(self, message: str, evidence: Mapping[str, Tensor], gradients: Mapping[nn.Parameter, Tensor]):
        super().__init__(message)
        self.evidence, self.gradients = evidence, gradients


def make_optimizer(
    groups: Iterable[Iterable[nn.Parameter]], *, learning_rate: float, eps: float, fused: bool = False
) -> torch.optim.Optimizer:
    """AdamW without weight decay over the trainable weights of each group; their order is that of `step`'s norms.

    fused  one pass over the weights instead of a dozen: a third of the time, other last bits
    """
    trainable = [{"params": [weight for weight in group if weight.requires_grad]} for group in groups]
    return torch.optim.AdamW(trainable, lr=learning_rate, eps=eps, weight_decay=0.0, fused=fused or None)


def step(optimizer: torch.optim.Optimizer, *, max_grad_norm: float | None) -> list[float]:
    """Clip each group's gradient norm if asked, step, clear; returns the norms before clipping, one a group.

    Where losses are scaled, a step whose gradients overflow is left out: its norms are not finite.
    raises  NonFiniteError before anything is changed
    """
    if zero.is_in_parts(optimizer):
        return _step_in_parts(optimizer, max_grad_norm)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    distributed.add_up_gradients(weight for weight in weights if not is_sharded(weight))  # of the others it is done
    loss_scaling.unscale(optimizer)
    norms = []
    for group in optimizer.param_groups:
        norm = nn.utils.get_total_norm([weight.grad for weight in group["params"] if weight.grad is not None])
        if max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(group["params"], max_grad_norm, norm)
        norms.append(float(put_together(norm)))
    if loss_scaling.is_scaled(optimizer):
        if not loss_scaling.step_if_finite(optimizer):
            raise NonFiniteError(OVERFLOW, {}, _take_gradients(optimizer))
    elif not all(map(math.isfinite, norms)):
        raise NonFiniteError(f"gradient norms {norms} are not finite", {}, _take_gradients(optimizer))
    else:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norms


def _step_in_parts(optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> list[float]:
    try:
        return zero.step(optimizer, max_grad_norm=max_grad_norm)
    except FloatingPointError as error:
        raise NonFiniteError(str(error), {}, {}) from None


def set_learning_rates(optimizer: torch.optim.Optimizer, *learning_rates: float) -> None:
    """One for all groups, or one for each."""
    groups = optimizer.param_groups
    for group, learning_rate in zip(groups, learning_rates * (len(groups) // len(learning_rates)), strict=True):
        group["lr"] = learning_rate


def linear_decay(step: int, steps: int) -> float:
    """From 1 at step 0 towards 0: the factor that N+ uses for PPO, once for each update (not for each epoch)."""
    return 1 - step / steps


def cosine_decay(step: int, steps: int) -> float:
    """From 1 at step 0 to 0 at `steps` along half a cosine: what N+ uses for SFT and the reward model."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def backward(name: str, loss: Tensor, optimizer: torch.optim.Optimizer, evidence: Mapping[str, Tensor]) -> None:
    """Add the gradients of a micro-batch's loss to those that are there, as long as all of it is finite.

    evidence  what the loss was made of, by name: what one wants to look at when it is not finite
    raises    NonFiniteError with the evidence and the gradients, which are then cleared; no weight has changed
    """
    found = {**evidence, "loss": loss.detach()}
    if not torch.isfinite(loss).all():
        raise NonFiniteError(f"{name} is not finite: {loss.tolist()}", found, _take_gradients(optimizer))
    if zero.is_in_parts(optimizer):
        zero.backward(loss)
        return  # `step` looks at the gradients: no weight has one
    loss_scaling.scaled(loss, optimizer).backward()
    if loss_scaling.is_scaled(optimizer):
        return  # `step` looks at the gradients: they may overflow
    gradients = [w.grad for group in optimizer.param_groups for w in group["params"] if w.grad is not None]
    if not torch.isfinite(torch.stack([own_part(gradient).norm() for gradient in gradients])).all():
        raise NonFiniteError(f"the gradient of {name} is not finite", found, _take_gradients(optimizer))


def _take_gradients(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, Tensor]:
    """The gradients by weight; the weights are left without."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
    gradients = {weight: weight.grad for weight in weights}
    optimizer.zero_grad(set_to_none=True)
    return gradients
