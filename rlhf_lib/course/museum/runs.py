"""A short run with a bug in it, which no assertion stops, and the recorded ones."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest import mock

from ...algorithms import ppo, step_zero
from ...algorithms.ppo_config import PPOConfig
from ...engine.optimiser import NonFiniteError
from ...pipeline.texts import PromptStream
from ...worlds.tiny_tldr.world import TinyTLDR
from .bug import RUN, Bug, always
from .joint_clip import jointly_clipped
from .shared_trunk import shared_trunk

RECORDED = Path(__file__).parent.parent / "recorded" / "08_museum.json"
SEEDS = (0, 1, 2, 3, 4, 5)
TUNING, SCORING = SEEDS[:3], SEEDS[3:]  # the doctor was tuned on the first three, and is scored on the others

HEALTHY = Bug(
    name="healthy", stage="update", rung="implementation", says="the library as it is", symptom="none", seen_in="",
    found_by="", fix="", family="no sign in the log", plant=always(),
)  # fmt: skip

# Other settings, under which the library must not be accused of anything.
HEALTHY_RUNS: dict[str, tuple[Bug, PPOConfig]] = {
    "healthy": (HEALTHY, RUN),
    "healthy, room to end": (HEALTHY, replace(RUN, response_length=24)),
    "healthy, slow": (HEALTHY, replace(RUN, learning_rate=1e-4)),
    "healthy, no KL penalty": (HEALTHY, replace(RUN, kl_coef=0.0)),
    "healthy, four epochs": (HEALTHY, replace(RUN, epochs=4)),
    "healthy, two minibatches": (HEALTHY, replace(RUN, minibatches=2)),
    "healthy, shared trunk": (replace(HEALTHY, start=shared_trunk), RUN),
    "healthy, one norm clipped": (replace(HEALTHY, start=jointly_clipped), RUN),
}


@dataclass(frozen=True)
class MuseumRun:
    """The metrics of each update, and what ended the run early, if something did."""

    metrics: list[dict]
    ended_by: str = ""


def buggy_run(bug: Bug = HEALTHY, config: PPOConfig = RUN, *, seed: int = 0, updates: int | None = None) -> MuseumRun:
    """Train with the bug; the step-zero numbers are noted but do not stop it. `updates`: make only so many."""
    made: list[dict] = []
    try:
        for metrics in steps(bug, config, seed):
            made.append(metrics)
            if len(made) == updates:
                break
    except NonFiniteError as error:
        return MuseumRun(made, ended_by=str(error))
    return MuseumRun(made)


def steps(bug: Bug, config: PPOConfig, seed: int) -> Iterator[dict]:
    """The metrics of each update. What the step-zero assertions object to stops nothing."""
    prompts = PromptStream(TinyTLDR(seed), "ppo", batch_size=config.batch_size, updates=config.updates)
    parts = bug.parts()
    state = bug.start(config, parts, seed=seed, judge=prompts.judge)
    nothing_is_too_much = {name: (math.inf, where) for name, (_, where) in step_zero.LIMITS.items()}
    with mock.patch.dict(step_zero.LIMITS, nothing_is_too_much):
        yield from ppo.train_ppo(state, prompts.batches(), config, parts)


@cache
def recorded() -> dict[str, dict[int, MuseumRun]]:
    """All recorded runs, by the name of the bug (or of the healthy setting) and seed.

    Made by `python -m benchmarks.museum`.
    """
    found = json.loads(RECORDED.read_text(encoding="utf-8"))["runs"]
    return {
        name: {int(seed): MuseumRun(_as_rows(run["curves"]), run["ended_by"]) for seed, run in of_seed.items()}
        for name, of_seed in found.items()
    }


def as_curves(metrics: list[dict]) -> dict[str, list[float]]:
    """Rows turned on their side: each name once. Those of the first update alone are lists of one."""
    names = dict.fromkeys(name for row in metrics for name in row)
    return {name: [row[name] for row in metrics if name in row] for name in names}


def _as_rows(curves: dict[str, list[float]]) -> list[dict]:
    updates = max(map(len, curves.values()), default=0)
    return [{name: values[at] for name, values in curves.items() if at < len(values)} for at in range(updates)]
