"""Lesson 02: which number belongs to which choice."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...maths import alignment, rewards
from ..exercise import Case, Exercise, Twin
from .cases import SHAPES, of_every_shape, ragged_case, rows_of

PREAMBLE = """
import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lib.maths.masking import keep, mask_from_lengths
from rlhf_lib.maths.shapes import ActionMask, Lengths, PerAction, PerRow, PerState, Tokens
"""

# ------------------------------------------------------------------------------------------------ what is right


def values_before_specification(values: Tensor) -> Tensor:
    """Choice t is made in state t; nothing is chosen in the last state."""
    return _gathered(values, lambda row, t: values[row, t])


def values_after_specification(values: Tensor) -> Tensor:
    """Choice t leads to state t+1."""
    return _gathered(values, lambda row, t: values[row, t + 1])


def action_log_probs_specification(logits: Tensor, tokens: Tensor) -> Tensor:
    """One choice at a time: the logit of the token that came next, less the log of the sum of all exp(logit)."""

    def log_prob(row: int, t: int) -> Tensor:
        scores = logits[row, t].tolist()
        largest = max(scores)
        total = largest + math.log(sum(math.exp(score - largest) for score in scores))
        return logits[row, t, int(tokens[row, t + 1])] - total

    return _gathered(logits[..., 0], log_prob)


def action_mask_specification(prompt_lengths: Tensor, sequence_lengths: Tensor, states: int) -> Tensor:
    """Choice t counts if token t+1 stands behind the prompt and before the padding."""
    pairs = list(zip(prompt_lengths.tolist(), sequence_lengths.tolist(), strict=True))
    if any(prompt < 1 or sequence <= prompt or sequence > states for prompt, sequence in pairs):
        raise ValueError("an empty prompt, an empty response, or a sequence longer than its row")
    return torch.tensor([[prompt <= t + 1 < sequence for t in range(states - 1)] for prompt, sequence in pairs])


def place_score_specification(scores: Tensor, action_mask: Tensor) -> Tensor:
    """Each score at its row's last choice."""
    if scores.shape != action_mask.shape[:1]:
        raise ValueError(f"{tuple(scores.shape)} scores for {len(action_mask)} rows")
    found = torch.zeros(action_mask.shape, dtype=scores.dtype)
    for row, places in enumerate(rows_of(action_mask)):
        if places:
            found[row, places[-1]] = scores[row]
    return found


def _gathered(per_state: Tensor, entry: Callable[[int, int], Tensor]) -> Tensor:
    """`entry(row, t)` for every state t but the last."""
    rows, states = per_state.shape
    found = torch.zeros(rows, states - 1, dtype=per_state.dtype)
    for row in range(rows):
        for t in range(states - 1):
            found[row, t] = entry(row, t)
    return found


# ------------------------------------------------------------------------------------------------ what is tried


def _cases_of(*names: str, gradients: tuple[str, ...] = ()) -> Callable[[], list[Case]]:
    def make() -> list[Case]:
        return [
            Case(label, {name: tensors[name] for name in names}, gradients if "NaN" not in label else ())
            for label, tensors in of_every_shape()
        ]

    return make


def _score_cases() -> list[Case]:
    """Also a row in which nothing was chosen, and scores that do not fit the rows."""
    tensors = ragged_case([(2, 3), (1, 2), (3, 1)], seed=21)
    scores, mask = tensors["scores"], tensors["action_mask"].clone()
    mask[1] = False
    return [
        *_cases_of("scores", "action_mask", gradients=("scores",))(),
        Case("a row in which nothing was chosen", dict(scores=scores, action_mask=mask)),
        Case("one score for three rows: it would be paid to each of them", dict(scores=scores[:1], action_mask=mask)),
        Case("a score for each place, where there should be one for each row",
             dict(scores=tensors["rewards"], action_mask=mask)),
    ]  # fmt: skip


def _logit_cases() -> list[Case]:
    """Random logits, with NaN in the last state, where nothing is chosen; and large ones."""
    found = []
    for seed, (label, (lengths, padding)) in enumerate(SHAPES.items()):
        rows, states = len(lengths), max(map(sum, lengths)) + padding
        generator = torch.Generator().manual_seed(100 + seed)
        logits = torch.randn(rows, states, 4, generator=generator, dtype=torch.float64)
        tokens = torch.randint(4, (rows, states), generator=generator)
        gradients = ("logits",) if rows * states < 20 else ()
        found.append(Case(label, dict(logits=logits, tokens=tokens), gradients))
        poisoned = logits.index_fill(1, torch.tensor([states - 1]), math.nan)
        found.append(Case(f"{label}; NaN stands in the last state", dict(logits=poisoned, tokens=tokens)))
        found.append(Case(f"{label}; logits near 1000", dict(logits=logits + 1000, tokens=tokens)))
    return found


def _length_cases() -> list[Case]:
    found = [
        Case(label, dict(
            prompt_lengths=torch.tensor([prompt for prompt, _ in lengths]),
            sequence_lengths=torch.tensor([prompt + response for prompt, response in lengths]),
            states=max(map(sum, lengths)) + padding,
        ))
        for label, (lengths, padding) in SHAPES.items()
    ]  # fmt: skip
    refused = {
        "an empty prompt: nobody can have chosen token 0": ([2, 0], [3, 2], 4),
        "an empty response": ([2, 2], [3, 2], 4),
        "a sequence shorter than its prompt": ([2, 2], [3, 1], 4),
        "a sequence longer than its row": ([2, 2], [3, 5], 4),
    }
    for label, (prompts, sequences, states) in refused.items():
        lengths = dict(prompt_lengths=torch.tensor(prompts), sequence_lengths=torch.tensor(sequences))
        found.append(Case(label, {**lengths, "states": states}))
    return found


# ------------------------------------------------------------------------------------------------ what goes wrong


def _scored(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def _places(lengths: Tensor, states: int) -> Tensor:
    return torch.arange(states) < lengths[:, None]


def _mask_with(choose: Callable[[Tensor, Tensor, int], Tensor]) -> Callable:
    """A wrong mask that refuses what has to be refused, so that only its entries give it away."""

    def action_mask_from_lengths(prompt_lengths, sequence_lengths, states):
        action_mask_specification(prompt_lengths, sequence_lengths, states)
        return choose(prompt_lengths, sequence_lengths, states)

    return action_mask_from_lengths


def _last(mask: Tensor) -> Tensor:
    return mask & ~pad(mask[:, 1:], (0, 1))


def _placed_with(place: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """A score placed by `place(scores as wide as the mask, mask)`."""

    def place_score(scores, action_mask):
        place_score_specification(scores, action_mask)
        return place(scores[:, None].expand(action_mask.shape), action_mask)

    return place_score


def _on(mask: Tensor, x: Tensor) -> Tensor:
    return torch.where(mask, x, 0.0)


LOG_PROBS_TWINS = (
    Twin(
        "you asked each token's own state: the logits at t+1 come from a model that has already read token t+1, and "
        "they are about token t+2",
        lambda logits, tokens: _scored(logits[:, 1:], tokens[:, 1:]),
        "the write-up, State-Action Alignment: logits at t describe the token at t+1",
    ),
    Twin(
        "you asked each state for the token that it holds: logits and tokens are both cut at the end, so neither is "
        "shifted against the other",
        lambda logits, tokens: _scored(logits[:, :-1], tokens[:, :-1]),
    ),
    Twin("you shifted the wrong way: state t+1 is asked for token t",
         lambda logits, tokens: _scored(logits[:, 1:], tokens[:, :-1])),
    Twin(
        "your answer is as wide as the tokens: nothing is chosen in the last state, so there is one choice fewer",
        lambda logits, tokens: _scored(logits, tokens.roll(-1, 1)),
    ),
    Twin("you returned logits: without the log-softmax they are not log-probabilities",
         lambda logits, tokens: logits[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)),
    Twin("you returned probabilities: PPO takes differences of their logarithms",
         lambda logits, tokens: _scored(logits[:, :-1], tokens[:, 1:]).exp()),
    Twin("you normalised over the states: the choice in a state is among the tokens of the vocabulary, the last axis",
         lambda logits, tokens: logits[:, :-1].log_softmax(1).gather(-1, tokens[:, 1:, None]).squeeze(-1)),
    Twin("you returned the loss: a cross-entropy is the negative of the log-probability",
         lambda logits, tokens: -_scored(logits[:, :-1], tokens[:, 1:])),
    Twin("you took the likeliest token: the one that counts is the one that was drawn",
         lambda logits, tokens: logits[:, :-1].log_softmax(-1).amax(-1)),
    Twin("you cut the gradient: without it the policy cannot learn",
         lambda logits, tokens: _scored(logits[:, :-1], tokens[:, 1:]).detach()),
)  # fmt: skip

MASK_TWINS = (
    Twin(
        "your mask is in state indexing: True where the state holds a token of the response, which is one place after "
        "that token was chosen. The first choice is lost, and the first padding counts",
        _mask_with(lambda p, s, n: (_places(s, n) & ~_places(p, n))[:, :-1]),
        "the write-up, State-Action Alignment",
    ),
    Twin(
        "you left the EOS out: the policy chose it too, and the score is paid for it",
        _mask_with(lambda p, s, n: (_places(s - 1, n) & ~_places(p, n))[:, 1:]),
        "https://github.com/wyf3/llm_related/issues/37: a mask that drops the place where the reward is paid",
    ),
    Twin("you counted the prompt: nobody chose it",
         _mask_with(lambda p, s, n: _places(s, n)[:, 1:])),
    Twin(
        "you counted the padding",
        _mask_with(lambda p, s, n: ~_places(p, n)[:, 1:]),
        "https://github.com/natolambert/rlhf-book/pull/216: losses that run on into the padding",
    ),
    Twin("you took sequence_lengths for the length of the response: it counts the prompt as well",
         _mask_with(lambda p, s, n: (_places(p + s, n) & ~_places(p, n))[:, 1:])),
    Twin("your mask is as wide as the tokens: there is one choice fewer",
         _mask_with(lambda p, s, n: _places(s, n) & ~_places(p, n))),
    Twin(
        "you took an index for a length: the last token stands at sequence_lengths - 1, and one choice too many counts",
        _mask_with(lambda p, s, n: (_places(s + 1, n) & ~_places(p, n))[:, 1:]),
        "N+ calls the index of the last token sequence_lengths, and mends it with a mask one longer",
    ),
)  # fmt: skip

SCORE_TWINS = (
    Twin(
        "you paid one slot late: the reward model reads at the state of the EOS, but what is paid is the choice of it, "
        "one place before. In padding the masks will drop it",
        _placed_with(lambda x, m: pad(_on(_last(m), x)[:, :-1], (1, 0))),
        "the write-up's longest bug; TRL pays there on purpose, with masks moved to match: "
        "https://github.com/huggingface/trl/issues/3750",
    ),
    Twin(
        "you paid one slot early: for the choice before the last one",
        _placed_with(lambda x, m: pad(_on(_last(m), x)[:, 1:], (0, 1))),
        "DeepSpeed-Chat had its ends off by one: https://github.com/deepspeedai/DeepSpeedExamples/pull/672",
    ),
    Twin("you paid every choice: a text would earn more the longer it is",
         _placed_with(lambda x, m: _on(m, x)),
         "the write-up's later code, which pays the penalty for a missing EOS at every token"),
    Twin("you spread the score: the reward model judged the whole text, at its end",
         _placed_with(lambda x, m: _on(m, x / m.sum(1, keepdim=True)))),
    Twin("you paid in the last column: only the longest row ends there",
         _placed_with(lambda x, m: pad(x[:, :1], (m.shape[1] - 1, 0))),
         "https://github.com/jingyaogong/minimind/issues/541, with the padding on the other side"),
    Twin("you counted choices and took the count for a place: the prompt stands before them",
         _placed_with(lambda x, m: _on(torch.arange(m.shape[1]) == m.sum(1, keepdim=True) - 1, x))),
    Twin("you looked for the first padding: a full row has none, and its score is lost",
         _placed_with(lambda x, m: _on(m & pad(~m[:, 1:], (0, 1)), x))),
    Twin("you paid the first choice", _placed_with(lambda x, m: _on(m & ~pad(m[:, :-1], (1, 0)), x))),
)  # fmt: skip

VALUES_BEFORE_TWINS = (
    Twin("these are the values after each choice: choice t was made in state t", lambda values: values[:, 1:],
         "asked of TRL in its first year: https://github.com/huggingface/trl/issues/15"),
    Twin("you kept all the states: nothing is chosen in the last one, so there is one choice fewer",
         lambda values: values.clone()),
    Twin("you dropped a row, not a column: the first axis is the batch", lambda values: values[:-1]),
    Twin("your values are one late: place t holds the value of state t-1", lambda values: values.roll(1, 1)[:, :-1]),
    Twin("you emptied the last state instead of dropping it: it is still as wide as the states",
         lambda values: pad(values[:, :-1], (0, 1))),
    Twin("you cut the gradient: the value loss learns through this function", lambda values: values[:, :-1].detach()),
)  # fmt: skip

VALUES_AFTER_TWINS = (
    Twin("these are the values before each choice: choice t leads to state t+1", lambda values: values[:, :-1],
         "asked of TRL in its first year: https://github.com/huggingface/trl/issues/15"),
    Twin("you kept all the states: the first one is led to by no choice", lambda values: values.clone()),
    Twin("you dropped a row, not a column: the first axis is the batch", lambda values: values[1:]),
    Twin("your values are one early: place t holds the value of state t+2",
         lambda values: pad(values[:, 2:], (0, 1))),
    Twin("you filled the width up behind the last state: there is one choice fewer than there are states",
         lambda values: pad(values[:, 1:], (0, 1))),
    Twin("you let the last state be worth 0 here: whether it may be read is for the mask to say, row by row",
         lambda values: pad(values[:, 1:-1], (0, 1))),
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ the exercises

LESSON = "02_state_action_alignment"
EXERCISES = (
    Exercise(
        lesson=LESSON,
        library=alignment.values_before,
        specification=values_before_specification,
        cases=_cases_of("values", gradients=("values",)),
        twins=VALUES_BEFORE_TWINS,
        hints=(
            "How many choices are made in T states?",
            "Place t of the result is the value of state t.",
            "Leave the last column out.",
        ),
        difficulty=1,
        importance=5,
        minutes=2,
    ),
    Exercise(
        lesson=LESSON,
        library=alignment.values_after,
        specification=values_after_specification,
        cases=_cases_of("values", gradients=("values",)),
        twins=VALUES_AFTER_TWINS,
        hints=(
            "Which state does the first choice lead to?",
            "Place t of the result is the value of state t+1.",
            "Leave the first column out.",
        ),
        difficulty=1,
        importance=5,
        minutes=2,
    ),
    Exercise(
        lesson=LESSON,
        library=alignment.action_log_probs,
        specification=action_log_probs_specification,
        cases=_logit_cases,
        twins=LOG_PROBS_TWINS,
        hints=(
            "Take three tokens. Which state was each of them chosen in, and where do the logits of that state stand?",
            "Drop the state in which nothing is chosen, drop the token that nobody chose, and both have one width.",
            "`log_softmax(-1)` of all logits but the last, then `gather` along the vocabulary with all tokens but the "
            "first. `gather` wants an index of as many axes: `[..., None]`, and `squeeze(-1)` after.",
        ),
        difficulty=2,
        importance=5,
        minutes=10,
    ),
    Exercise(
        lesson=LESSON,
        library=alignment.action_mask_from_lengths,
        specification=action_mask_specification,
        cases=_length_cases,
        twins=MASK_TWINS,
        hints=(
            "Draw a row: prompt, response, EOS, padding. Which states hold a token that the policy chose? And which "
            "choices are those?",
            "`mask_from_lengths(lengths, states)` is True at the first places of a row. The response is where the "
            "sequence is and the prompt is not: in state indexing.",
            "A token at place t+1 is choice t: drop the first column. Refuse first what cannot be: a prompt below 1, a "
            "sequence no longer than its prompt, a sequence longer than `states`.",
        ),
        difficulty=3,
        importance=5,
        minutes=10,
    ),
    Exercise(
        lesson=LESSON,
        library=rewards.place_score,
        specification=place_score_specification,
        cases=_score_cases,
        twins=SCORE_TWINS,
        hints=(
            "The reward model speaks about the whole text. Which choice made it whole, in a row with padding and in a "
            "row without?",
            "A choice is the last one if it counts and none behind it does. Compare places, or the mask with itself "
            "moved by one.",
            "The last place that counts is the largest of `torch.where(action_mask, places, -1)`; in an empty row it "
            "is -1, which no place equals.",
        ),
        difficulty=3,
        importance=5,
        minutes=10,
    ),
)
