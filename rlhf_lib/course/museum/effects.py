"""What a bug does to a run's log, decided from the recorded runs: the metric that moves most, or that none does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .bug import Bug
from .runs import MuseumRun, recorded

SILENT = "silent at this size"
ROUNDING = 1e-6  # the least spread that counts between seeds: some metrics are 0 in every healthy run
SUMMARIES: dict[str, Callable[[list[float]], float]] = {
    "at the first update": lambda values: values[0],
    "on average": lambda values: sum(values) / len(values),
    "at the last update": lambda values: values[-1],
}


@dataclass(frozen=True)
class Effect:
    """A metric, and when; its value in each run with the bug and in each healthy run, one for each seed."""

    metric: str
    when: str
    buggy: tuple[float, ...]
    healthy: tuple[float, ...]

    @property
    def spread(self) -> float:
        """From the smallest healthy value to the largest."""
        return max(max(self.healthy) - min(self.healthy), ROUNDING)

    @property
    def spreads(self) -> float:
        """How far the means are apart, in healthy spreads."""
        return abs(sum(self.buggy) / len(self.buggy) - sum(self.healthy) / len(self.healthy)) / self.spread

    @property
    def is_seen(self) -> bool:
        """More than the spread between healthy seeds, and no seed with the bug is among the healthy ones."""
        outside = all(value < min(self.healthy) or value > max(self.healthy) for value in self.buggy)
        return outside and self.spreads > 1

    def __str__(self) -> str:
        ranges = [f"{min(values):.3g} to {max(values):.3g}" for values in (self.buggy, self.healthy)]
        return f"{self.metric} {self.when}: {ranges[0]}, healthy {ranges[1]}"


def effect_of(bug: Bug) -> Effect | None:
    """The metric that it moves farthest beyond the spread of the healthy runs under its setting, or None."""
    return largest(recorded()[bug.name], recorded()[bug.beside])


def largest(buggy: Mapping[int, MuseumRun], healthy: Mapping[int, MuseumRun]) -> Effect | None:
    """The same, of any runs by seed."""
    names = dict.fromkeys(name for run in buggy.values() for row in run.metrics for name in row)
    found = [
        Effect(name, when, *(_summarised(runs, name, summary) for runs in (buggy, healthy)))
        for name in names
        for when, summary in SUMMARIES.items()
    ]
    seen = [effect for effect in found if effect.buggy and effect.healthy and effect.is_seen]
    return max(seen, key=lambda effect: effect.spreads, default=None)


def in_words(bug: Bug) -> str:
    """What it does to the log, in a line."""
    ends = {run.ended_by for run in recorded()[bug.name].values()}
    if "" not in ends:
        return f"the run stops: {sorted(ends)[0]}"
    return str(effect_of(bug) or SILENT)


def _summarised(runs: Mapping[int, MuseumRun], name: str, summary: Callable) -> tuple[float, ...]:
    """One number a run; those that have no finite value of it are left out."""
    curves = ([row[name] for row in run.metrics if _is_number(row.get(name))] for run in runs.values())
    return tuple(summary(curve) for curve in curves if curve)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
