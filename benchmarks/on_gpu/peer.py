"""TRL 1.12.0 on the same work, by the same harness as `benchmarks.against_trl`."""

from __future__ import annotations

import importlib.util
import statistics
from dataclasses import asdict
from itertools import pairwise

import torch

from . import machine
from .work import Work, for_trl

HOW_TO_GET_IT = (
    "TRL 1.12.0 is not here; where there is a package index, once: python -m pip install --no-deps "
    "--target benchmarks/.peers/trl-1.12.0 trl==1.12.0"
)


def measure(work: Work) -> dict:
    """Median seconds of an update without the first, and the peak of memory; `work` names its micro-batches.

    raises  LeftOut where TRL is not installed
    """
    if importlib.util.find_spec("trl") is None:
        raise machine.LeftOut(HOW_TO_GET_IT)
    device = machine.find_device()
    machine.cap_memory(device, work.memory_gib)
    stamps = train(work, device)
    _first, *others = [end - start for start, end in pairwise(stamps)]
    update = statistics.median(others)
    return {
        "work": asdict(work), "seconds": {"update": update}, **peaks(device),
        "tokens_per_second": {"of an update": work.texts / update},
    }  # fmt: skip


def train(work: Work, device: torch.device) -> list[float]:
    """When training began, and when each update ended."""
    from .. import one_side

    class Counted(one_side.Counted):
        def update_ended(self, *_, **__) -> None:
            machine.wait(device)
            super().update_ended()

    counted, on_gpu = Counted(), device.type == "cuda"
    low = {"bfloat16": {"bf16": True}, "float16": {"fp16": True}}.get(work.precision, {}) if on_gpu else {}
    run = one_side.run_trl(
        for_trl(work, work.micro_batch), work.updates, seed=0, device=device.type, use_cpu=not on_gpu,
        local_rollout_forward_batch_size=work.micro_batch, **low,
    )  # fmt: skip
    run(counted)
    return [wall for wall, _ in counted.stamps]


def peaks(device: torch.device) -> dict:
    if device.type == "cpu":
        return {"peaks": None, "reserved": None}
    return {"peaks": {"all": torch.cuda.max_memory_allocated()}, "reserved": torch.cuda.max_memory_reserved()}
