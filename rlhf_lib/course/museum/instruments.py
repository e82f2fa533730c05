"""Instruments for a run that may have a bug. Each answers one question by doing; those that train take seconds.

look(case)              the first rollout, its rewards and targets, before anything is learned
step_zero(case)         the three numbers that must be 0 before the first update
try_components(parts)   which parts fail a test that is small enough to be checked by hand
bisect(case)            the first updates again, one stage after the other with the library's parts: whose fault is it?
without_critic(case)    the run with a value loss of 0: does the policy degrade although the critic is never trained?
gradient_norms(case)    how hard policy loss and value loss each pull at the policy's weights
post_mortem(case, to)   runs until it breaks, and leaves a dump

A case is a `BlindCase` or a `Bug`: anything with `parts()` and `start(config, parts, ...)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from ...algorithms import ppo
from ...algorithms.parts import Parts
from ...algorithms.ppo_config import PPOConfig
from ...engine import dump
from ...engine.optimiser import NonFiniteError
from ...maths.diagnostics import step_zero_gaps
from ...maths.records import Rollout, Targets
from ...maths.shapes import PerAction
from ...pipeline.texts import PromptStream
from ...worlds.tiny_tldr.world import TinyTLDR
from .. import component_tests
from .bug import RUN
from .runs import HEALTHY, MuseumRun, buggy_run, steps

STAGE_OF_PART = {
    **dict.fromkeys(("prepare_reference", "sample", "score_actions", "state_values", "read_score"), "rollout"),
    **dict.fromkeys(("replace_score_without_eos", "place_score", "kl", "penalise_kl"), "rewards"),
    **dict.fromkeys(("gae", "returns", "whiten"), "targets"),
    **dict.fromkeys(("policy_loss", "value_loss", "entropy", "combine_losses", "masked_mean"), "loss"),
    "ppo_schedule": "update",
}
TESTED = {name.removeprefix("test_"): test for name, test in vars(component_tests).items() if name.startswith("test_")}


@dataclass(frozen=True)
class Seen:
    """A run's first rollout and what is made of it. `scored_again`: log-probs as the policy gives them for training."""

    rollout: Rollout
    rewards: PerAction
    targets: Targets
    scored_again: PerAction
    words: list[list[str]]


@dataclass(frozen=True)
class Changed:
    """A case with some parts exchanged once more."""

    case: object
    change: Callable[[Parts], Parts]

    def parts(self) -> Parts:
        return self.change(self.case.parts())

    def start(self, *args, **rest) -> ppo.PPOState:
        return self.case.start(*args, **rest)


def look(case, config: PPOConfig = RUN, *, seed: int = 0) -> Seen:
    """Let the run write and estimate, and score its texts once more as if it trained; nothing is learned."""
    world, parts = TinyTLDR(seed), case.parts()
    prompts = PromptStream(world, "ppo", batch_size=config.batch_size, updates=1)
    state = case.start(config, parts, seed=seed)
    rollout = ppo.collect(state, next(prompts.batches()), config, parts)
    rewards = ppo.token_rewards(rollout, config, parts)
    again, _ = parts.score_actions(state.policy, rollout.tokens, rollout.action_mask, temperature=config.temperature)
    words = [[world.tokenizer.decode([token]) for token in row] for row in rollout.tokens.tolist()]
    return Seen(rollout, rewards, ppo.estimate_targets(rollout, rewards, config, parts), again.detach(), words)


def step_zero(seen: Seen) -> dict[str, float]:
    """Three of the numbers of `assert_step_zero`, which here does not stop anybody."""
    rollout = seen.rollout
    gaps = step_zero_gaps(
        seen.scored_again, rollout.old_log_probs, rollout.ref_log_probs, rollout.sampler_log_probs, rollout.action_mask
    )
    return {name: float(gap) for name, gap in gaps.items()}


def try_components(parts: Parts) -> dict[str, str]:
    """The parts that fail their test, and what the test says. Needs no model."""
    found = {}
    for name, test in TESTED.items():
        try:
            test(getattr(parts, name))
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return found


def bisect(case, *, updates: int = 2, seed: int = 0) -> dict[str, float]:
    """How far each run is from a healthy one after some updates: as it is, and with one stage's parts the library's.

    The largest difference of any metric, as a share of the larger number. 0 means that the symptom is gone.
    """
    right = buggy_run(replace(HEALTHY, start=case.start), seed=seed, updates=updates)
    runs = {"as it is": case} | {
        f"{stage} by the library": Changed(case, lambda parts, stage=stage: with_library(parts, stage))
        for stage in dict.fromkeys(STAGE_OF_PART.values())
    }
    return {name: distance(buggy_run(run, seed=seed, updates=updates), right) for name, run in runs.items()}


def with_library(parts: Parts, stage: str) -> Parts:
    """The parts, of which those of a stage are the library's."""
    defaults = {field.name: field.default for field in fields(Parts)}
    return replace(parts, **{name: defaults[name] for name, of in STAGE_OF_PART.items() if of == stage})


def distance(run: MuseumRun, other: MuseumRun) -> float:
    """Of their last updates; infinite if only one came so far."""
    if len(run.metrics) != len(other.metrics):
        return math.inf
    pairs = [(run.metrics[-1][name], value) for name, value in other.metrics[-1].items()]
    return max(abs(a - b) / max(abs(a), abs(b), 1e-3) for a, b in pairs if math.isfinite(a) and math.isfinite(b))


def without_critic(case, config: PPOConfig = RUN, *, seed: int = 0, updates: int | None = None) -> MuseumRun:
    """The run with a value loss that is always 0."""
    return buggy_run(Changed(case, _no_value_loss), config, seed=seed, updates=updates)


def gradient_norms(case, *, seed: int = 0) -> dict[str, float]:
    """The norm of each loss's own gradient into the policy's weights, at the first step of the first update."""
    config, losses = replace(RUN, epochs=1), {"policy loss": _no_value_loss, "value loss": _no_policy_loss}
    runs = {name: buggy_run(Changed(case, off), config, seed=seed, updates=1) for name, off in losses.items()}
    return {name: run.metrics[0]["grad_norm_policy"] for name, run in runs.items()}


def post_mortem(case, folder: Path, *, seed: int = 0) -> dump.Dump | None:
    """Run until a loss or gradient is not finite and dump what it was made of; None if that never happens."""
    made = []
    try:
        made.extend(steps(case, RUN, seed))
    except NonFiniteError as error:
        facts = dict(stage="ppo", steps_done=len(made), checkpoint="none: a run of the museum")
        dump.write(folder, error, {}, facts)
        return dump.read(folder)
    return None


def _no_value_loss(parts: Parts) -> Parts:
    def value_loss(values, old_values, returns, action_mask, *, clip):
        return torch.zeros_like(returns)

    return replace(parts, value_loss=value_loss)


def _no_policy_loss(parts: Parts) -> Parts:
    def policy_loss(log_probs, old_log_probs, advantages, action_mask, *, clip):
        return torch.zeros_like(log_probs)

    return replace(parts, policy_loss=policy_loss)
