"""A loaded model made ready for a run: on its device, in its precision, whole or on the trunk that all models share."""

from __future__ import annotations

import torch
from torch import nn

from .compiled import compile_layers
from .frozen_trunk import FrozenTrunk
from .models import run_layers_again
from .precision import in_precision


def prepare(
    model: nn.Module, *, device: torch.device, precision: str, compile: bool = False,
    gradient_checkpointing: bool = False, trunk: FrozenTrunk | None = None,
) -> nn.Module:  # fmt: skip
    """The same model. The order matters: what wraps a layer later runs further out, and the trunk looks at them all."""
    model = model.to(device)
    if compile:
        model = compile_layers(model)
    model = in_precision(model, precision)
    if gradient_checkpointing:
        model = run_layers_again(model)
    return trunk.adopt(model) if trunk else model
