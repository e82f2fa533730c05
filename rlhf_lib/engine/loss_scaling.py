"""Losses times a large number, so that small gradients do not vanish in float16; gradients are divided by it again.

The number starts at 65536. A step whose gradients overflow is left out and halves it, 2000 steps in a row without any
double it (Micikevicius et al. 2018). An optimiser whose losses are scaled carries the scaler; the others know nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scale_losses(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """From now on scale the losses that this optimiser's gradients come from."""
    optimizer.loss_scaler = torch.amp.GradScaler(device.type)
    optimizer.loss_scaler.scale(torch.zeros((), device=device))  # or a process without rows has no scale yet
    optimizer.steps_left_out = 0


def is_scaled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is one of those."""
    return hasattr(optimizer, "loss_scaler")


def scaled(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """The loss to send back."""
    return optimizer.loss_scaler.scale(loss) if is_scaled(optimizer) else loss


def unscale(optimizer: torch.optim.Optimizer) -> None:
    """Divide the gradients, once all are added up and before anybody looks at them."""
    if is_scaled(optimizer):
        optimizer.loss_scaler.unscale_(optimizer)


def step_if_finite(optimizer: torch.optim.Optimizer) -> bool:
    """Step, or leave the step out if a gradient overflowed; False if even the smallest scale, 1, was too large."""
    scaler = optimizer.loss_scaler
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    optimizer.steps_left_out += scaler.get_scale() < before
    return scaler.get_scale() >= 1


def report(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """For the log: the scale, and how many steps were left out since the last report. Nothing where none is scaled."""
    if not is_scaled(optimizer):
        return {}
    left_out, optimizer.steps_left_out = optimizer.steps_left_out, 0
    return dict(loss_scale=optimizer.loss_scaler.get_scale(), steps_left_out=left_out)


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What a checkpoint has to hold: numbers that JSON keeps bit for bit."""
    return optimizer.loss_scaler.state_dict() if is_scaled(optimizer) else {}


def restore(optimizer: torch.optim.Optimizer, state: dict[str, float]) -> None:
    """Go on with the scale of a checkpoint."""
    if is_scaled(optimizer):
        optimizer.loss_scaler.load_state_dict(state)
