"""Several processes, one run: each does its share of the rows, and all go on with the same whole.

Every process holds all models and the whole rollout. The global batch is what the settings say, however many there are;
a process writes, scores and trains on its share of the rows, and gradients are *added up* (a loss is already divided by
the global count of actions, so a mean over processes would be wrong). What is random depends on the global row alone.

With one process all of this is nothing: no group is made, no tensor is copied.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, distributed

Shareable = TypeVar("Shareable", Tensor, list)


class LostProcessError(RuntimeError):
    """Another process of the run has ended, so that this one waits for nothing."""


@contextmanager
def loss_named() -> Iterator[None]:
    """raises LostProcessError in place of what the group says, in here or in a sharded model's own passes."""
    try:
        yield
    except RuntimeError as error:
        first_line = str(error).partition("\n")[0]
        if not isinstance(error, getattr(distributed, "DistError", ())) and "gloo" not in first_line:
            raise
        raise LostProcessError(f"process {rank()} of {size()} has lost the others ({first_line[:120]})") from None


def begin(device: torch.device = torch.device("cpu")) -> None:
    """Join the group that `accelerate launch` or `torchrun` has announced in the environment, if one has.

    device  of this process's models. What is counted and said between processes stays on the CPU
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        from accelerate import PartialState

        PartialState(**({"backend": "cuda:nccl,cpu:gloo"} if device.type == "cuda" else {"cpu": True}))


def size() -> int:
    """How many processes share the run."""
    return distributed.get_world_size() if _several() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return distributed.get_rank() if _several() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def own_share(things: Shareable) -> Shareable:
    """Every `size()`-th of them: this process's part of the work."""
    return things[rank() :: size()]


def combine(own: Tensor, rows: int, *parts: Tensor) -> tuple[Tensor, ...]:
    """Tensors of all `rows` rows, from those of this process's rows `own` and those of the other processes."""
    return parts if size() == 1 else tuple(add_up(_among(part, own, rows)) for part in parts)


def add_up(x: Tensor) -> Tensor:
    """The sum over processes, in a tensor of its own; of booleans, whether any is True."""
    if size() == 1:
        return x
    summed = x.int() if x.dtype == torch.bool else x.clone()
    distributed.all_reduce(summed)
    return summed.bool() if x.dtype == torch.bool else summed


def total(x: float) -> float:
    """The sum over processes of a number."""
    return x if size() == 1 else float(add_up(torch.tensor(x, dtype=torch.float64)))


def any_process(condition: bool) -> bool:
    """Whether it holds in any process: all must take the same turn."""
    return total(float(condition)) > 0


def of_all_processes(numbers: dict[str, float], *, largest: Collection[str]) -> dict[str, float]:
    """Of each number the sum over processes, of those named in `largest` the largest; who has none adds nothing."""
    if size() == 1:
        return numbers
    found = [json.loads(text) for text in _texts_of_all(json.dumps(numbers))]
    names = dict.fromkeys(name for one in found for name in one)
    return {
        name: (max if name in largest else sum)(one[name] for one in found if name in one) for name in names
    }  # fmt: skip


def add_up_gradients(weights: Iterable[Tensor]) -> None:
    """Put into each weight's gradient the sum over processes; one that no process has stays away."""
    if size() == 1 or not (weights := list(weights)):
        return
    has = add_up(torch.tensor([weight.grad is not None for weight in weights]))
    wanted = [weight for weight, some in zip(weights, has.tolist(), strict=True) if some]
    for weight in wanted:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        distributed.all_reduce(weight.grad)


def wait_for_all() -> None:
    """Go on when every process has come this far: what the main one has written is there."""
    if size() > 1:
        distributed.barrier()


def leave_if_one_of_several(status: int) -> None:
    """End this process here and now if it has others; alone, it ends as Python does.

    To take the group apart on the way out is not safe once another process is gone: after all had been said, gloo's
    destructors aborted in two of 840 trials and waited for ever in two more. Of 3,000 that left like this, none did.
    """
    if size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _texts_of_all(text: str) -> list[str]:
    """What each process says, in the order of their ranks; as bytes of text, so that nothing is unpickled."""
    mine = torch.tensor(list(text.encode()), dtype=torch.uint8)
    lengths = torch.zeros(size(), dtype=torch.long)
    lengths[rank()] = len(mine)
    lengths = add_up(lengths)
    rows = torch.zeros(size(), int(lengths.max()), dtype=torch.int32)
    rows[rank(), : len(mine)] = mine
    return [bytes(row[:length].tolist()).decode() for row, length in zip(add_up(rows), lengths.tolist(), strict=True)]


def _among(part: Tensor, own: Tensor, rows: int) -> Tensor:
    whole = part.new_zeros(rows, *part.shape[1:])
    whole[own] = part
    return whole


__all__ = [
    "LostProcessError", "add_up", "add_up_gradients", "any_process", "begin", "combine", "is_main",
    "leave_if_one_of_several", "loss_named", "of_all_processes", "own_share", "rank", "size", "total", "wait_for_all",
]  # fmt: skip
