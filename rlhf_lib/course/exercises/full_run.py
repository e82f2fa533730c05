"""Lesson 07: `train_ppo` from its verbs. A case trains a model that is one table, and looks at all that is left."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...algorithms import ppo
from ...algorithms.parts import Parts
from ...algorithms.ppo import (
    Minibatch,
    PPOState,
    collect,
    estimate_targets,
    measure,
    minibatches,
    ppo_loss,
    token_rewards,
    update,
)
from ...algorithms.ppo_config import PPOConfig
from ...algorithms.step_zero import StepZeroError, assert_step_zero
from ...engine import sampling
from ...maths import kl
from ...maths.records import Prompts
from ..exercise import Case, Exercise, Twin
from ..table import Table

PREAMBLE = """
from collections.abc import Iterable, Iterator

import torch

from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.algorithms.ppo import (
    PPOState,
    collect,
    estimate_targets,
    measure,
    minibatches,
    ppo_loss,
    token_rewards,
    update,
)
from rlhf_lib.algorithms.ppo_config import PPOConfig
from rlhf_lib.algorithms.step_zero import assert_step_zero
from rlhf_lib.maths.records import Prompts
"""
VOCAB, EOS, PAD, PROMPT = 7, 1, 0, 3  # of the table; tokens of a prompt
UNEQUAL = 0.6  # spread of the weights

MISSING = type("metric that is missing", (), {})()  # a check says what kind of thing it found

# ------------------------------------------------------------------------------------------------ how it is tried


def trained_by(train_ppo: Callable) -> Callable:
    """What a training with this `train_ppo` leaves behind, for settings that can be read."""

    def training(
        *, updates: int, epochs: int, minibatches: int, batch_size: int, sampler: str, kl: str, stop_after: int
    ) -> dict[str, Tensor | object]:
        config = PPOConfig(
            updates=updates, epochs=epochs, minibatches=minibatches, batch_size=batch_size, micro_batch_size=4,
            response_length=1, learning_rate=0.05, temperature=1.0,
        )  # fmt: skip
        parts = replace(Parts(), sample=SAMPLERS[sampler], kl=ESTIMATORS[kl])
        state = _new_state(config, parts)
        rows, counts, refused_at = [], [], math.inf
        try:
            for metrics in train_ppo(state, _prompts(config), config, parts):
                rows.append(metrics)
                counts.append(float(state.update))
                if len(rows) == stop_after:  # as a caller does who has seen enough
                    break
        except StepZeroError:
            refused_at = float(len(rows))
        return {
            "number of updates until the step-zero assertions refuse": torch.tensor(refused_at).double(),
            **{name: _column(rows, name) for name in METRICS},
            "state.update, as seen at each yield": torch.tensor(counts).double(),
            "policy's weights, at the end": state.policy.head.weight.detach().double(),
            "critic's weights, at the end": state.critic.score.weight.detach().double(),
        }

    return training


def _new_state(config: PPOConfig, parts: Parts) -> PPOState:
    generator = torch.Generator().manual_seed(0)

    def table() -> Table:
        logits = UNEQUAL * torch.randn(VOCAB, VOCAB, generator=generator)
        return Table(logits, UNEQUAL * torch.randn(VOCAB, generator=generator))

    policy, critic, reward_model = table(), table(), table()
    return ppo.new_state(
        policy, critic, reward_model, config, parts, seed=0, eos_token_id=EOS, pad_token_id=PAD
    )  # fmt: skip


def _prompts(config: PPOConfig) -> Iterator[Prompts]:
    """As many batches as there are updates, every one another."""
    for number in range(config.updates):
        tokens = sampling.uniforms("exercise 07", number, rows=config.batch_size, steps=PROMPT)
        yield Prompts((2 + tokens * (VOCAB - 2)).long(), torch.full((config.batch_size,), PROMPT))


def _column(rows: list[dict], name: str) -> Tensor | object:
    """A metric in every update that has it."""
    found = [float(row[name]) for row in rows if name in row]
    return torch.tensor(found, dtype=torch.float64) if found else MISSING


def _sample_hotter(*args, temperature, **tokens):
    return sampling.sample(*args, temperature=2 * temperature, **tokens)


SAMPLERS = {"the library's": sampling.sample, "one that draws at twice the temperature": _sample_hotter}
ESTIMATORS = {"kl_k1": kl.kl_k1, "kl_k2": kl.kl_k2}
METRICS = (
    "update", "episodes", "kl_before_first_update", "ratio_error_before_first_update", "sampler_forward_gap",
    "kl_per_sequence", "entropy_per_token", "score", "advantage_mean", "advantage_std", "explained_variance",
    "learning_rate", "policy_loss", "value_loss", "approx_kl", "clip_fraction", "ratio_max", "grad_norm_policy",
    "grad_norm_value",
)  # fmt: skip


def _cases() -> list[Case]:
    plain = dict(updates=1, epochs=1, minibatches=1, batch_size=8, sampler="the library's", kl="kl_k1", stop_after=99)
    changes = {
        "one update of one step": {},
        "two updates": dict(updates=2),
        "three updates of two epochs in two minibatches": dict(updates=3, epochs=2, minibatches=2),
        "a caller who stops after the first update": dict(updates=3, epochs=2, stop_after=1),
        "a sampler that draws from another distribution": dict(updates=2, sampler=list(SAMPLERS)[1]),
        "another estimator of the KL in `parts`": dict(updates=2, kl="kl_k2"),
    }
    return [Case(label, {**plain, **change}, through=trained_by, tolerance=1e-6) for label, change in changes.items()]


# ------------------------------------------------------------------------------------------------ what is right


def train_ppo_specification(
    state: PPOState, prompts: Iterable[Prompts], config: PPOConfig, parts: Parts = Parts()
) -> Iterator[dict]:
    """One thing after the other, without a loop over batches: an update is what happens between two `next`."""
    waiting = iter(prompts)
    while (batch := next(waiting, None)) is not None:
        rollout = collect(state, batch, config, parts)
        state.step_zero = assert_step_zero(state.policy, rollout, config, parts) if not state.update else {}
        targets = estimate_targets(rollout, token_rewards(rollout, config, parts), config, parts)
        pieces = list(minibatches(state, rollout, targets, config))  # config.epochs * config.minibatches of them
        while pieces:
            update(state, ppo_loss(state, pieces.pop(0), config, parts), config, parts)
        metrics = measure(state, rollout, targets, config, parts)
        state.update = state.update + 1
        yield metrics


# ------------------------------------------------------------------------------------------------ known mistakes


def _as_asked(_, *what):
    return minibatches(*what)


def _one_update(
    state, batch, config, parts, *, rollout=None, check=True, pieces=_as_asked, count_first=False, measure_first=False
) -> tuple[dict, object]:
    """An update in which one thing may be otherwise than it should."""
    rollout = rollout or collect(state, batch, config, parts)
    if check and state.update == 0:
        state.step_zero = assert_step_zero(state.policy, rollout, config, parts)
    targets = estimate_targets(rollout, token_rewards(rollout, config, parts), config, parts)
    early = measure(state, rollout, targets, config, parts) if measure_first else None
    for piece in pieces(parts, state, rollout, targets, config):
        update(state, ppo_loss(state, piece, config, parts), config, parts)
    state.update += count_first
    return early or measure(state, rollout, targets, config, parts), rollout


def _otherwise(**change: object) -> Callable:
    """The page with one thing changed in its updates."""

    def train_ppo(state, prompts, config, parts=Parts()):
        for batch in prompts:
            metrics, _ = _one_update(state, batch, config, parts, **change)
            state.update += 1
            yield metrics

    return train_ppo


def _collected_once(state, prompts, config, parts=Parts()):
    rollout = None
    for batch in prompts:
        metrics, rollout = _one_update(state, batch, config, parts, rollout=rollout)
        state.update += 1
        yield metrics


def _always_asserted(state, prompts, config, parts=Parts()):
    for batch in prompts:
        rollout = collect(state, batch, config, parts)
        state.step_zero = assert_step_zero(state.policy, rollout, config, parts)
        metrics, _ = _one_update(state, batch, config, parts, rollout=rollout, check=False)
        state.update += 1
        yield metrics


def _counted_after_the_yield(state, prompts, config, parts=Parts()):
    for batch in prompts:
        yield _one_update(state, batch, config, parts)[0]
        state.update += 1


def _counted_before_measuring(state, prompts, config, parts=Parts()):
    for batch in prompts:
        yield _one_update(state, batch, config, parts, count_first=True)[0]


def _never_counted(state, prompts, config, parts=Parts()):
    for batch in prompts:
        yield _one_update(state, batch, config, parts)[0]


def _all_at_once(state, prompts, config, parts=Parts()):
    rows = []
    for batch in prompts:
        rows.append(_one_update(state, batch, config, parts)[0])
        state.update += 1
    return rows


def _first_minibatch(_, *what):
    return itertools.islice(minibatches(*what), 1)


def _whole_rollout(_, state, rollout, targets, config):
    return [Minibatch(rollout, targets)] * config.epochs


def _targets_of_their_own(parts, *what):
    config = what[-1]
    for piece in minibatches(*what):
        rewards = token_rewards(piece.rollout, config, parts)
        yield Minibatch(piece.rollout, estimate_targets(piece.rollout, rewards, config, parts))


def _one_step_for_all(state, prompts, config, parts=Parts()):
    for batch in prompts:
        rollout = collect(state, batch, config, parts)
        if state.update == 0:
            state.step_zero = assert_step_zero(state.policy, rollout, config, parts)
        targets = estimate_targets(rollout, token_rewards(rollout, config, parts), config, parts)
        pieces = minibatches(state, rollout, targets, config)
        losses = itertools.chain.from_iterable(ppo_loss(state, piece, config, parts) for piece in pieces)
        update(state, losses, config, parts)
        metrics = measure(state, rollout, targets, config, parts)
        state.update += 1
        yield metrics


def _own_parts(state, prompts, config, parts=Parts()):
    for batch in prompts:
        metrics, _ = _one_update(state, batch, config, Parts())
        state.update += 1
        yield metrics


EXERCISES = (
    Exercise(
        lesson="07_full_gpu_run",
        library=ppo.train_ppo,
        specification=train_ppo_specification,
        cases=_cases,
        difficulty=3,
        importance=5,
        minutes=20,
        hints=(
            "Six verbs in the order in which one needs what the other gives: texts, rewards, targets, minibatches, "
            "a loss and a step for each of them, metrics.",
            "Three things are easily forgotten. The assertions of step zero belong behind the first rollout and before "
            "the first step. The count goes up before the caller gets the metrics, who may stop there. And what is "
            "yielded is one update, not a list of all.",
            "for batch in prompts: collect; if state.update == 0, keep what assert_step_zero returns in "
            "state.step_zero; token_rewards; estimate_targets; for each of minibatches(...): update(state, "
            "ppo_loss(...), ...); measure; count; yield.",
        ),
        twins=(
            Twin("you train on the first rollout for ever: every update needs texts of its own", _collected_once),
            Twin(
                "you start without the step-zero assertions, so that a sampler that draws from another distribution "
                "trains in silence",
                _otherwise(check=False),
                "the write-up's first symptom, a KL that was not zero before the first update",
            ),
            Twin(
                "you assert step zero before every update: after the first one policy and reference differ, as they "
                "should",
                _always_asserted,
            ),
            Twin(
                "you count the update after the yield: whoever stops at a yield, or saves a checkpoint there, makes "
                "that update twice",
                _counted_after_the_yield,
                "an early version of this library",
            ),
            Twin("you count the update before it is measured: it is logged under the next one's number",
                 _counted_before_measuring),
            Twin(
                "you never count: the learning rate never falls, and every rollout draws the same random numbers",
                _never_counted,
            ),
            Twin("you return all metrics at the end: nobody can watch, save or stop a run", _all_at_once),
            Twin("you measure before the steps: losses, ratio and clip fraction of this update are not in the metrics",
                 _otherwise(measure_first=True)),
            Twin("you take one minibatch and leave the others, and all further epochs",
                 _otherwise(pieces=_first_minibatch)),
            Twin("you take the whole rollout in every epoch, however many minibatches were asked for",
                 _otherwise(pieces=_whole_rollout)),
            Twin(
                "you estimate targets in each minibatch: advantages are whitened over a part of the rollout, not once "
                "over all of it",
                _otherwise(pieces=_targets_of_their_own),
            ),
            Twin("you make one step of all minibatches and epochs together: the second one is to see what the first "
                 "one changed", _one_step_for_all),
            Twin("you call the verbs with the library's parts and not with `parts`: nothing that is swapped in is used",
                 _own_parts),
        ),
    ),
)  # fmt: skip
