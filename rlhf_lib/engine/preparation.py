"""A loaded model made ready for a run: on its device, in its precision, whole or on the trunk that all models share."""

from __future__ import annotations

import torch
from torch import nn

from . import zero
from .allocator import give_back_what_is_freed
from .compiled import compile_layers
from .frozen_trunk import FrozenTrunk
from .models import layers_of, run_layers_again
from .precision import in_precision
from .sharding import shard


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


def share_out(*models: nn.Module, how: str, optimizer: torch.optim.Optimizer | None = None) -> None:
    """From now on each process keeps its part of these models and, if they are trained, of what their optimiser knows.

    how        fsdp2, zero2 or zero3
    optimizer  goes on with the parts in place of the whole weights; with fsdp2 this is before its first step
    """
    if how == "fsdp2":
        _share_out_by_fsdp2(*models, optimizer=optimizer)
    else:
        zero.share_out(*models, stage=int(how[-1]), optimizer=optimizer)
    give_back_what_is_freed()


def _share_out_by_fsdp2(*models: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    named = {weight: (model, name) for model in models for name, weight in model.named_parameters()}
    for model in models:
        shard(model, layers_of(model))
    for group in optimizer.param_groups if optimizer else ():
        group["params"] = [model.get_parameter(name) for model, name in map(named.get, group["params"])]
