"""Recorded runs: what whole runs logged, and some of what they wrote, for lessons that cannot wait for them.

assets/runs/PRESET/seedN/  settings.json and metrics.jsonl as the run wrote them, report.json without what the run
                           cost, the first rows of samples.jsonl
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..algorithms.parts import Parts
from ..engine.run_folder import RunFolder, read_lines
from ..worlds.tiny_tldr.world import ASSETS
from .pipeline import run_pipeline
from .run import Progress, Run
from .scales import world_of
from .settings import Settings, from_json, load_settings

RUNS = ASSETS / "runs"
SEEDS = {"tiny": (0,), "tiny-overoptimised": (0, 1, 2)}
RECORDED = [(preset, seed) for preset, seeds in SEEDS.items() for seed in seeds]
COST = ("seconds", "peak_memory_mib", "peak_gpu_mib")  # in report.json; differs each time
SAMPLES = 24  # posts


@dataclass(frozen=True)
class Recording:
    """What a run leaves behind: settings, report, the rows of metrics.jsonl, and the first rows of samples.jsonl."""

    settings: Settings
    report: dict
    metrics: list[dict]
    samples: list[dict]

    @property
    def ppo(self) -> list[dict]:
        """The metrics of each PPO update."""
        return [row for row in self.metrics if row["stage"] == "ppo"]


def load_recording(preset: str, seed: int = 0) -> Recording:
    """A shipped recording."""
    folder = folder_of(preset, seed)
    settings = from_json((folder / "settings.json").read_text(encoding="utf-8"))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return Recording(settings, report, *(read_lines(folder / name) for name in ("metrics.jsonl", "samples.jsonl")))


def folder_of(preset: str, seed: int) -> Path:
    return RUNS / preset / f"seed{seed}"


def build_recordings(progress: Progress) -> None:
    """Run what is recorded (about twenty minutes on two cores) and keep what the lessons need."""
    for preset, seed in RECORDED:
        settings = load_settings(preset, ["engine.device=cpu"], seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            out = RunFolder(folder)
            run_pipeline(Run(settings, world_of(settings), out, out, Parts(), progress))
            record(out, RunFolder(folder_of(preset, seed)))


def record(run: RunFolder, target: RunFolder) -> None:
    """Copy settings and metrics as they are, the report without its cost, and the first samples."""
    for name in ("settings.json", "metrics.jsonl"):
        shutil.copyfile(run / name, target / name)
    report = run.read_json("report.json")
    target.write_json("report.json", {name: value for name, value in report.items() if name not in COST})
    target.write_lines("samples.jsonl", read_lines(run / "samples.jsonl")[:SAMPLES])
