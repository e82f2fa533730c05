"""Lesson 05: the clipped policy and value losses, entropy, and two diagnostics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...maths import diagnostics, losses
from ..exercise import Case, Exercise, Twin
from .cases import Tensors, as_wide_as_actions, of_every_shape, on, refuse_other_widths, rows_of

PREAMBLE = """
import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lib.maths.alignment import check_one_wider, values_before
from rlhf_lib.maths.losses import log_ratio
from rlhf_lib.maths.masking import keep
from rlhf_lib.maths.shapes import ActionMask, PerAction, PerState
"""

# ------------------------------------------------------------------------------------------------ what is right


def _each_action(action_mask: Tensor) -> Iterator[tuple[int, int]]:
    for row, places in enumerate(rows_of(action_mask)):
        for t in places:
            yield row, t


def policy_loss_specification(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, action_mask: Tensor, *, clip: float
) -> Tensor:
    """The worse of two losses, one action at a time."""
    found = torch.zeros_like(log_probs)
    for row, t in _each_action(action_mask):
        ratio = math.exp(float(log_probs[row, t]) - float(old_log_probs[row, t]))
        advantage = float(advantages[row, t])
        clipped = min(max(ratio, 1 - clip), 1 + clip)
        found[row, t] = max(-advantage * ratio, -advantage * clipped)
    return found


def value_loss_specification(
    values: Tensor, old_values: Tensor, returns: Tensor, action_mask: Tensor, *, clip: float
) -> Tensor:
    """The worse of two squared errors, halved, one action at a time."""
    refuse_other_widths(values, returns)
    refuse_other_widths(old_values, returns)
    found = torch.zeros_like(returns)
    for row, t in _each_action(action_mask):
        now, old, target = (float(x[row, t]) for x in (values, old_values, returns))
        clipped = old + min(max(now - old, -clip), clip)
        found[row, t] = max((now - target) ** 2, (clipped - target) ** 2) / 2
    return found


def entropy_specification(logits: Tensor) -> Tensor:
    """Minus the sum of p log p over what is possible at all."""
    found = torch.zeros(logits.shape[:-1], dtype=logits.dtype)
    for place, row in zip(range(found.numel()), logits.reshape(-1, logits.shape[-1]).tolist()):
        weights = [math.exp(logit - max(row)) for logit in row]
        p = [weight / sum(weights) for weight in weights]
        found.view(-1)[place] = -sum(q * math.log(q) for q in p if q > 0)
    return found


def approx_kl_specification(log_probs: Tensor, old_log_probs: Tensor, action_mask: Tensor) -> Tensor:
    """r - 1 - log r with r = new / old."""
    found = torch.zeros_like(log_probs)
    for row, t in _each_action(action_mask):
        log_ratio = float(log_probs[row, t]) - float(old_log_probs[row, t])
        found[row, t] = math.exp(log_ratio) - 1 - log_ratio
    return found


def clip_fraction_specification(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, action_mask: Tensor, *, clip: float
) -> Tensor:
    """1 where raising the ratio is no longer rewarded, or lowering it."""
    found = torch.zeros_like(log_probs)
    for row, t in _each_action(action_mask):
        ratio = math.exp(float(log_probs[row, t]) - float(old_log_probs[row, t]))
        advantage = float(advantages[row, t])
        too_high, too_low = ratio > 1 + clip, ratio < 1 - clip
        found[row, t] = float((advantage > 0 and too_high) or (advantage < 0 and too_low))
    return found


# ------------------------------------------------------------------------------------------------ what is tried

POLICY = ("log_probs", "old_log_probs", "advantages", "action_mask")
FAR_UP = {"log_probs": -1.0, "old_log_probs": -26.0, "advantages": -1.0}


def _cases(names: tuple[str, ...], gradients: tuple[str, ...] = (), refused=(), **hyper: float) -> Callable:
    def make() -> list[Case]:
        shapes = [*map(_closer, of_every_shape()), *refused]
        return [Case(label, {**{name: x[name] for name in names}, **hyper}, gradients) for label, x in shapes]

    return make


def _policy_cases() -> list[Case]:
    """Every shape; and one action far beyond the clip."""
    far = {name: torch.tensor([[number]], dtype=torch.float64) for name, number in FAR_UP.items()}
    arguments = {**far, "action_mask": torch.ones(1, 1, dtype=torch.bool), "clip": 0.2}
    label = "an action that is punished, and 25 nats likelier than at the rollout"
    return [*_cases(POLICY, ("log_probs",), clip=0.2)(), Case(label, arguments, ("log_probs",))]


def _closer(shape: tuple[str, Tensors]) -> tuple[str, Tensors]:
    """Old values within and beyond a clip of 0.2 of the new ones."""
    label, tensors = shape
    return label, {**tensors, "old_values": tensors["values"] + 0.2 * tensors["old_values"]}


def _one_of_them_narrow() -> list[tuple[str, Tensors]]:
    """Cases that have to be refused: new or old values without their last column, the other as it should be."""
    found = []
    for label, narrow in as_wide_as_actions():
        rows = len(narrow["action_mask"])
        for name in ("values", "old_values"):
            wide = torch.cat([narrow[name], torch.zeros(rows, 1, dtype=torch.float64)], 1)
            found.append((label, {**narrow, name: wide}))
    return found


def _clip_cases() -> list[Case]:
    """Every shape; an advantage of 0, which nothing can clip; and a ratio exactly on the edge of the range."""
    edges = {
        "advantages of exactly 0: neither term is larger": ([[1.0, -1.0]], [[0.0, 0.0]], 0.2),
        "identical policies and a clip of 0: the ratio stands on the edge": ([[0.0, 0.0]], [[1.0, -1.0]], 0.0),
    }
    return _cases(POLICY, clip=0.2)() + [
        Case(label, {
            "log_probs": torch.tensor(log_ratios, dtype=torch.float64) - 1,
            "old_log_probs": -torch.ones(1, 2, dtype=torch.float64),
            "advantages": torch.tensor(advantages, dtype=torch.float64),
            "action_mask": torch.ones(1, 2, dtype=torch.bool),
            "clip": clip,
        })
        for label, (log_ratios, advantages, clip) in edges.items()
    ]  # fmt: skip


def _entropy_cases() -> list[Case]:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    cut = logits[0].clone()
    cut[:, 3:] = -torch.inf
    cut[1, 1:] = -torch.inf
    named = {
        "one distribution over three tokens": logits[0, 0, :3],
        "three places": logits[0],
        "two rows of three places": logits,
        "large logits": 400 * logits[0],
        "tokens that top-k has removed: their logits are minus infinity": cut,
    }
    return [Case(label, {"logits": x.clone()}, ("logits",)) for label, x in named.items()]


# ------------------------------------------------------------------------------------------------ what goes wrong


def _policy_with(
    worse: Callable = torch.maximum,
    clamped: Callable = lambda r, clip: r.clamp(1 - clip, 1 + clip),
    ratio: Callable = torch.exp,
    sign: float = -1.0,
) -> Callable:
    def policy_loss(log_probs, old_log_probs, advantages, action_mask, *, clip):
        r = ratio(on(action_mask, log_probs - old_log_probs))
        a = sign * on(action_mask, advantages)
        return on(action_mask, worse(a * r, a * clamped(r, clip)))

    return policy_loss


def _policy_within(nats: Callable[[float], float]) -> Callable:
    """The logarithm of the ratio is kept within so many nats before anything else happens."""

    def policy_loss(log_probs, old_log_probs, advantages, action_mask, *, clip):
        r = on(action_mask, log_probs - old_log_probs).clamp(-nats(clip), nats(clip)).exp()
        a = -on(action_mask, advantages)
        return on(action_mask, torch.maximum(a * r, a * r.clamp(1 - clip, 1 + clip)))

    return policy_loss


def _policy_masked_last(log_probs, old_log_probs, advantages, action_mask, *, clip):
    r = (log_probs - old_log_probs).exp()
    return on(action_mask, torch.maximum(-advantages * r, -advantages * r.clamp(1 - clip, 1 + clip)))


def _policy_unmasked(log_probs, old_log_probs, advantages, action_mask, *, clip):
    r = (log_probs - old_log_probs).exp()
    return torch.maximum(-advantages * r, -advantages * r.clamp(1 - clip, 1 + clip))


def _value_with(
    worse: Callable = torch.maximum,
    factor: float = 0.5,
    centre: Callable = lambda now, old, target: old,
    at: slice = slice(None, -1),
) -> Callable:
    def value_loss(values, old_values, returns, action_mask, *, clip):
        now, old, target = (on(action_mask, x) for x in (values[:, at], old_values[:, at], returns))
        middle = centre(now, old, target)
        clipped = middle + (now - middle).clamp(-clip, clip)
        return on(action_mask, factor * worse((now - target) ** 2, (clipped - target) ** 2))

    return value_loss


def _value_masked_last(factor: float = 0.5) -> Callable:
    def value_loss(values, old_values, returns, action_mask, *, clip):
        now, old = values[:, :-1], old_values[:, :-1]
        clipped = old + (now - old).clamp(-clip, clip)
        return on(action_mask, factor * torch.maximum((now - returns) ** 2, (clipped - returns) ** 2))

    return value_loss


def _of_log_ratio(estimate: Callable) -> Callable:
    return lambda log_probs, old_log_probs, action_mask: on(
        action_mask, estimate(on(action_mask, log_probs - old_log_probs))
    )


def _clipped_where(is_clipped: Callable) -> Callable:
    def clip_fraction(log_probs, old_log_probs, advantages, action_mask, *, clip):
        ratio = on(action_mask, log_probs - old_log_probs).exp()
        return on(action_mask, is_clipped(ratio, on(action_mask, advantages), clip).double())

    return clip_fraction


def _rules(r: Tensor, a: Tensor, clip: float) -> Tensor:
    return -a * r.clamp(1 - clip, 1 + clip) > -a * r


def _entropy(logits: Tensor) -> Tensor:
    """A right entropy for the twins to spoil."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)


PPO_2017 = "Schulman et al. 2017 write an objective, which is maximised; here it is a loss"

POLICY_TWINS = (
    Twin("you took the smaller of the two losses: the paper's minimum is of an objective, a loss needs the maximum",
         _policy_with(torch.minimum), PPO_2017),
    Twin("you have the sign turned: this is the objective, and minimising it unlearns whatever worked",
         _policy_with(torch.minimum, sign=1.0), PPO_2017),
    Twin("you use the clipped term alone: an action that the clip has caught on the wrong side can never come back",
         _policy_with(lambda unclipped, clipped: clipped)),
    Twin("you do not clip: nothing keeps several epochs on one rollout from running away",
         _policy_with(lambda unclipped, clipped: unclipped)),
    Twin("your ratio is upside down: it is the new probability over the old one",
         _policy_with(ratio=lambda x: (-x).exp())),
    Twin("you forgot the exponential: the difference of log-probabilities is the ratio's logarithm",
         _policy_with(ratio=lambda x: x)),
    Twin("you clipped the logarithm of the ratio: the clip is meant for the ratio itself",
         _policy_with(clamped=lambda r, clip: r.log().clamp(-clip, clip).exp())),
    Twin("you clipped the logarithm of the ratio, and use that term alone: the clip is meant for the ratio, and of two "
         "losses the larger one counts",
         _policy_with(lambda unclipped, clipped: clipped, lambda r, clip: r.log().clamp(-clip, clip).exp())),
    Twin("you clipped the logarithm of the ratio in both terms: what the clip has caught on the wrong side gets no "
         "gradient, and can never come back", _policy_within(lambda clip: clip)),
    *(Twin(f"you kept the logarithm of the ratio within {nats} nats: an action that was punished and has moved further "
           "gets no gradient back", _policy_within(lambda clip, nats=nats: nats),
           "verl keeps it within 20 (REFERENCES.md#verl): lesson 09 weighs that; the formula here has no such limit")
      for nats in (5, 10, 20)),
    Twin("you masked after the exponential: one bad number in padding leaves the value right and the gradient NaN",
         _policy_masked_last, "the write-up's infinite gradients came through exp(ratio) as well"),
    Twin("you did not mask: prompt and padding have a loss", _policy_unmasked),
    Twin("you cut the ratio off from the policy: no gradient, so nothing is learned",
         _policy_with(ratio=lambda x: x.exp().detach())),
)  # fmt: skip

VALUE_TWINS = (
    Twin("you took the smaller error: the clip is there to be pessimistic, the larger one counts",
         _value_with(torch.minimum)),
    Twin("you do not clip", _value_with(lambda error, clipped: error)),
    Twin("you use the clipped error alone: a value that was caught far from its target gets no gradient any more",
         _value_with(lambda error, clipped: clipped)),
    Twin("you forgot the half", _value_with(factor=1.0), "the factor 1/2 is one of the details of Huang et al. 2024"),
    Twin("you keep the value itself within the clip: what is limited is how far it moved since the rollout",
         _value_with(centre=lambda now, old, target: torch.zeros_like(old))),
    Twin("you read the value after the choice: returns belong to the state in which the choice was made",
         _value_with(at=slice(1, None)), "the write-up's alignment bug, on the side of the critic"),
    Twin("you masked after the square: one bad number in padding makes the gradient NaN", _value_masked_last()),
    Twin("you forgot the half, and you masked after the square: one bad number in padding makes the gradient NaN",
         _value_masked_last(factor=1.0)),
    Twin("you take the absolute error, not its square",
         _value_with(lambda error, clipped: torch.maximum(error.sqrt(), clipped.sqrt()))),
)  # fmt: skip

ENTROPY_TWINS = (
    Twin("you have the sign turned: an entropy is never negative",
         lambda logits: -_entropy(logits)),
    Twin("you averaged over the vocabulary: the probabilities are the weights already, sum",
         lambda logits: _entropy(logits) / logits.shape[-1]),
    Twin("you multiplied 0 by minus infinity: where a probability is 0 its term is 0, not NaN",
         lambda logits: -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1),
         "top-k and top-p leave zeros behind; the write-up met them in its first bug"),
    Twin("you chose 0 after the product: the value is right where a probability is 0, but its gradient is NaN",
         lambda logits: -torch.where(
             logits.softmax(-1) > 0, logits.softmax(-1) * logits.log_softmax(-1), 0.0).sum(-1)),
    Twin("you counted in bits: entropies here are in nats, natural logarithms",
         lambda logits: _entropy(logits) / math.log(2)),
    Twin("you used the logits as log-probabilities: they are not normalised",
         lambda logits: -(logits.softmax(-1) * logits.nan_to_num(neginf=0.0)).sum(-1)),
    Twin("you took the mean over all places: one entropy for each is wanted, the caller reduces",
         lambda logits: _entropy(logits).mean()),
)  # fmt: skip


APPROX_KL_TWINS = (
    Twin("you used k1, old minus new: right on average, but it can be negative and hides a large move in its noise",
         _of_log_ratio(lambda x: -x)),
    Twin("you used k2, half the square: never negative, but biased", _of_log_ratio(lambda x: x**2 / 2)),
    Twin("you estimated the other direction: the actions were sampled from the *old* policy",
         _of_log_ratio(lambda x: (-x).expm1() + x)),
    Twin("you forgot the -1: identical policies would be 1 apart", _of_log_ratio(lambda x: x.exp() - x)),
    Twin("you have the sign of the logarithm turned", _of_log_ratio(lambda x: x.expm1() + x)),
    Twin("you did not mask: the mean over padding makes the KL look smaller by the fill rate of the batch",
         lambda log_probs, old_log_probs, action_mask: (
             (log_probs - old_log_probs).expm1() - (log_probs - old_log_probs)),
         "Huang et al. 2024 and TRL log a plain mean over padding"),
)  # fmt: skip

CLIP_FRACTION_TWINS = (
    Twin("you count every ratio outside the range: where the unclipped loss is the larger one, nothing is clipped",
         _clipped_where(lambda r, a, clip: (r - 1).abs() > clip), "CleanRL's `clipfrac`"),
    Twin("you count the actions that are *not* clipped", _clipped_where(lambda r, a, clip: ~_rules(r, a, clip))),
    Twin("you forgot the low side: with a negative advantage it is a small ratio that is clipped",
         _clipped_where(lambda r, a, clip: (a > 0) & (r > 1 + clip))),
    Twin("you forgot the advantage's sign: a high ratio is clipped only if it was rewarded",
         _clipped_where(lambda r, a, clip: r > 1 + clip)),
    Twin("you have the sides exchanged", _clipped_where(lambda r, a, clip: -a * r.clamp(1 - clip, 1 + clip) < -a * r)),
    Twin("you return booleans: a masked mean needs numbers",
         lambda log_probs, old_log_probs, advantages, action_mask, *, clip: action_mask & _rules(
             on(action_mask, log_probs - old_log_probs).exp(), advantages, clip)),
    Twin("you did not mask: prompt and padding count as clipped",
         lambda log_probs, old_log_probs, advantages, action_mask, *, clip: _rules(
             (log_probs - old_log_probs).exp(), advantages, clip).double()),
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ the exercises

EXERCISES = (
    Exercise(
        lesson="05_ppo_loss",
        library=losses.policy_loss,
        specification=policy_loss_specification,
        cases=_policy_cases,
        twins=POLICY_TWINS,
        hints=(
            "Two losses for each action: one with the ratio as it is, one with the ratio kept within the clip. Which "
            "should count, if the point is not to trust a ratio that has moved far?",
            "Start from `log_ratio`, which is masked already: only then take the exponential. A loss is minimised, so "
            "both terms carry a minus, and the larger one counts.",
            "`torch.maximum(-advantages * ratio, -advantages * ratio.clamp(...))`, and `keep` where something was "
            "chosen: advantages may hold anything elsewhere.",
        ),
        difficulty=3,
        importance=5,
        minutes=15,
    ),
    Exercise(
        lesson="05_ppo_loss",
        library=losses.value_loss,
        specification=value_loss_specification,
        cases=_cases(
            ("values", "old_values", "returns", "action_mask"), ("values",), refused=_one_of_them_narrow(), clip=0.2
        ),
        twins=VALUE_TWINS,
        hints=(
            "The critic's values are one wider than the returns. Which of them does a return belong to?",
            "Let the new value move at most `clip` away from the old one, and compare both, moved freely and clipped, "
            "with the return. The larger squared error counts, halved.",
            "Mask the *differences*, then square: `keep(now - returns, action_mask) ** 2`. `check_one_wider` refuses "
            "widths that do not fit, of both value tensors.",
        ),
        difficulty=3,
        importance=4,
        minutes=15,
    ),
    Exercise(
        lesson="05_ppo_loss",
        library=losses.entropy,
        specification=entropy_specification,
        cases=_entropy_cases,
        twins=ENTROPY_TWINS,
        hints=(
            "Minus the sum over the vocabulary of p log p. What is 0 times minus infinity, and what should it be?",
            "`log_softmax` gives log p in one stable step. Replace what is infinite *before* it is multiplied.",
            "`torch.where(log_p > -torch.inf, log_p, 0.0)` may stand in the product; `log_p.exp()` is p.",
        ),
        difficulty=2,
        importance=3,
        minutes=10,
    ),
    Exercise(
        lesson="05_ppo_loss",
        library=diagnostics.approx_kl,
        specification=approx_kl_specification,
        cases=_cases(("log_probs", "old_log_probs", "action_mask")),
        twins=APPROX_KL_TWINS,
        hints=(
            "Lesson 04's third estimator, of KL(old || new): who wrote the actions that you have?",
            "With x = log new - log old it is exp(x) - 1 - x. Take x from `log_ratio`.",
            "`torch.expm1(x) - x` is the same with less rounding; where x is 0, so is the result.",
        ),
        difficulty=2,
        importance=4,
        minutes=5,
    ),
    Exercise(
        lesson="05_ppo_loss",
        library=diagnostics.clip_fraction,
        specification=clip_fraction_specification,
        cases=_clip_cases,
        twins=CLIP_FRACTION_TWINS,
        hints=(
            "An action is clipped when its gradient is gone. In which of the four regions of the lesson's picture?",
            "Compare the two terms of the policy loss: it is clipped where the clipped one is strictly larger.",
            "The comparison gives booleans; turn them into numbers of the ratio's dtype, and `keep` those that count.",
        ),
        difficulty=2,
        importance=2,
        minutes=5,
    ),
)
