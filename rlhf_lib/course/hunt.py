"""Exercises in which a test is written: it must accept the library's function and reject every mutant.

A mutant is the library's function with a mistake that somebody made; a test that fails on it kills it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from . import sandbox
from .exercise import Exercise, Twin
from .observe import TIME_LIMIT, LibraryCalled, TimeUp, line_of, with_time_limit
from .verdict import Verdict

TOO_EASY = "a test that passes whatever it is given: torchtune had three whose tolerance of 1e6 let a constant pass"


@dataclass(frozen=True, kw_only=True)
class MutantHunt(Exercise):
    """`library` is a test of ours that kills all mutants; `under_test` is what it tests, and the only right one."""

    under_test: Callable
    mutants: tuple[Twin, ...]
    specification: Callable = None
    cases: Callable = tuple
    twins: tuple[Twin, ...] = ()

    def judge(self, test: Callable) -> Verdict:
        """How many mutants the test kills, if it accepts the right function."""
        complaint = self._of_the_right_one(test)
        if complaint is not None:
            return complaint
        alive = [mutant for mutant in self.mutants if not kills(test, mutant.answer)]
        killed, all_ = len(self.mutants) - len(alive), len(self.mutants)
        score = f"{killed} of {all_} mutants"
        if not alive:
            says = f"It accepts the right one and kills all {all_} mutants."
            return Verdict(self.name, "passed", says, score=score)
        return Verdict(
            self.name,
            "wrong",
            f"It accepts the right one and kills {score}.",
            mistake=f"It is {TOO_EASY}." if not killed else "",
            rows=tuple(("alive", mutant.says) for mutant in alive),
            next_step=f'Each mutant alive speaks to whoever made it. Stuck? hint("{self.name}") gives a first step.',
            score=score,
        )

    def _of_the_right_one(self, test: Callable) -> Verdict | None:
        """What to say if the test does not accept the right function; None if it does."""
        try:
            with sandbox.instead_of({self.under_test: sandbox.refusing(self.under_test)}):
                run(test, self.under_test)
        except NotImplementedError:
            return Verdict(self.name, "not attempted", "Fill in the stub above, then run this cell again.")
        except AssertionError as error:
            says = f"It rejects the library's {self.under_test.__name__}, which is right{_because(error)}."
            score = f"0 of {len(self.mutants)} mutants"
            return Verdict(self.name, "wrong", says, details=self._line(error), score=score)
        except LibraryCalled:
            says = "It compares with the library's own. Say what is right by hand: that is what a test is for."
            return Verdict(self.name, "error", says)
        except (Exception, TimeUp) as error:
            says = "it took too long" if isinstance(error, TimeUp) else f"it raised {type(error).__name__}: {error}"
            return Verdict(self.name, "error", f"With the right function {says}", details=self._line(error))
        return None

    def _line(self, error: BaseException) -> tuple[str, ...]:
        found = line_of(error, sandbox.filename_of(self.name))
        return (f"In line {found[0]} of your test: {found[1]}",) if found else ()


def kills(test: Callable, mutant: Callable) -> bool:
    """Whether the test fails on it, by an assertion or because the mutant breaks."""
    try:
        run(test, mutant)
    except (Exception, TimeUp):
        return True
    return False


def run(test: Callable, function: Callable) -> None:
    """The test with its printing kept apart and a time limit; raises what it raises."""
    with contextlib.redirect_stdout(None):
        with_time_limit(partial(test, function), TIME_LIMIT)


def _because(error: AssertionError) -> str:
    lines = str(error).strip().splitlines()
    return f" ({lines[0]})" if lines else ""
