"""The tiny world's whole run, from SFT to evaluation, by the command that anybody types."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from ..kills import CHANGES as A_SHORT_RUN
from . import machine


def measure(small: bool) -> dict:
    """Seconds of each stage, what was reached, and the peak of memory."""
    from rlhf_lib.pipeline import command

    device = machine.find_device()
    changes = [*(A_SHORT_RUN if small else ()), f"engine.device={device.type}"]
    with tempfile.TemporaryDirectory() as folder:
        command.run(
            Path(folder), preset="tiny", seed=0, changes=changes, stages=[], source=None, resume=False,
            checkpoint_seconds=10.0,
        )  # fmt: skip
        report = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))
    return {
        "stages": report["seconds"], "gold": {who: report[who]["gold"] for who in ("sft", "ppo")},
        "peak": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }  # fmt: skip
