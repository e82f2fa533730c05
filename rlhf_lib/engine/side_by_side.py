"""Passes of models that learn nothing from each other, side by side in two threads: forward, and backward as well.

A lean pass is many small steps, which PyTorch leaves to one thread however many it may use. Policy and critic, which
read the same texts, keep two threads busy; each of these has half of the threads for its larger products.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Result = TypeVar("Result")


def worth_it(device: torch.device) -> bool:
    """Whether a second thread has anything to run on; not while something watches all operations of this one alone."""
    is_watched = torch.autograd._profiler_enabled() or _get_current_dispatch_mode_stack()
    return device.type == "cpu" and torch.get_num_threads() > 1 and not is_watched


def side_by_side(passes: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
    """What each of these passes makes, the first, third ... in this thread and the others in another.

    They must not learn the same weights. The results are those of passes in turn with half as many threads.
    """
    made = _at_once([partial(_with_gradients, torch.is_grad_enabled(), make) for make in passes])
    learning = [states for states in made if states.requires_grad]
    if len(learning) < 2:
        return made
    joined = iter(_Joined.apply(learning, *(states.detach().requires_grad_() for states in learning)))
    return [next(joined) if states.requires_grad else states for states in made]


class _Joined(torch.autograd.Function):
    """Nothing forward. Back, the gradients of all passes come together here and go on side by side."""

    @staticmethod
    def forward(ctx, learning: Sequence[Tensor], *cut: Tensor) -> tuple[Tensor, ...]:
        ctx.learning = learning
        return tuple(states.view_as(states) for states in cut)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        _at_once([partial(states.backward, grad) for states, grad in zip(ctx.learning, grads, strict=True)])
        return None, *[None] * len(grads)


def _with_gradients(enabled: bool, make: Callable[[], Tensor]) -> Tensor:
    """A thread does not know by itself whether another one asks for gradients."""
    with torch.set_grad_enabled(enabled):
        return make()


def _at_once(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """The tasks' results. What goes wrong in one is raised here, once no task is running any more."""
    threads = torch.get_num_threads()
    beside = _other_thread(os.getpid()).submit(_in_turn, tasks[1::2], threads // 2)
    try:
        here = _in_turn(tasks[::2], threads // 2)
    finally:
        wait([beside])
        torch.set_num_threads(threads)
    results = [None] * len(tasks)
    results[::2], results[1::2] = here, beside.result()
    return results


@cache
def _other_thread(process: int) -> ThreadPoolExecutor:
    """One for each process: a fork does not take it along."""
    return ThreadPoolExecutor(1, "side_by_side")


def _in_turn(tasks: Iterable[Callable[[], Result]], threads: int) -> list[Result]:
    if torch.get_num_threads() != threads:  # each thread has a number of its own
        torch.set_num_threads(threads)
    return [task() for task in tasks]
