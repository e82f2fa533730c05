"""What an exercise is made of: a specification, cases, known mistakes and hints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ..maths.records import Rows


@dataclass(frozen=True)
class Case:
    """Arguments for one call, and what is special about them, in words for the learner."""

    label: str
    arguments: dict[str, object]
    gradients: tuple[str, ...] = ()  # arguments, tensors or models, into which the gradient is compared as well
    tolerance: float = 1e-9  # relative and absolute; wider where a right answer computes in single precision
    alive: tuple[int, int] | None = None  # bytes of tensors it may have at once: without gradients, and with backward
    through: Callable[[Callable], Callable] | None = None  # makes of the function what the arguments are given to

    def used(self, function: Callable) -> Callable:
        """What is called: the function itself, or whatever uses it, such as a run that trains with it."""
        return self.through(function) if self.through else function

    @property
    def size(self) -> int:
        """How many numbers somebody has to look at."""
        return sum(
            tensor.numel()
            for value in self.arguments.values()
            for tensor in (vars(value).values() if isinstance(value, Rows) else [value])
            if isinstance(tensor, Tensor)
        )


@dataclass(frozen=True)
class Twin:
    """A known mistake: a function that makes it, what to tell whoever made it, and where it was seen."""

    says: str  # "you ...": names the mistake, not the answer
    answer: Callable
    seen_in: str = ""  # who made it before, with the source


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """One function to write. `library` is the same function in `rlhf_lib`: same name, signature and docstring."""

    lesson: str  # "03_gae"
    library: Callable
    specification: Callable  # slow and obvious: loops over single numbers, calls nothing of the library
    cases: Callable[[], list[Case]]
    twins: tuple[Twin, ...]
    hints: tuple[str, str, str]  # where to look; how to go about it; nearly the line
    difficulty: int  # 1 to 5
    importance: int  # 1 to 5: how often a mistake here ruins a run in silence
    minutes: int

    @property
    def name(self) -> str:
        return self.library.__name__

    @cached_property
    def sorted_cases(self) -> list[Case]:
        """The smallest first, so that the first failure is the one to look at."""
        return sorted(self.cases(), key=lambda case: case.size)
