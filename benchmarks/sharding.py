"""What each of several processes holds in PPO, with whole models and with parts of them (engine.sharding).

    python -m benchmarks.sharding --processes 2

Random Llamas of 31 million weights, one update of eight short texts. Counted are the bytes of all weights and of Adam's
moments, once the update is over; DeepSpeed has a copy of the weights that it steps, which counts as well. Without the
package deepspeed its columns are left out. Resident memory is what the process takes up (Linux): the most before the
models are shared out, and the most from then on, each above what the imports take.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from .one_side import our_state_and_batches
from .work import Work

ROOT = Path(__file__).parent.parent
WORK = Work(
    hidden=512, layers=8, heads=8, inter=1408, vocab=8192, prompt=16, response=8, batch=8, micro_batches=4, epochs=1,
    lean=False,
)  # fmt: skip
HOW = ("whole", "fsdp2", "zero2", "zero3")
ROWS = {
    "weights": "weights of four models",
    "moments": "Adam's moments of two",
    "at_first": "resident, most while models are made",
    "afterwards": "resident, most in the update",
}


def one_process(sharding: str) -> None:
    """Prints what it held, in bytes, as JSON in its last line."""
    from rlhf_lib.algorithms import ppo
    from rlhf_lib.engine import distributed
    from rlhf_lib.engine.preparation import share_out
    from rlhf_lib.engine.run_folder import peak_memory_mib

    distributed.begin()
    torch.set_num_threads(1)
    imports = peak_memory_mib()
    state, batches, config = our_state_and_batches(WORK, updates=1, seed=0)
    at_first = peak_memory_mib() - imports
    if sharding != "whole":
        share_out(state.policy, state.critic, optimizer=state.optimizer, how=sharding)
        share_out(state.reference, state.reward_model, how=sharding)
    forget_the_peak()
    for _ in ppo.train_ppo(state, batches, config):
        pass
    models = state.policy, state.critic, state.reference, state.reward_model
    stepped = [flat for part in getattr(state.optimizer, "in_parts", []) for flat in part.flat]
    found = dict(
        weights=held(weight for model in models for weight in model.parameters()) + held(stepped),
        moments=held(moment for known in state.optimizer.state.values() for moment in known.values()),
        at_first=at_first * 2**20,
        afterwards=(peak_memory_mib() - imports) * 2**20,
    )
    print(json.dumps(found))


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes that are here."""
    from rlhf_lib.engine.sharding import own_part

    return sum(own_part(tensor).nbytes for tensor in tensors)


def forget_the_peak() -> None:
    """The most that this process has held counts from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(processes: int, sharding: str) -> dict[str, float]:
    """Of each number the most that any process found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = dict(WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
    command = [sys.executable, "-m", "benchmarks.sharding", "--one", sharding]
    pipe = dict(text=True, stdout=subprocess.PIPE)
    common = os.environ | group | dict(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", ACCELERATE_USE_CPU="true")
    started = [
        subprocess.Popen(command, cwd=ROOT, env=common | dict(RANK=str(rank), LOCAL_RANK=str(rank)), **pipe)
        for rank in range(processes)
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    return {name: max(one[name] for one in found) for name in ROWS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--one", choices=HOW, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        one_process(asked.one)
        return
    found = {how: measure(asked.processes, how) for how in (HOW if find_spec("deepspeed") else HOW[:2])}
    print(f"| MiB in each of {asked.processes} processes | {' | '.join(found)} |\n| --- |{' ---: |' * len(found)}")
    for name, label in ROWS.items():
        print(f"| {label} | {' | '.join(f'{one[name] / 2**20:.0f}' for one in found.values())} |")


if __name__ == "__main__":
    main()
