"""Models in parts: each process holds its part of every weight, gradient and Adam moment (FSDP2, by `fully_shard`).

A layer is put together when it runs, forward and backward, and let go of again; so are embeddings, last norm and head
for the whole of a pass. Putting together takes all processes: each makes the same passes through the same models, one
after the other. How many tokens it has in them is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps

import torch
from torch import Tensor, nn

from . import distributed, zero


def shard(model: nn.Module, layers: Sequence[nn.Module]) -> nn.Module:
    """The same model, of which this process keeps its part: its weights are new `Parameter`s, under the old names.

    layers  those of its modules that are put together one at a time
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(model.device.type, (distributed.size(),))
    for module in [*layers, model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for part in [module for module in model.modules() if isinstance(module, FSDPModule)]:
        part.set_gradient_divide_factor(1.0)  # added up, as losses are divided by the global count already
        part.set_force_sum_reduction_for_comms(True)  # gloo adds and does nothing else
    model.pass_through = lambda function, *inputs, **settings: function(model, *inputs, **settings)
    model.with_all_weights = partial(_unsharded, model)
    register_fsdp_forward_method(model, "pass_through")
    return model


def passes_through(function: Callable) -> Callable:
    """A `function(model, ...)` that runs body and head: of a sharded model, all of it is one forward pass."""

    @wraps(function)
    def passing(model: nn.Module, *inputs, **settings):
        if hasattr(model, "pass_through"):
            return model.pass_through(function, *inputs, **settings)
        return function(model, *inputs, **settings)

    return passing


def whole(model: nn.Module) -> AbstractContextManager[nn.Module]:
    """Within, the model that this gives has all its weights, and may make as many passes as it likes; no gradients."""
    return getattr(model, "with_all_weights", partial(nullcontext, model))()


@contextmanager
def _unsharded(model: nn.Module) -> Iterator[nn.Module]:
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    model.set_reshard_after_forward(False)
    for part in parts:
        part.unshard()
    try:
        yield model
    finally:
        for part in parts:
            part.reshard()
        model.set_reshard_after_forward(True)


def is_sharded(x: Tensor) -> bool:
    """Whether this is a part of something that other processes hold the rest of."""
    return hasattr(x, "full_tensor") or zero.is_apart(x)


def put_together(x: Tensor) -> Tensor:
    """The whole of it, for every process; all of them must ask."""
    if zero.is_apart(x):
        return zero.put_together(x)
    return x.full_tensor() if is_sharded(x) else x


def own_part(x: Tensor) -> Tensor:
    """What of it this process holds; nobody else is asked."""
    if zero.is_apart(x):
        return zero.own_part(x)
    return x.to_local() if is_sharded(x) else x


def shared_out_like(x: Tensor, like: Tensor) -> Tensor:
    """The whole tensor `x` as one of the kind of `like`; all processes must ask, with the same `x`."""
    if not is_sharded(like):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, like.device_mesh, like.placements)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the CPU, for the main process to write; the others help and get nothing. The same stay the same.

    One after the other, so that no device ever holds more than one of them.
    """
    found: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in found:
            complete = put_together(tensor).cpu() if is_sharded(tensor) else tensor
            found[id(tensor)] = complete.detach() if distributed.is_main() else torch.empty(0)
    return {name: found[id(tensor)] for name, tensor in tensors.items()} if distributed.is_main() else {}
