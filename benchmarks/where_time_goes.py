"""Where the time of one PPO update goes, and how far it is from what the machine's matrix multiplication allows.

    OMP_NUM_THREADS=1 python -m benchmarks.where_time_goes --work "natural lengths"

In one process: the rate of multiplying matrices of the shape that the models' layers have; the floating-point
operations of an update, counted as it runs; its CPU time by verb; and, from PyTorch's profiler, by kind of operation.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch

from .one_side import our_state_and_batches
from .work import WORKS, Work

KINDS = {  # the first whose name is found in an operation's counts
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("scaled_dot_product",),
    "optimiser": ("lerp", "addcmul", "addcdiv", "sqrt"),
}


def matmul_rate(work: Work) -> float:
    """Operations a second at best, multiplying a micro-batch's states by a feed-forward matrix."""
    a, b = torch.randn(work.rows * (work.prompt + work.response), work.hidden), torch.randn(work.hidden, work.inter)
    best = min(timed(lambda: a @ b) for _ in range(200))
    return 2 * a.numel() * b.shape[1] / best


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def by_verb(updates: Iterator[dict]) -> dict[str, float]:
    """CPU seconds of the next update: all of it, writing, the other models' looks, the training steps."""
    from rlhf_lib.algorithms import ppo

    spent: dict[str, float] = defaultdict(float)

    def watch(name: str):
        function = getattr(ppo, name)

        def watched(*args):
            start = time.process_time()
            result = function(*args)
            spent[name] += time.process_time() - start
            return result

        return patch.object(ppo, name, watched)

    with watch("collect"), watch("update"):
        start = time.process_time()
        next(updates)
        spent["all"] = time.process_time() - start
    return dict(spent)


def by_kind(updates: Iterator[dict]) -> dict[str, float]:
    """Share of the next update's time, by kind of operation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        next(updates)
    spent: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        kind = next((k for k, names in KINDS.items() if any(n in event.key for n in names)), "everything else")
        spent[kind] += event.self_cpu_time_total
    whole = sum(spent.values())
    return {kind: value / whole for kind, value in sorted(spent.items(), key=lambda item: -item[1])}


def operations(updates: Iterator[dict]) -> float:
    """Of the matrix products and the attention of the next update."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        next(updates)
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORKS, default="fixed lengths")
    arguments = parser.parse_args()
    from rlhf_lib.algorithms import ppo

    work = WORKS[arguments.work]
    state, batches, config = our_state_and_batches(work, updates=4, seed=0)
    updates = ppo.train_ppo(state, batches, config)
    next(updates)  # warm up
    spent, needed, kinds = by_verb(updates), operations(updates), by_kind(updates)
    rate = matmul_rate(work)
    print(f"matrix products reach {rate / 1e9:.0f} GFLOP/s here; an update needs {needed / 1e9:.0f} GFLOP")
    print(f"at that rate alone it would take {needed / rate / spent['all']:.0%} of its {spent['all']:.2f} CPU seconds")
    for name in ("collect", "update"):
        print(f"{name}: {spent[name] / spent['all']:.0%}")
    for kind, share in kinds.items():
        print(f"{kind}: {share:.0%}")


if __name__ == "__main__":
    main()
