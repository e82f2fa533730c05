"""Lesson 08's instrument: a run with a bug, healthy runs behind it, suspects, and instruments that cost points."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..museum import instruments
from ..museum.bug import Bug
from ..museum.cases import BlindCase, CaseBook, blind_case
from .instrument import Instrument, html_table, module, stylesheet
from .plain import plain, show

POINTS, PER_INSTRUMENT, PER_WRONG_NAME = 10, 1, 2
COUNTERS = ("update", "episodes")
LAST = 3  # updates whose gold is averaged


@dataclass(frozen=True)
class Question:
    """What may be asked of a case: `ask` gives lines of a name and an answer, in words."""

    name: str
    says: str
    ask: Callable[[BlindCase], list[tuple[str, str]]]


def bug_board(case: int = 1, *, questions: Iterable[Question] | None = None) -> BugBoard:
    """A blind case: look at its curves, strike suspects out, ask instruments, commit to a name; then the next case.

    case       the number of the first one; the same number is always the same case
    questions  what may be asked; QUESTIONS, the instruments of the museum, if not given
    """
    return BugBoard(case, tuple(QUESTIONS if questions is None else questions))


def fresh(case: int) -> dict:
    """What the controls are set to when a case begins."""
    return dict(case=case, update=0, struck=[], asked=[], chosen="", guesses=[], given_up=False)


class BugBoard(Instrument):
    """See `bug_board`. Python answers: the page knows the right name no sooner than the learner."""

    _esm = module("bugs")
    _css = stylesheet("bugs")

    def __init__(self, case: int, questions: tuple[Question, ...]):
        self.questions = {question.name: question for question in questions}
        self.book = CaseBook(first=case)
        self._found: dict[tuple[int, str], list] = {}
        self._settled: dict[int, int] = {}  # points, by case: what is asked afterwards is free
        super().__init__(data=self._data(fresh(case)), view=fresh(case))
        self.observe(self._answer, "view")

    def summary(self) -> str:
        return f"case {self.view['case']}, {len(self.data['suspects'])} suspects"

    def static_html(self) -> str:
        data = self.data
        updates = max(len(metric["least"]) for metric in data["metrics"])
        rows = [[metric["name"], *_with_signs(metric)] for metric in data["metrics"]]
        return "\n".join((
            html_table(
                f"Case {data['case']}, by update (▲ above all healthy runs, ▼ below them)", ["", *range(updates)], rows
            ),
            html_table("Suspects", ["", ""], enumerate(data["suspects"], start=1)),
        ))  # fmt: skip

    def _answer(self, change: dict) -> None:
        data = self._data(change["new"])
        if data != self.data:
            self.data = data

    def _data(self, view: dict) -> dict:
        case = blind_case(view["case"])
        asked = [name for name in view["asked"] if name in self.questions]
        guesses = [self.book.guess(case, name) for name in view["guesses"] if name in case.choices]
        over = view["given_up"] or any(guess.right for guess in guesses)
        wrong = sum(not guess.right for guess in guesses)
        points = 0 if view["given_up"] else max(0, POINTS - PER_INSTRUMENT * len(asked) - PER_WRONG_NAME * wrong)
        points = self._settled.setdefault(case.number, points) if over else self._settled.get(case.number, points)
        return plain(dict(
            case=case.number, metrics=_metrics(case.number), ended_by=case.ended_by, suspects=case.choices,
            questions=[(question.name, question.says) for question in self.questions.values()],
            findings=[dict(name=name, lines=self._finding(case, name)) for name in asked],
            answers=[dict(name=guess.name, right=guess.right, says=guess.says) for guess in guesses],
            revealed=_lines(case.reveal()) if over else [], points=points, score=self._score(),
        ))  # fmt: skip

    def _finding(self, case: BlindCase, name: str) -> list:
        """Asked once; a question that fails says how."""
        if (case.number, name) not in self._found:
            try:
                lines = self.questions[name].ask(case)
            except Exception as error:
                lines = [("it failed", f"{type(error).__name__}: {error}")]
            self._found[case.number, name] = lines
        return self._found[case.number, name]

    def _score(self) -> str:
        if not self._settled:
            return ""
        return f"{sum(self._settled.values())} of {POINTS * len(self._settled)} points so far, {self.book!r}"


@cache
def _metrics(number: int) -> list[dict]:
    """For each metric of every update: the run's, and the least and most of the healthy runs.

    What is logged before the first update only is left to an instrument.
    """
    case = blind_case(number)
    healthy = list(case.healthy.values())
    found = []
    for name in healthy[0]:
        steps = list(zip(*(run[name] for run in healthy)))
        if name not in COUNTERS and len(steps) > 1:
            least, most = [min(step) for step in steps], [max(step) for step in steps]
            found.append(dict(name=name, run=case.curves.get(name, []), least=least, most=most))
    return found


def side(value: float, least: float, most: float) -> str:
    """Where a number lies: "▲" above the healthy runs, "▼" below them, "" among them; "✕" if it is not finite."""
    if not math.isfinite(value):
        return "✕"
    return "▲" if value > most else "▼" if value < least else ""


def _with_signs(metric: dict) -> list[str]:
    columns = zip(metric["run"], metric["least"], metric["most"])
    cells = [f"{show(value)} {side(float(value), float(least), float(most))}".strip() for value, least, most in columns]
    return cells + ["ended"] * (len(metric["least"]) - len(cells))


def _lines(bug: Bug) -> list[tuple[str, str]]:
    return [
        ("the bug", bug.name), ("stage", bug.stage), ("what the code does", bug.says), ("symptom", bug.symptom),
        ("found by", bug.found_by), ("fix", bug.fix), ("source", bug.seen_in),
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------------- the instruments


def _first_rollout(case: BlindCase) -> list[tuple[str, str]]:
    seen = instruments.look(case, seed=case.seed)
    rollout, ended = seen.rollout, seen.rollout.has_eos
    row = int(ended.float().argmax())
    text = seen.words[row][int(rollout.prompt_lengths[row]) : int(rollout.sequence_lengths[row])]
    gaps = (seen.rewards.sum(1) - rollout.scores)[ended].abs()
    return [
        ("a text", " ".join(text)),
        ("rewards of a text against its score", f"off by at most {show(float(gaps.max()) if len(gaps) else 0)}"),
        ("mean of the advantages that count", show(float(seen.targets.advantages[rollout.action_mask].mean()))),
    ]


def _step_zero(case: BlindCase) -> list[tuple[str, str]]:
    gaps = instruments.step_zero(instruments.look(case, seed=case.seed))
    return [(name, show(gap, 6)) for name, gap in gaps.items()]


def _components(case: BlindCase) -> list[tuple[str, str]]:
    return list(instruments.try_components(case.parts()).items()) or [("all parts", "pass their tests")]


def _bisection(case: BlindCase) -> list[tuple[str, str]]:
    found = instruments.bisect(case, updates=1, seed=case.seed)
    return [(name, "the healthy run" if gap < 1e-3 else f"still off: {show(gap)}") for name, gap in found.items()]


def _gradients(case: BlindCase) -> list[tuple[str, str]]:
    found = instruments.gradient_norms(case, seed=case.seed)
    return [(f"{name} pulls at the policy's weights", show(norm)) for name, norm in found.items()]


def _critic_off(case: BlindCase) -> list[tuple[str, str]]:
    run = instruments.without_critic(case, seed=case.seed)
    healthy = [_last_gold(curves["gold"]) for curves in case.healthy.values()]
    return [
        ("gold with a value loss of 0", show(_last_gold([step["gold"] for step in run.metrics]))),
        ("gold of the run", show(_last_gold(case.curves.get("gold", [])))),
        ("gold of healthy runs", f"{show(min(healthy))} to {show(max(healthy))}"),
    ]


def _last_gold(values: list[float]) -> float:
    last = values[-LAST:]
    return sum(last) / len(last) if last else math.nan


def _after_the_crash(case: BlindCase) -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        left = instruments.post_mortem(case, Path(folder) / "dump", seed=case.seed)
    return [("not finite", ", ".join(left.not_finite()))] if left else [("no crash", "nothing to look at")]


QUESTIONS = (
    Question(
        "first rollout", "what the run writes, and what it makes of it, before anything is learned", _first_rollout
    ),
    Question("step zero", "three numbers that must be 0 before the first update", _step_zero),
    Question("component tests", "which parts fail a test that can be worked out by hand?", _components),
    Question("bisection", "the first update with one stage's parts the library's: is it the healthy run?", _bisection),
    Question("gradients", "how hard does each loss pull at the policy's weights?", _gradients),
    Question("without the critic", f"gold of the last {LAST} updates if the critic is never trained", _critic_off),
    Question("post-mortem", "does it break, and what is not finite then?", _after_the_crash),
)
