"""The estimate itself: what is there all the time, and with it each phase at its highest."""

from __future__ import annotations

from dataclasses import dataclass

from . import phases, report
from .phases import Phase
from .plan import Plan

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Budget:
    """What a PPO update needs, phase by phase."""

    plan: Plan
    phases: tuple[Phase, ...]

    @property
    def highest(self) -> Phase:
        return max(self.phases, key=phases.total)

    @property
    def peak(self) -> int:
        """Bytes of live tensors at the highest moment."""
        return self.highest.total

    @property
    def phase(self) -> str:
        """In which the peak is."""
        return self.highest.name

    @property
    def rows(self) -> list[tuple[str, str, int]]:
        """Phase, what, and its bytes."""
        return [(phase.name, what, amount) for phase in self.phases for what, amount in phase.rows.items()]

    def fits(self, memory: int) -> bool:
        """Whether the tensors do. A CUDA context and what an allocator holds without using it come on top."""
        return self.peak <= memory

    def __str__(self) -> str:
        return report.as_text(self.phases)

    def _repr_html_(self) -> str:
        return report.as_html(self.phases)


def estimate(plan: Plan) -> Budget:
    """What the plan needs at the highest moment of each phase, in bytes of live tensors; see the package."""
    weights, rollout = phases.weights(plan), phases.rollout(plan)
    found = (phases.sampling(plan), phases.scoring(plan), phases.backward(plan), phases.step(plan))
    return Budget(plan, tuple(Phase(phase.name, weights | rollout | phase.rows, phase.when) for phase in found))
