"""A short run with the learner's functions beside the same run with the library's: do they train?"""

from __future__ import annotations

import functools
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

from tqdm.auto import tqdm

from ..algorithms.parts import Parts
from ..algorithms.ppo_config import PPOConfig
from ..engine import models
from . import answers
from .exercises import MODULES, by_name, of_lesson
from .fine_tuning import FineTuning, fine_tuning_run
from .hunt import MutantHunt
from .precision import policy_loss_over
from .sandbox import instead_of
from .short_runs import SHORT, short_run

CLOSE = 1e-3  # metrics of the first update; later ones may part by a token, where rounding decides a draw


@dataclass(frozen=True)
class Kind:
    """A kind of short run: what its steps are called, and what is drawn of them."""

    run: Callable[..., Iterator[dict]]
    step: str
    steps: str
    shown: dict[str, str]


PPO = Kind(
    short_run, "PPO update", "PPO updates",
    {"gold": "gold score, at most 4", "score": "reward model's score", "kl_per_sequence": "KL, nats a summary"},
)  # fmt: skip
SFT_AND_REWARD_MODEL = Kind(
    fine_tuning_run, "step", "steps of SFT and of the reward model",
    {"unseen_nats_per_token": "SFT: nats a token, unseen posts", "unseen_accuracy": "reward model: accuracy, unseen"},
)  # fmt: skip
KINDS = {PPOConfig: PPO, FineTuning: SFT_AND_REWARD_MODEL}
CONFIGS = {  # of every other lesson: SHORT
    "06_sft_and_reward_model": FineTuning(),
    "09_mixed_precision": replace(SHORT, updates=3),  # a ratio that never overflows changes nothing
    "10_memory_and_speed": replace(SHORT, updates=3),  # it changes memory, not results
}
BEFORE_THE_WHOLE = tuple(lesson for lesson in MODULES if lesson < "07")
BUILDS_ON = {"07_full_gpu_run": BEFORE_THE_WHOLE}
NOT_IN_PPO = {"target_mask", "sft_loss", "preference_loss", "kl_k2"}  # SFT's, the reward model's, and nobody's
Config = PPOConfig | FineTuning


@dataclass(frozen=True)
class Trial:
    """Both runs' metrics, and how often each of the learner's functions was called."""

    calls: dict[str, int]
    yours: list[dict]
    library: list[dict]
    kind: Kind = PPO

    @property
    def first_update_agrees(self) -> bool:
        """Whether every metric of the first update is the library's."""
        mine, theirs = self.yours[0], self.library[0]
        return all(abs(mine[name] - theirs[name]) <= CLOSE * max(1.0, abs(theirs[name])) for name in theirs)

    def __repr__(self) -> str:
        called = ", ".join(f"{name} {count} times" for name, count in self.calls.items())
        first = "is" if self.first_update_agrees else "is NOT"
        return (
            f"{len(self.yours)} {self.kind.steps} with your functions. Called: {called}.\n"
            f"Your first {self.kind.step.split()[-1]} {first} the library's."
        )

    def _ipython_display_(self) -> None:
        """Words, then the picture: of one output in two forms a notebook would show the picture alone."""
        from IPython.display import Image, display

        print(self)
        display(Image(self.picture()))

    def picture(self) -> bytes:
        """Both runs' curves, as a PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 2.8), layout="constrained")
        for axes, (name, label) in zip(figure.subplots(1, len(self.kind.shown)), self.kind.shown.items(), strict=True):
            axes.plot([step[name] for step in self.library], "-", linewidth=5, alpha=0.35, label="library")
            axes.plot([step[name] for step in self.yours], "--o", markersize=4, label="yours")
            axes.set(xlabel=self.kind.step, title=label)
            axes.legend()
        page = io.BytesIO()
        figure.savefig(page, format="png", dpi=80, facecolor="white")
        return page.getvalue()


@dataclass(frozen=True)
class NothingToTrainWith:
    """What a trial says before any answer has passed."""

    lesson: str

    def __repr__(self) -> str:
        return f"No answer to {self.lesson} has passed its check yet. One is enough: then run this cell again."


def train_with(lesson: str, config: Config | None = None, *, seed: int = 0) -> Trial | NothingToTrainWith:
    """Train with the answers to a lesson that have passed, and once more with the library's functions.

    raises  KeyError for a lesson without exercises, or one in which only tests are written
    """
    if all(isinstance(exercise, MutantHunt) for exercise in of_lesson(lesson)):
        raise KeyError(f"there is no lesson {lesson!r} with functions to train with")
    mine = answers.load(lesson)
    if not mine:
        return NothingToTrainWith(lesson)
    return trial({**kept_for_ppo(BUILDS_ON.get(lesson, ())), **mine}, config or CONFIGS.get(lesson, SHORT), seed=seed)


def kept_for_ppo(lessons: Iterable[str] = BEFORE_THE_WHOLE) -> dict[str, Callable]:
    """The learner's answers to these lessons that have passed, by name: those that PPO has a use for."""
    found: dict[str, Callable] = {}
    for lesson in lessons:
        found |= answers.load(lesson)
    return {name: function for name, function in found.items() if name not in NOT_IN_PPO}


def trial(mine: Mapping[str, Callable], config: Config = SHORT, *, seed: int = 0) -> Trial:
    """The same short run twice, with the functions given by name and with the library's."""
    calls: Counter[str] = Counter({name: 0 for name in mine})
    kind = KINDS[type(config)]
    ask = dict(seed=seed)
    if "masked_softmax" in mine:
        ask["open_attention"] = True  # fused attention would never call it
    with in_use({name: _counted(name, function, calls) for name, function in mine.items()}) as parts:
        yours = list(_shown("yours", kind.run(parts, config, **ask), config.updates))
    library = list(_shown("library", kind.run(Parts(), config, **ask), config.updates))
    return Trial(dict(calls), yours, library, kind)


@contextmanager
def in_use(mine: Mapping[str, Callable]) -> Iterator[Parts]:
    """The parts with these functions in their slots; those without a slot stand in for the library's meanwhile."""
    slots = {field.name: name for field in fields(Parts) for name in mine if field.default is by_name(name).library}
    others = {by_name(name).library: function for name, function in mine.items() if name not in slots.values()}
    # The library's scorer never makes all logits, so it has no use for a function that takes them.
    plain = {"score_actions": models.score_actions_from_logits} if "action_log_probs" in mine else {}
    if "safe_ratio" in mine:  # PPO's own loss trusts float32's range
        plain["policy_loss"] = functools.partial(policy_loss_over, ratio=mine["safe_ratio"])
    with instead_of(others):
        yield replace(Parts(), **plain, **{slot: mine[name] for slot, name in slots.items()})


def _counted(name: str, function: Callable, calls: Counter[str]) -> Callable:
    @functools.wraps(function)
    def counted(*args: object, **hyper: object) -> object:
        calls[name] += 1
        return function(*args, **hyper)

    function.__globals__[name] = counted  # for the learner's other functions, which call it by its name
    return counted


def _shown(whose: str, steps: Iterator[dict], total: int) -> Iterator[dict]:
    return tqdm(steps, total=total, desc=whose, leave=False)
