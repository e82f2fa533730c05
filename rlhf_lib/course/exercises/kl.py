"""Lesson 04: estimators of the KL divergence, scoring by a forward pass, what must hold before the first update."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...engine import models
from ...maths import diagnostics, kl
from ..exercise import Case, Exercise, Twin
from .cases import Tensors, of_every_shape, on, ragged_case, rows_of

PREAMBLE = """
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from rlhf_lib.engine.models import hidden_states
from rlhf_lib.maths import losses
from rlhf_lib.maths.alignment import acting_states, actions_of
from rlhf_lib.maths.losses import log_ratio
from rlhf_lib.maths.masking import keep, masked_mean
from rlhf_lib.maths.shapes import ActionMask, PerAction, Scalar, Tokens
"""
LESSON = "04_kl_sanity"

# ------------------------------------------------------------------------------------------------ what is right


def _each(log_p: Tensor, log_q: Tensor, term: Callable[[float], float]) -> Tensor:
    """`term(log p - log q)`, one number at a time, in double precision."""
    pairs = zip(log_p.flatten().tolist(), log_q.flatten().tolist(), strict=True)
    return torch.tensor([term(p - q) for p, q in pairs], dtype=torch.float64).reshape(log_p.shape)


def kl_k1_specification(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log p - log q."""
    return _each(log_p, log_q, lambda gap: gap)


def kl_k2_specification(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(log p - log q)^2 / 2."""
    return _each(log_p, log_q, lambda gap: gap * gap / 2)


def kl_k3_specification(log_p: Tensor, log_q: Tensor) -> Tensor:
    """q/p - 1 - log(q/p), without losing the digits of small differences."""
    return _each(log_p, log_q, lambda gap: math.expm1(-gap) + gap)


def score_actions_specification(
    model: nn.Module, tokens: Tensor, action_mask: Tensor, *, temperature: float, entropy: Callable | None = None
) -> tuple[Tensor, Tensor]:
    """One action at a time: the model reads everything before it and nothing else; then softmax by hand."""
    dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    log_probs, entropies = (torch.zeros(action_mask.shape, dtype=dtype) for _ in range(2))
    for row, places in enumerate(rows_of(action_mask)):
        for t in places:
            last = model.base_model(tokens[row : row + 1, : t + 1]).last_hidden_state[0, -1:]
            logits = [logit / temperature for logit in model.get_output_embeddings()(last)[0].tolist()]
            total = math.log(sum(math.exp(logit) for logit in logits))
            log_probs[row, t] = logits[int(tokens[row, t + 1])] - total
            plain = sum(math.exp(logit - total) * (total - logit) for logit in logits)
            entropies[row, t] = float(entropy(torch.tensor([logits]))) if entropy else plain
    return log_probs, entropies


def step_zero_gaps_specification(
    log_probs: Tensor, old_log_probs: Tensor, ref_log_probs: Tensor, sampler_log_probs: Tensor, action_mask: Tensor
) -> dict[str, float]:
    """Three lists of numbers, one for each action that counts."""
    if any(x.shape != action_mask.shape for x in (log_probs, old_log_probs, ref_log_probs, sampler_log_probs)):
        raise ValueError("action-indexed tensors must have one shape")
    kl_terms, ratio_errors, gaps = [], [], []
    for row, places in enumerate(rows_of(action_mask)):
        for t in places:
            old = float(old_log_probs[row, t])
            kl_terms.append(abs(old - float(ref_log_probs[row, t])))
            ratio_errors.append(abs(math.exp(float(log_probs[row, t]) - old) - 1))
            gaps.append(abs(float(sampler_log_probs[row, t]) - old))
    return {KL: sum(kl_terms) / len(kl_terms), RATIO: max(ratio_errors), GAP: max(gaps)}


KL, RATIO, GAP = "kl_before_first_update", "ratio_error_before_first_update", "sampler_forward_gap"

# ------------------------------------------------------------------------------------------------ what is tried


def kl_cases() -> list[Case]:
    """By hand, ragged, far apart, and so close in single precision that digits matter."""
    by_hand = {
        "p = 1/2 and q = 1/4": (0.5, 0.25),
        "p = 1/4 and q = 1/2: the sample is likelier under q": (0.25, 0.5),
        "p = q = 1/3": (1 / 3, 1 / 3),
        "q = 1/2 where p is a millionth": (1e-6, 0.5),
    }
    cases = [
        Case(label, {"log_p": torch.tensor([[p]]).double().log(), "log_q": torch.tensor([[q]]).double().log()})
        for label, (p, q) in by_hand.items()
    ]
    many = ragged_case([(2, 3), (4, 1), (1, 6), (3, 3)], padding=2)
    pair = {"log_p": many["log_probs"], "log_q": many["ref_log_probs"]}
    close = {"log_p": many["log_probs"].float(), "log_q": many["log_probs"].float() + 1e-3 * many["rewards"].float()}
    return [
        *cases,
        Case("rows of actions", pair, gradients=("log_p",)),
        Case("differences of about a thousandth, in float32", close),
    ]


class TinyModel(nn.Module):
    """What the library asks of a Hugging Face model, from two tables: a state is the sum of the last two tokens' rows.

    `room` is how many rows of logits fit in its memory; whoever asks for more gets a MemoryError.
    """

    def __init__(self, vocabulary: int, width: int, *, room: int = 10**9, coarse: bool = False, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        tables = [torch.randn(vocabulary, width, generator=generator) for _ in range(2)]
        if coarse:  # eighths add up exactly even in bfloat16, in any order
            tables = [(2 * table).round().clamp(-4, 4) / 4 for table in tables]
        self.base_model, self.head = TwoTokens(tables[0]), Head(tables[1], room)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, **rest: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.base_model(input_ids).last_hidden_state))

    def __repr__(self) -> str:
        vocabulary, width = self.head.weight.shape
        return f"a causal model of {vocabulary} tokens and width {width}, in {_kind(self.head.weight)}"


class TwoTokens(nn.Module):
    """The body of a TinyModel: causal, and not blind to the context."""

    def __init__(self, table: Tensor):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, input_ids: Tensor, **rest: object) -> SimpleNamespace:
        read = self.table[input_ids]
        return SimpleNamespace(last_hidden_state=read + pad(read, (0, 0, 1, 0))[:, : read.shape[1]])


class Head(nn.Module):
    """From a state to one logit for each token."""

    def __init__(self, table: Tensor, room: int):
        super().__init__()
        self.weight, self.room = nn.Parameter(table), room

    def forward(self, states: Tensor) -> Tensor:
        rows = states.numel() // states.shape[-1]
        if rows > self.room:
            raise MemoryError(
                f"no room for {rows} rows of {len(self.weight)} logits; run the head only where something was chosen"
            )
        return states @ self.weight.T


class LargestLogit:
    """Stands in for an entropy, so that a check sees which function was called on what."""

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.amax(-1)

    def __repr__(self) -> str:
        return "a stand-in: the largest logit of each place"


def score_cases() -> list[Case]:
    """Every trait of a call that changes the answer: temperature, padding, precision, another entropy, gradients."""

    def case(label: str, lengths: list, padding: int, model: nn.Module, gradients: tuple = (), **hyper) -> Case:
        texts = ragged_case(lengths, padding)
        generator = torch.Generator().manual_seed(len(label))
        vocabulary = len(model.get_output_embeddings().weight)
        rows, states = len(lengths), texts["action_mask"].shape[1] + 1
        tokens = torch.randint(vocabulary, (rows, states), generator=generator)  # junk in the padding as well
        arguments = {"model": model, "tokens": tokens, "action_mask": texts["action_mask"], **hyper}
        return Case(label, arguments, gradients, tolerance=1e-5)

    small, ragged = TinyModel(5, 3), [(2, 3), (1, 1), (3, 2)]
    return [
        case("one action, at temperature 1", [(1, 1)], 0, small, temperature=1.0),
        case("two actions, at temperature 0.7", [(1, 2)], 0, small, temperature=0.7),
        case("rows of different lengths, padded", ragged, 2, small, temperature=1.5),
        case("another entropy is handed in", ragged, 1, small, temperature=0.7, entropy=LargestLogit()),
        case("a model in bfloat16", ragged, 0, TinyModel(5, 3, coarse=True).bfloat16(), temperature=0.7),
        case("gradients reach the model", ragged, 1, TinyModel(4, 2).double(), ("model",), temperature=0.7),
        case("a large vocabulary: memory for the logits of 9 places", [(7, 2), (4, 3), (9, 1)], 2,
             TinyModel(3000, 2, room=9), temperature=0.7),
    ]  # fmt: skip


GAPS_FROM = ("log_probs", "old_log_probs", "ref_log_probs", "sampler_log_probs", "action_mask")


def gaps_cases() -> list[Case]:
    """Every shape; ratios on both sides of 1; and one tensor as wide as the states."""

    def of(tensors: Tensors) -> dict[str, Tensor]:
        return {name: tensors[name] for name in GAPS_FROM}

    cases = [Case(label, of(tensors)) for label, tensors in of_every_shape()]
    for name in GAPS_FROM[1:4]:  # rows of one action: a column too many would broadcast
        tensors = ragged_case([(1, 1), (1, 1)], seed=3)
        cases.append(Case(f"{name} as wide as the states", {**of(tensors), name: tensors["values"]}))
    return cases


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# ------------------------------------------------------------------------------------------------ what goes wrong

K1_TWINS = (
    Twin("you have them the wrong way round: that estimates from samples of p how much likelier q makes them, which "
         "is minus the KL", lambda log_p, log_q: log_q - log_p),
    Twin("you took the absolute value: a single term may be negative, and only the signs make the mean right",
         lambda log_p, log_q: (log_p - log_q).abs(), 'the `kl_penalty="abs"` of TRL\'s first PPO trainer, and of verl'),
    Twin("you cut the negative terms off: the mean is too large then",
         lambda log_p, log_q: (log_p - log_q).clamp(min=0)),
    Twin("you weighted by the probability: the samples come from p already, so it would count twice",
         lambda log_p, log_q: log_p.exp() * (log_p - log_q)),
    Twin("you returned the ratio: its logarithm is meant", lambda log_p, log_q: (log_p - log_q).exp()),
    Twin("you averaged: one number for each action is needed, since each pays for its own",
         lambda log_p, log_q: (log_p - log_q).mean()),
)  # fmt: skip

K2_TWINS = (
    Twin("you forgot the half", lambda log_p, log_q: (log_p - log_q) ** 2),
    Twin("you halved before you squared", lambda log_p, log_q: ((log_p - log_q) / 2) ** 2),
    Twin("you squared the ratio's distance from 1: k2 is about the log of the ratio",
         lambda log_p, log_q: ((log_p - log_q).exp() - 1) ** 2 / 2),
    Twin("you left out the square: that is half of k1", lambda log_p, log_q: (log_p - log_q) / 2),
    Twin("you took the absolute value where the square belongs", lambda log_p, log_q: (log_p - log_q).abs() / 2),
    Twin("you averaged: one number for each action is needed", lambda log_p, log_q: ((log_p - log_q) ** 2 / 2).mean()),
)  # fmt: skip

K3_TWINS = (
    Twin("you have the ratio upside down: with samples from p it must be q/p, or the exponential does not average to 1",
         lambda log_p, log_q: (log_p - log_q).expm1() - (log_p - log_q)),
    Twin("your formula is right but loses its digits: exp(x) - 1 cancels for small x, and before the first update all "
         "x are small; torch has one function for both steps",
         lambda log_p, log_q: (log_q - log_p).exp() - 1 - (log_q - log_p),
         "nearly everywhere; in float32 it makes a KL that cannot be negative come out negative"),
    Twin("you turned the sign of the logarithm", lambda log_p, log_q: (log_q - log_p).expm1() + (log_q - log_p)),
    Twin("you forgot to subtract 1: it is 0 where p = q",
         lambda log_p, log_q: (log_q - log_p).exp() - (log_q - log_p)),
    Twin("you left the logarithm out: the rest averages to 0 whatever q is",
         lambda log_p, log_q: (log_q - log_p).expm1()),
    Twin("you clamped it: where q is large and p small it must be large, and the cut makes it biased",
         lambda log_p, log_q: ((log_q - log_p).expm1() - (log_q - log_p)).clamp(-10, 10),
         "verl's low_var_kl, on purpose, for stability"),
    Twin("you returned k2: the two agree for small differences only", lambda log_p, log_q: (log_p - log_q) ** 2 / 2),
)  # fmt: skip


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * torch.where(log_p > -torch.inf, log_p, 0.0)).sum(-1)


def _nucleus(logits: Tensor, top_p: float = 0.8) -> Tensor:
    """-inf for what a top-p sampler never draws."""
    ordered, order = logits.softmax(-1).sort(-1, descending=True)
    cut = ordered.cumsum(-1) - ordered >= top_p
    return logits.masked_fill(cut.gather(-1, order.argsort(-1)), -torch.inf)


def _score_with(
    states: Callable = lambda hidden: hidden[:, :-1],
    actions: Callable = lambda tokens: tokens[:, 1:],
    scaled: Callable = lambda logits, temperature: logits.float() / temperature,
    log_prob: Callable = lambda logits: logits.log_softmax(-1),
    entropy_of: Callable = lambda entropy, logits, temperature: entropy(logits),
    where: Callable = lambda mask: mask,
) -> Callable:
    """`score_actions` with one of its steps made otherwise."""

    def score_actions(model, tokens, action_mask, *, temperature, entropy=_entropy):
        counts = where(action_mask)
        logits = scaled(model.head(states(model.base_model(tokens).last_hidden_state)[counts]), temperature)
        chosen = log_prob(logits).gather(-1, actions(tokens)[counts][:, None])[:, 0]
        blank = torch.zeros(action_mask.shape, dtype=chosen.dtype)
        entropies = entropy_of(entropy, logits, temperature).to(chosen.dtype)
        return blank.masked_scatter(counts, chosen), blank.masked_scatter(counts, entropies)

    return score_actions


def _score_detached(model, tokens, action_mask, *, temperature, entropy=_entropy):
    with torch.no_grad():
        return _score_with()(model, tokens, action_mask, temperature=temperature, entropy=entropy)


SCORE_TWINS = (
    Twin("you scored at temperature 1: the policy is softmax(logits / temperature), and that is what was sampled from",
         _score_with(scaled=lambda logits, temperature: logits.float()),
         "the write-up's first bug, in part; it passes KL = 0 and ratio = 1"),
    Twin("you multiplied by the temperature",
         _score_with(scaled=lambda logits, temperature: logits.float() * temperature)),
    Twin("you scored the distribution that the sampler had cut to its likeliest tokens: a cut changes every "
         "probability, and other texts may hold tokens that it calls impossible",
         _score_with(scaled=lambda logits, temperature: _nucleus(logits.float() / temperature)),
         "the write-up's first bug; https://github.com/huggingface/trl/issues/2358"),
    Twin("you read the distribution in the state after the action: token t+1 is chosen in state t",
         _score_with(states=lambda hidden: hidden[:, 1:]),
         "https://github.com/huggingface/trl/issues/15 asks about this shift"),
    Twin("you asked each state about its own token: the action in state t is token t+1",
         _score_with(actions=lambda tokens: tokens[:, :-1])),
    Twin("you took the entropy of another distribution than the log-probabilities: both belong to logits / temperature",
         _score_with(entropy_of=lambda entropy, logits, temperature: entropy(logits * temperature))),
    Twin("you ignored the `entropy` that was handed in: PPO swaps that part",
         _score_with(entropy_of=lambda entropy, logits, temperature: _entropy(logits))),
    Twin("you cut the gradient: PPO trains through these log-probabilities", _score_detached),
    Twin("you left junk where nothing was chosen: prompt and padding must hold 0",
         _score_with(where=torch.ones_like)),
    Twin("you took the softmax in the model's own half precision: its logits need to become float32 first",
         _score_with(scaled=lambda logits, temperature: logits / temperature),
         "https://github.com/huggingface/transformers/issues/31267 measures what that costs"),
    Twin("you returned probabilities: their logarithm is meant",
         _score_with(log_prob=lambda logits: logits.softmax(-1))),
)  # fmt: skip


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    return on(mask, x).sum() / mask.sum()


RIGHT_GAPS = {
    KL: lambda new, old, ref, sampler, mask: _mean((old - ref).abs(), mask),
    RATIO: lambda new, old, ref, sampler, mask: (on(mask, new - old).exp() - 1).abs().max(),
    GAP: lambda new, old, ref, sampler, mask: on(mask, (sampler - old).abs()).max(),
}


def _gaps_with(wrong: dict[str, Callable]) -> Callable:
    """`step_zero_gaps` with some of its numbers made otherwise."""

    def step_zero_gaps(log_probs, old_log_probs, ref_log_probs, sampler_log_probs, action_mask):
        tensors = (log_probs, old_log_probs, ref_log_probs, sampler_log_probs, action_mask)
        return {name: number(*tensors) for name, number in {**RIGHT_GAPS, **wrong}.items()}

    return step_zero_gaps


GAPS_TWINS = (
    Twin("you averaged k1 with its signs: terms that cancel make two different models look the same",
         _gaps_with({KL: lambda new, old, ref, sampler, mask: _mean(old - ref, mask)})),
    Twin("you compared the rollout with itself: the ratio needs the log-probabilities of the policy as it trains",
         _gaps_with({RATIO: lambda new, old, ref, sampler, mask: (on(mask, old - old).exp() - 1).abs().max()})),
    Twin("you let only ratios above 1 count",
         _gaps_with({RATIO: lambda new, old, ref, sampler, mask: (on(mask, new - old).exp() - 1).max()})),
    Twin("you took the log of the ratio: |ratio - 1| is meant",
         _gaps_with({RATIO: lambda new, old, ref, sampler, mask: on(mask, new - old).abs().max()})),
    Twin("you averaged the sampler's gap: one bad action among thousands disappears in a mean",
         _gaps_with({GAP: lambda new, old, ref, sampler, mask: _mean((sampler - old).abs(), mask)})),
    Twin("you let only one sign of the sampler's gap count",
         _gaps_with({GAP: lambda new, old, ref, sampler, mask: on(mask, sampler - old).max()})),
    Twin("you averaged the KL over padding as well: the emptier the batch, the smaller your number",
         _gaps_with({KL: lambda new, old, ref, sampler, mask: on(mask, (old - ref).abs()).mean()}),
         "N+, TRL and torchtune log approx-KL like that"),
    Twin("you multiplied by the mask: 0 times NaN is NaN; select instead", _gaps_with({
        KL: lambda new, old, ref, sampler, mask: ((old - ref).abs() * mask).sum() / mask.sum(),
        RATIO: lambda new, old, ref, sampler, mask: (((new - old).exp() - 1) * mask).abs().max(),
        GAP: lambda new, old, ref, sampler, mask: ((sampler - old).abs() * mask).max(),
    })),
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ the exercises


def _estimator(library: Callable, specification: Callable, twins: tuple, hints: tuple, **badge: int) -> Exercise:
    return Exercise(
        lesson=LESSON, library=library, specification=specification, cases=kl_cases, twins=twins, hints=hints, **badge
    )


EXERCISES = (
    _estimator(
        kl.kl_k1, kl_k1_specification, K1_TWINS,
        ("KL(p || q) is an expectation under p. What is inside the expectation, and who has taken it already?",
         "The samples come from p, so the mean over them is the expectation. One term is left for each sample.",
         "It is the difference of two log-probabilities, with its sign, action by action."),
        difficulty=1, importance=4, minutes=3,
    ),
    _estimator(
        kl.kl_k2, kl_k2_specification, K2_TWINS,
        ("Near p = q the KL is a parabola in the log ratio. Which one?",
         "Square the log ratio, and mind the factor.",
         "Half of the squared difference of the log-probabilities."),
        difficulty=1, importance=2, minutes=2,
    ),
    _estimator(
        kl.kl_k3, kl_k3_specification, K3_TWINS,
        ("Add to k1 something that averages to 0 under p, and that makes the sum non-negative.",
         "Under p the ratio q/p averages to 1, so q/p - 1 is that something. Write all with x = log q - log p.",
         "exp(x) - 1 - x; for the first two steps together look up torch.expm1."),
        difficulty=2, importance=4, minutes=6,
    ),
    Exercise(
        lesson=LESSON, library=models.score_actions, specification=score_actions_specification,
        cases=score_cases, twins=SCORE_TWINS,
        hints=(
            "Find out first which state each action was chosen in, and pick those states before you make any logits.",
            "`hidden_states(model, tokens)` is [B, T, D], `model.get_output_embeddings()` the head. `acting_states`, "
            "`actions_of` and the mask pick one row for each action; logits in float32, divided by the temperature.",
            "`Categorical(logits=...)` gives the log-probabilities, `entropy(logits)` the entropies; "
            "`x.new_zeros(action_mask.shape).masked_scatter(action_mask, x)` puts one number for each action back.",
        ),
        difficulty=3, importance=5, minutes=15,
    ),
    Exercise(
        lesson=LESSON, library=diagnostics.step_zero_gaps, specification=step_zero_gaps_specification,
        cases=gaps_cases, twins=GAPS_TWINS,
        hints=(
            "Ask of each number in turn: which two policies does it compare, and could a mistake hide in how it sums?",
            "Mean of absolute differences, and twice a largest absolute difference; only the second is of a ratio.",
            "`log_ratio` is 0 off the mask, so its exponential is safe; `masked_mean` and `keep(...)` select.",
        ),
        difficulty=2, importance=5, minutes=10,
    ),
)  # fmt: skip
