"""How good the doctor is: its diagnoses of the museum's recorded runs, beside what they really were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..museum import BUGS, HEALTHY_RUNS, SCORING, MuseumRun, recorded
from .diagnosis import NOTHING, Diagnosis, diagnose
from .logs import Log, from_rows


@dataclass(frozen=True)
class Judged:
    """One recorded run: what it was, which family that belongs to (NOTHING of a healthy one), and the diagnosis."""

    name: str
    seed: int
    family: str
    diagnosis: Diagnosis

    @property
    def is_healthy(self) -> bool:
        return self.name in HEALTHY_RUNS

    @property
    def is_right(self) -> bool:
        """The right family comes first; of a healthy run, none."""
        return self.diagnosis.first == (NOTHING if self.is_healthy else self.family)


@dataclass(frozen=True)
class Score:
    """Counts over runs. `accused`: healthy ones said to have a bug; `overlooked`: buggy ones said to have none."""

    runs: tuple[Judged, ...]

    @property
    def buggy(self) -> list[Judged]:
        return [run for run in self.runs if not run.is_healthy]

    @property
    def hits(self) -> int:
        return sum(run.is_right for run in self.buggy)

    @property
    def overlooked(self) -> int:
        return sum(not run.diagnosis.signs for run in self.buggy)

    @property
    def mistaken(self) -> int:
        """Buggy runs in which another family comes first."""
        return len(self.buggy) - self.hits - self.overlooked

    @property
    def accused(self) -> int:
        return sum(bool(run.diagnosis.signs) for run in self.runs if run.is_healthy)

    def table(self) -> list[tuple[str, int, str]]:
        """A row for each bug or healthy setting: name, right diagnoses, and what was said how often."""
        names = dict.fromkeys(run.name for run in self.runs)
        return [(name, *self._row([run for run in self.runs if run.name == name])) for name in names]

    def _row(self, runs: list[Judged]) -> tuple[int, str]:
        said = Counter(run.diagnosis.first for run in runs)
        return sum(run.is_right for run in runs), ", ".join(f"{what} ({count})" for what, count in said.most_common())

    def __str__(self) -> str:
        healthy = len(self.runs) - len(self.buggy)
        return (
            f"{len(self.buggy)} runs with a bug: {self.hits} named, {self.overlooked} overlooked, {self.mistaken} "
            f"taken for another; {healthy} healthy runs: {self.accused} accused"
        )


def score(seeds: Iterable[int] = SCORING) -> Score:
    """The doctor's score on recorded runs; by default on the seeds that no threshold was chosen with."""
    families = {name: NOTHING for name in HEALTHY_RUNS} | {bug.name: bug.family for bug in BUGS}
    wanted = set(seeds)
    return Score(tuple(
        Judged(name, seed, families[name], diagnose(log_of(run)))
        for name, of_seed in recorded().items() for seed, run in of_seed.items() if seed in wanted
    ))  # fmt: skip


def log_of(run: MuseumRun) -> Log:
    """A recorded run as the doctor reads it: the same as from its metrics.jsonl."""
    return from_rows(run.metrics, ended_by=run.ended_by)
