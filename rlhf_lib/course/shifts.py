"""Alignment mistakes as parts: one thing that PPO reads is moved by one slot, everything else stays the library's.

Lesson 02 measures what each does to the advantages of a rollout, and to short PPO runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice

from torch import Tensor
from torch.nn.functional import pad

from ..algorithms import step_zero
from ..algorithms.parts import Parts
from ..algorithms.ppo_config import PPOConfig
from ..engine import sampling
from ..maths import advantages, losses, rewards
from ..maths.alignment import another_follows, is_last
from ..maths.masking import keep
from ..maths.records import Rollout
from ..maths.shapes import ActionMask, PerState
from .sandbox import instead_of
from .short_runs import SHORT, short_run

EIGHT_UPDATES = replace(SHORT, updates=8)


def late(x: Tensor) -> Tensor:
    """Everything one place later, as a wrong slice would have it; 0 or False comes in, the last one falls out."""
    return pad(x[:, :-1], (1, 0))


def early(x: Tensor) -> Tensor:
    """Everything one place earlier; the first falls out, 0 or False comes in behind the last one."""
    return pad(x[:, 1:], (0, 1))


def one_slot_later(action_mask: ActionMask) -> ActionMask:
    """The mask of N+ and TRL for values and rewards: one slot more, where the row has room for it."""
    return action_mask | late(action_mask)


@dataclass(frozen=True, kw_only=True)
class Shift:
    """One thing that is moved. `mask` moves the action mask where it is born, in the sampler."""

    name: str
    moves: str  # "rewards", "score", "values", "log-probs", "mask" or "nothing"
    changes: dict[str, Callable] = field(default_factory=dict)
    mask: Callable[[ActionMask], ActionMask] = lambda mask: mask

    @property
    def parts(self) -> Parts:
        """The library's parts with this mistake in them."""

        def sample(*args, **hyper):
            samples = sampling.sample(*args, **hyper)
            return replace(samples, action_mask=self.mask(samples.action_mask))

        return replace(Parts(), sample=sample, **self.changes)

    def replay(self, rollout: Rollout, judged: PerState) -> Rollout:
        """What this mistake would have recorded of these texts; `judged` is the reward model's word in every state."""
        mask = self.mask(rollout.action_mask)
        return replace(rollout, action_mask=mask, scores=self.parts.read_score(judged, rollout))


# ------------------------------------------------------------------------------------------------ what is moved


def _move_rewards(move: Callable) -> dict[str, Callable]:
    def penalise_kl(placed_scores, kl_per_token, action_mask, *, kl_coef):
        return move(rewards.penalise_kl(placed_scores, kl_per_token, action_mask, kl_coef=kl_coef))

    return dict(penalise_kl=penalise_kl)


def _move_values(move: Callable) -> dict[str, Callable]:
    """Wherever PPO reads them."""

    def gae(values, rewards, action_mask, *, gamma, lam):
        return advantages.gae(move(values), rewards, action_mask, gamma=gamma, lam=lam)

    def returns(gained, values, action_mask):
        return advantages.returns(gained, move(values), action_mask)

    def value_loss(values, old_values, returns, action_mask, *, clip):
        return losses.value_loss(move(values), move(old_values), returns, action_mask, clip=clip)

    return dict(gae=gae, returns=returns, value_loss=value_loss)


def _read_at_the_first_padding(per_state, texts):
    place = texts.sequence_lengths.clamp(max=per_state.shape[1] - 1)
    return per_state.gather(1, place[:, None]).squeeze(1)


def _recursion_over(mask_of: Callable, rewards_of: Callable = lambda rewards: rewards) -> dict[str, Callable]:
    """GAE and returns over other slots than the policy's loss."""

    def gae(values, rewards, action_mask, *, gamma, lam):
        return advantages.gae(values, rewards_of(rewards), mask_of(action_mask), gamma=gamma, lam=lam)

    def returns(gained, values, action_mask):
        return advantages.returns(gained, values, mask_of(action_mask))

    return dict(gae=gae, returns=returns)


def _value_loss_over(mask_of: Callable) -> dict[str, Callable]:
    def value_loss(values, old_values, returns, action_mask, *, clip):
        terms = losses.value_loss(values, old_values, returns, mask_of(action_mask), clip=clip)
        behind = keep(early(terms), is_last(action_mask))  # `ppo_loss` adds up over choices: count it with the last one
        return keep(terms, action_mask) + behind

    return dict(value_loss=value_loss)


def _paid_one_slot_later() -> dict[str, Callable]:
    def place_score(scores, action_mask):
        return rewards.place_score(scores, one_slot_later(action_mask))

    def penalise_kl(placed_scores, kl_per_token, action_mask, *, kl_coef):
        return placed_scores - kl_coef * keep(kl_per_token, action_mask)

    return dict(place_score=place_score, penalise_kl=penalise_kl)


def _score_own_tokens(model, tokens, action_mask, *, temperature, entropy=losses.entropy):
    """Each token scored by the logits of the state that has just read it."""
    logits = (model(input_ids=tokens, use_cache=False).logits.float() / temperature)[:, 1:]
    own = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return keep(own, action_mask), keep(entropy(logits), action_mask)


_LATER = {**_paid_one_slot_later(), **_recursion_over(one_slot_later)}

SHIFTS = (
    Shift(name="nothing", moves="nothing"),
    Shift(name="rewards one late", moves="rewards", changes=_move_rewards(late)),
    Shift(name="rewards one early", moves="rewards", changes=_move_rewards(early)),
    Shift(name="score read in padding", moves="score", changes=dict(read_score=_read_at_the_first_padding)),
    Shift(name="values one late", moves="values", changes=_move_values(late)),
    Shift(name="values one early", moves="values", changes=_move_values(early)),
    Shift(
        name="rewards and recursion late",
        moves="rewards",
        changes={**_recursion_over(late, rewards_of=late), **_value_loss_over(late)},
    ),
    Shift(name="log-probs one late", moves="log-probs", changes=dict(score_actions=_score_own_tokens)),
    Shift(name="mask one late", moves="mask", mask=late),
    Shift(name="mask one early", moves="mask", mask=early),
    Shift(name="mask without EOS", moves="mask", mask=another_follows),
    Shift(name="N+ and TRL", moves="score", changes={**_LATER, **_value_loss_over(one_slot_later)}),
    Shift(name="N+ and TRL, two of three", moves="score", changes=_LATER),
)


def shift(name: str) -> Shift:
    """raises  KeyError for a name that is not in SHIFTS"""
    return {one.name: one for one in SHIFTS}[name]


@dataclass(frozen=True)
class ShiftedRun:
    """A short run with a mistake in it: the metrics of each update, and the check that would have refused to start."""

    refused: str  # which of the three step-zero numbers was off and by how much; "" if none was
    metrics: list[dict]


def shifted_run(
    shift: Shift, config: PPOConfig = EIGHT_UPDATES, *, seed: int = 0, stop_after: int | None = None
) -> ShiftedRun:
    """Train with the mistake, also when the step-zero assertions object: what they say is only noted.

    stop_after  updates to make of the `config.updates` that the schedule counts on; all by default
    """
    refused = []
    assert_step_zero = step_zero.assert_step_zero

    def note(*args) -> dict[str, float]:
        try:
            return assert_step_zero(*args)
        except step_zero.StepZeroError as error:
            refused.append(str(error).split(" but ")[0])
            return {}

    with instead_of({assert_step_zero: note}):
        metrics = list(islice(short_run(shift.parts, config, seed=seed), stop_after))
    return ShiftedRun(refused[0] if refused else "", metrics)
