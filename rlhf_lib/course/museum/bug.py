"""What is known about a bug, and how it is put into a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ...algorithms import ppo
from ...algorithms.parts import Parts
from ..short_runs import SHORT, new_state

# Ten tokens at most: one summary in four does not end in time, so that what concerns the missing EOS is seen too.
RUN = replace(SHORT, updates=8, batch_size=16, response_length=10)
STAGES = {
    "rollout": "writing the texts and asking the models about them (`collect`)",
    "rewards": "from a score for a text to a reward for each token (`token_rewards`)",
    "targets": "advantages and returns (`estimate_targets`)",
    "loss": "what is minimised, and what is logged about it (`ppo_loss`, `measure`)",
    "update": "how the weights move (`update`)",
}
RUNGS = {
    "understanding": "the algorithm was understood otherwise than it is",
    "intention": "the algorithm was understood, but what was meant to be written is not it",
    "implementation": "what was written is not what was meant",
}


@dataclass(frozen=True, kw_only=True)
class Bug:
    """A mistake that somebody made, as a change of one part of PPO, or of all parts that read what it moves.

    says      what the code does, in a line, for whoever has given up
    symptom   what it looks like from outside
    seen_in   who made it, and where: a link or an anchor of REFERENCES.md
    found_by  the check or instrument that finds it
    fix       what to do instead
    family    what the doctor calls it; bugs that no log can tell apart share one
    plant     makes the changed parts, by slot; anew for every run, since some remember something
    start     makes the state before the first update; the library's own, but for bugs that need another setting
    beside    the healthy runs to compare with
    """

    name: str
    stage: str
    rung: str
    says: str
    symptom: str
    seen_in: str
    found_by: str
    fix: str
    family: str
    plant: Callable[[], Mapping[str, Callable]] = field(repr=False)
    start: Callable[..., ppo.PPOState] = field(default=new_state, repr=False)
    beside: str = "healthy"

    def __post_init__(self):
        if self.stage not in STAGES or self.rung not in RUNGS:
            raise ValueError(f"{self.name}: there is no stage {self.stage!r} or no rung {self.rung!r}")

    def parts(self, parts: Parts = Parts()) -> Parts:
        """These parts with the bug in them."""
        return replace(parts, **self.plant())

    @property
    def slots(self) -> tuple[str, ...]:
        """Which parts are changed."""
        return tuple(self.plant())


def always(**changes: Callable) -> Callable[[], Mapping[str, Callable]]:
    """For bugs that remember nothing."""
    return lambda: changes
