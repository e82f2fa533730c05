"""A second device without hardware: its tensors hold their numbers on the CPU, but say that they are elsewhere.

As on a GPU, an operation on tensors of both devices is refused, but for those that a GPU allows as well: copies, single
numbers of the CPU, and indices. So whatever runs here with all that should be there has put every tensor in its place.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

DEVICE = torch.device("lazy", 0)  # PyTorch's name for a device without a driver, with autograd in this thread
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
INDEXED = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}


class Elsewhere(torch.Tensor):
    """A tensor there; `numbers` is what it holds, here."""

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> Elsewhere:
        return torch.Tensor._make_wrapper_subclass(
            cls, numbers.size(), strides=numbers.stride(), storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype, device=DEVICE, requires_grad=numbers.requires_grad,
        )  # fmt: skip

    def __init__(self, numbers: torch.Tensor):
        self.numbers = numbers

    def __repr__(self, **_) -> str:
        return f"Elsewhere({self.numbers})"

    def tolist(self) -> list:
        return self.numbers.tolist()  # PyTorch has none for tensors of a kind of their own

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return operate(function, args, kwargs or {})


class MadeFromNumbers(TorchFunctionMode):
    """`torch.tensor` asks the driver for memory before anybody else hears of it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if function is not torch.tensor or device is None or torch.device(device).type != DEVICE.type:
            return function(*args, **kwargs)
        return function(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)


class SecondDevice(TorchDispatchMode):
    """Within, tensors can be made there and moved there."""

    operations = 0  # that were done there

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = operate(function, args, kwargs or {})
        self.operations += any(isinstance(x, Elsewhere) for x in tree_iter(found))
        return found


def operate(function, args: tuple, kwargs: dict) -> object:
    inputs = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = any(isinstance(x, Elsewhere) for x in inputs)
    to = kwargs.get("device")
    if there and function not in MOVES:
        refuse_both(function, args, inputs)
    result = function(*tree_map(here, args), **{**tree_map(here, kwargs), **({"device": "cpu"} if to else {})})
    if function._schema.is_mutable:
        return None if result is None else args[0]
    goes_there = torch.device(to).type == DEVICE.type if to else there
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, result) if goes_there else result


def refuse_both(function, args: tuple, inputs: list[torch.Tensor]) -> None:
    """As CUDA does."""
    free = [x for x in args[1] if x is not None] if function in INDEXED and isinstance(args[0], Elsewhere) else []
    wrong = [x for x in inputs if not isinstance(x, Elsewhere) and x.dim() and not any(x is other for other in free)]
    if wrong:
        raise RuntimeError(f"{function} got tensors on two devices, one of shape {tuple(wrong[0].shape)} on the CPU")


def here(x: object) -> object:
    return x.numbers if isinstance(x, Elsewhere) else x
