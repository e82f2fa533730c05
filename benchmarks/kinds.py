"""Where the CPU time of one PPO update goes, by kind of operation, for ours and for TRL on the same work.

    OMP_NUM_THREADS=1 python -m benchmarks.kinds --work "natural lengths"

Each operation is measured as it is dispatched, in CPU seconds of this process, backward passes included: other jobs on
the machine add little. An operation that only looks at memory in another way counts with what it costs to measure it;
the last row is an update that was not measured like this.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import defaultdict

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .against_trl import install_trl
from .one_side import SYSTEMS, Counted, warm_imports
from .work import WORKS, Work

COUNTED = 3  # updates that end before the one that is looked at
KINDS = {  # the first with a name that is part of the operation's
    "products with weights": ("aten.mm.", "aten.addmm"),
    "attention's products and softmax": ("bmm", "scaled_dot", "softmax.int_out", "_softmax_backward", "aten._softmax"),
    "passes over the vocabulary, draws": ("log_softmax", "logsumexp", "exp", "amax", "multinomial"),
    "gates": ("silu",),
    "copies and gathers": ("cat", "clone", "copy", "embedding", "index", "gather", "repeat", "pad", "slice_backward",
                           "select_backward", "scatter", "fill", "zeros", "where"),
    "sums and products of numbers": ("aten.mul", "aten.add", "aten.sub", "aten.div", "neg", "aten.sum", "aten.mean",
                                     "aten.pow", "rsqrt", "linalg", "square"),
    "optimiser": ("adamw", "lerp", "addcdiv", "addcmul", "sqrt"),
}  # fmt: skip


class Clock(TorchDispatchMode):
    """CPU seconds by kind, while it is entered."""

    def __init__(self):
        super().__init__()
        self.spent: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        started = time.process_time()
        result = function(*args, **(kwargs or {}))
        name = str(function)
        kind = next((kind for kind, names in KINDS.items() if any(part in name for part in names)), "other operations")
        self.spent[kind] += time.process_time() - started
        return result


class OneUpdate(Counted):
    """Runs the clock during one update, once others have ended."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()

    def update_ended(self, *_, **__) -> None:
        super().update_ended()
        if len(self.stamps) == COUNTED + 1:  # the first is that of the beginning
            self.clock.__enter__()
        if len(self.stamps) == COUNTED + 2:
            self.clock.__exit__(None, None, None)

    def seconds(self) -> float:
        """Of the update before the one that is looked at, without the clock's own time."""
        return self.stamps[COUNTED][1] - self.stamps[COUNTED - 1][1]


def by_kind(system: str, work: Work) -> dict[str, float]:
    """CPU seconds of an update."""
    torch.manual_seed(0)
    counted = OneUpdate()
    SYSTEMS[system](work, COUNTED + 1, 0)(counted)
    return dict(counted.clock.spent) | {"an update": counted.seconds()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORKS, default="fixed lengths")
    arguments = parser.parse_args()
    sys.path.append(str(install_trl()))
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    warm_imports()
    ours, trl = (by_kind(system, WORKS[arguments.work]) for system in ("ours", "trl"))
    print(f"| {arguments.work}, CPU seconds | ours | TRL's |\n| --- | ---: | ---: |")
    for kind in [*KINDS, "other operations", "an update"]:
        print(f"| {kind} | {ours.get(kind, 0):.2f} | {trl.get(kind, 0):.2f} |")


if __name__ == "__main__":
    main()
