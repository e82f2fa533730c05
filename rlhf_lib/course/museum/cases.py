"""Blind cases: a run with a bug whose name is not told, names to choose from, and a score.

    case = blind_case(3)         the same number is always the same case
    case.curves["score"]         what the run logged, one number for each update; case.healthy: runs beside it, by seed
    case.ended_by                what broke it off, "" if nothing did
    case.choices                 five names of bugs, in alphabetical order; one of them is right
    case.guess("reward sign")    Guess: is it right, and what to look at again if not
    case.reveal()                the Bug, with source, symptom and fix
    CaseBook()                   draws one case after the other and keeps the score

Curves are read from the recorded runs, which takes no time. `instruments` looks at a case live.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cached_property

from ...algorithms.parts import Parts
from ...algorithms.ppo_config import PPOConfig
from .bug import RUN, Bug
from .catalogue import BUGS, bug
from .runs import SEEDS, MuseumRun, as_curves, recorded

CHOICES = 5


@dataclass(frozen=True)
class Guess:
    """What a case says to a name."""

    name: str
    right: bool
    says: str

    def __repr__(self) -> str:
        return f"[{'✓' if self.right else '✗'}] {self.name}: {self.says}"


@dataclass(frozen=True)
class BlindCase:
    """One run. Its representation tells the number alone."""

    number: int
    seed: int
    choices: tuple[str, ...]
    _bug: Bug = field(repr=False)

    @cached_property
    def _run(self) -> MuseumRun:
        return recorded()[self._bug.name][self.seed]

    @property
    def curves(self) -> dict[str, list[float]]:
        """Each metric over the updates."""
        return as_curves(self._run.metrics)

    @property
    def healthy(self) -> dict[int, dict[str, list[float]]]:
        """The same of runs without a bug, under the same setting, by seed."""
        return {seed: as_curves(run.metrics) for seed, run in recorded()[self._bug.beside].items()}

    @property
    def ended_by(self) -> str:
        return self._run.ended_by

    @property
    def config(self) -> PPOConfig:
        return RUN

    def parts(self, parts: Parts = Parts()) -> Parts:
        """The parts that the run was made with: to be tested, or to be looked at for whoever has given up."""
        return self._bug.parts(parts)

    def start(self, *args, **rest):
        """A state before the first update, as the run had it."""
        return self._bug.start(*args, **rest)

    def guess(self, name: str) -> Guess:
        """raises  ValueError for a name that is not among the choices"""
        if name not in self.choices:
            raise ValueError(f"choose one of {', '.join(self.choices)}")
        if name == self._bug.name:
            return Guess(name, True, self._bug.says)
        return Guess(name, False, f"no. It would be found by this: {bug(name).found_by}. Does that fit?")

    def reveal(self) -> Bug:
        """The bug itself."""
        return self._bug


def blind_case(number: int, choices: int = CHOICES) -> BlindCase:
    """A case for each number: which bug, which seed, and which other names stand beside the right one."""
    draw = random.Random(f"blind case {number}")
    hidden = draw.choice(BUGS)
    others = draw.sample([other.name for other in BUGS if other is not hidden], choices - 1)
    return BlindCase(number, draw.choice(SEEDS), tuple(sorted([hidden.name, *others])), hidden)


class CaseBook:
    """Cases one after the other, and how many were named at the first try."""

    def __init__(self, first: int = 1):
        self._next = first
        self._first_guesses: dict[int, bool] = {}

    def draw(self) -> BlindCase:
        """The next case."""
        self._next += 1
        return blind_case(self._next - 1)

    def guess(self, case: BlindCase, name: str) -> Guess:
        """The case's answer. Only the first guess counts."""
        guess = case.guess(name)
        self._first_guesses.setdefault(case.number, guess.right)
        return guess

    @property
    def right(self) -> int:
        return sum(self._first_guesses.values())

    def __repr__(self) -> str:
        return f"{self.right} of {len(self._first_guesses)} cases named at the first try"
