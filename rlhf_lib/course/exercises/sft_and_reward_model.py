"""Lesson 06: which tokens SFT imitates, where a reward model's score is read, and what a preference costs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ...algorithms import sft
from ...engine import models
from ...maths import losses
from ...maths.records import Texts
from ..exercise import Case, Exercise, Twin
from .cases import of_every_shape, on

PREAMBLE = """
import torch

from rlhf_lib.maths.records import Texts
from rlhf_lib.maths.shapes import ActionMask, PerAction, PerRow, PerState
"""
PAD = 0  # of the cases; in half of them it is the EOS as well
EOS, QUESTION, WORD = 1, 2, 3

# ------------------------------------------------------------------------------------------------ what is right


def target_mask_specification(texts: Texts, *, imitate_query: bool) -> Tensor:
    """One token at a time: token t+1 is learned at place t, if it is no padding and, perhaps, no part of the query."""
    rows, states = texts.tokens.shape
    found = torch.zeros(rows, states - 1, dtype=torch.bool)
    for row in range(rows):
        for place in range(1, int(texts.sequence_lengths[row])):
            found[row, place - 1] = imitate_query or place >= int(texts.prompt_lengths[row])
    return found


def sft_loss_specification(log_probs: Tensor, target_mask: Tensor) -> Tensor:
    """One place at a time."""
    found = torch.zeros_like(log_probs)
    for row, place in target_mask.nonzero().tolist():
        found[row, place] = -log_probs[row, place]
    return found


def read_score_specification(per_state: Tensor, texts: Texts) -> Tensor:
    """The last of as many numbers as the row has tokens."""
    return torch.stack([row[: int(length)][-1] for row, length in zip(per_state, texts.sequence_lengths, strict=True)])


def preference_loss_specification(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """log(1 + exp(-margin)) of one pair at a time; far below zero, where exp overflows, that is -margin."""

    def loss(margin: float) -> float:
        return math.log1p(math.exp(-margin)) if margin > -500 else -margin

    margins = [a - b for a, b in zip(chosen_scores.tolist(), rejected_scores.tolist(), strict=True)]
    return torch.tensor([loss(margin) for margin in margins], dtype=chosen_scores.dtype)


# ------------------------------------------------------------------------------------------------ what is tried

ROWS = {  # (prompt, response) tokens of each row, columns of padding behind the longest, rows cut off before an EOS
    "one row: a prompt of one token, a response of one": ([(1, 1)], 0, ()),
    "one row, with padding behind it": ([(2, 2)], 2, ()),
    "rows of different lengths, one of them full": ([(2, 3), (3, 1), (1, 2)], 0, ()),
    "responses of one token": ([(3, 1), (1, 1), (2, 1)], 1, ()),
    "a row that was cut off: it has no EOS": ([(2, 3), (2, 2), (1, 1)], 1, (1,)),
    "many rows": ([(2, 4), (5, 1), (1, 6), (3, 3), (4, 2)], 2, (2,)),
}


def _texts(lengths: list[tuple[int, int]], padding: int, cut_off: tuple[int, ...], *, eos: int) -> Texts:
    """Rows of words. The prompt begins with the EOS, as that of a model whose BOS is its EOS."""
    width = max(map(sum, lengths)) + padding
    tokens = torch.full((len(lengths), width), PAD)
    for row, (prompt, response) in enumerate(lengths):
        tokens[row, :prompt] = torch.tensor([eos] + [QUESTION] * (prompt - 1))
        tokens[row, prompt : prompt + response] = torch.tensor([*[WORD] * (response - 1), eos])
        if row in cut_off:
            tokens[row, prompt + response - 1] = WORD
    return Texts(
        tokens=tokens,
        prompt_lengths=torch.tensor([prompt for prompt, _ in lengths]),
        sequence_lengths=torch.tensor([prompt + response for prompt, response in lengths]),
        has_eos=torch.tensor([row not in cut_off for row in range(len(lengths))]),
    )


def _texts_of_every_shape() -> list[tuple[str, Texts]]:
    return [
        (f"{label}{known_as}", _texts(*shape, eos=eos))
        for label, shape in ROWS.items()
        for eos, known_as in ((EOS, ""), (PAD, "; PAD is the EOS"))
    ]


def _target_mask_cases() -> list[Case]:
    return [
        Case(f"{label}; {'query and response' if query else 'the response only'}", dict(texts=t, imitate_query=query))
        for label, t in _texts_of_every_shape()
        for query in (False, True)
    ]


def _sft_loss_cases() -> list[Case]:
    return [
        Case(label, {"log_probs": tensors["log_probs"], "target_mask": tensors["action_mask"]}, ("log_probs",))
        for label, tensors in of_every_shape()
    ]


def _read_score_cases() -> list[Case]:
    """A different number in every state; once with NaN in the padding."""
    found = []
    for seed, (label, texts) in enumerate(_texts_of_every_shape()):
        numbers = torch.randn(texts.tokens.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found.append(Case(label, dict(per_state=numbers, texts=texts), ("per_state",)))
        padding = torch.arange(numbers.shape[1]) >= texts.sequence_lengths[:, None]
        if bool(padding.any()):
            poisoned = numbers.masked_fill(padding, math.nan)
            found.append(Case(f"{label}; NaN stands in the padding", dict(per_state=poisoned, texts=texts)))
    return found


def _preference_cases() -> list[Case]:
    pairs = {
        "one pair, told apart": ([1.5], [-0.5]),
        "one pair, the wrong way round": ([-2.0], [1.0]),
        "one pair, the same score: a coin toss, ln 2": ([0.7], [0.7]),
        "three pairs": ([0.3, -1.2, 2.0], [1.1, -1.5, 0.0]),
        "three pairs whose scores lie around 100": ([100.3, 98.8, 102.0], [101.1, 98.5, 100.0]),
        "very sure, and wrong: exp(1000) is infinite": ([-500.0, 0.0], [500.0, 900.0]),
        "very sure, and right": ([40.0, 500.0], [0.0, -500.0]),
    }
    return [
        Case(label, dict(chosen_scores=_numbers(chosen), rejected_scores=_numbers(rejected)),
             ("chosen_scores", "rejected_scores"))
        for label, (chosen, rejected) in pairs.items()
    ]  # fmt: skip


def _numbers(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ what goes wrong


def _tokens_from(texts: Texts, first: Tensor | int, end: Tensor) -> Tensor:
    """[B, T-1] about tokens 1 to T-1: True from token `first` on and before token `end`."""
    token = torch.arange(1, texts.tokens.shape[1])
    return (token >= first) & (token < end[:, None])


def _first(texts: Texts, imitate_query: bool) -> Tensor:
    return torch.ones_like(texts.prompt_lengths)[:, None] if imitate_query else texts.prompt_lengths[:, None]


def _one_place_late(texts: Texts, *, imitate_query: bool) -> Tensor:
    token = torch.arange(texts.tokens.shape[1] - 1)
    return (token >= _first(texts, imitate_query)) & (token < texts.sequence_lengths[:, None])


def _for_each_state(texts: Texts, *, imitate_query: bool) -> Tensor:
    token = torch.arange(texts.tokens.shape[1])
    return (token >= _first(texts, imitate_query)) & (token < texts.sequence_lengths[:, None])


TARGET_MASK_TWINS = (
    Twin("you learn the query although only the response was asked for",
         lambda texts, *, imitate_query: _tokens_from(texts, 1, texts.sequence_lengths),
         "https://github.com/huggingface/open-r1/issues/648: without prompt and completion in columns of their own, "
         "TRL puts the loss on both"),
    Twin("you leave the query out although it was asked for",
         lambda texts, *, imitate_query: _tokens_from(texts, texts.prompt_lengths[:, None], texts.sequence_lengths)),
    Twin("your flag is upside down: with `imitate_query` the query counts",
         lambda texts, *, imitate_query: _tokens_from(texts, _first(texts, not imitate_query), texts.sequence_lengths)),
    Twin("you found padding by its id: where PAD is the EOS, nobody learns to stop",
         lambda texts, *, imitate_query: _tokens_from(texts, _first(texts, imitate_query), texts.sequence_lengths)
         & (texts.tokens[:, 1:] != PAD),
         "https://github.com/huggingface/trl/issues/1623; Hugging Face's language-modelling collator takes every "
         "token with the id of PAD out of the labels"),
    Twin("you leave the last token out: the EOS has to be learned, or the model never stops",
         lambda texts, *, imitate_query: _tokens_from(texts, _first(texts, imitate_query), texts.sequence_lengths - 1),
         "https://github.com/huggingface/trl/issues/1623"),
    Twin("you learn the first padding token as well",
         lambda texts, *, imitate_query: _tokens_from(texts, _first(texts, imitate_query), texts.sequence_lengths + 1)),
    Twin("your mask is one place late: place t is about token t+1, which is what state t has to predict",
         _one_place_late,
         "labels that are shifted by hand for a model that shifts them itself, or by nobody"),
    Twin("your mask has a place for each state: nothing is predicted in the last one, so it should be one narrower",
         _for_each_state),
    Twin("you leave the first token of the response out: it is predicted in the last state of the query",
         lambda texts, *, imitate_query: _tokens_from(texts, _first(texts, imitate_query) + 1, texts.sequence_lengths)),
    Twin("you start every response where the longest query ends: rows are padded on the right, each has its own start",
         lambda texts, *, imitate_query: _tokens_from(
             texts, _first(texts, imitate_query).amax(0, keepdim=True), texts.sequence_lengths),
         "code made for queries padded on the left, as N+ has them in PPO"),
)  # fmt: skip


SFT_LOSS_TWINS = (
    Twin("your sign is wrong: whoever minimises that makes the reference summaries less likely",
         lambda log_probs, target_mask: on(target_mask, log_probs)),
    Twin("you did not use the mask: query and padding are learned as well",
         lambda log_probs, target_mask: -log_probs,
         "https://github.com/huggingface/open-r1/issues/652"),
    Twin("you multiplied by the mask: 0 times NaN is NaN",
         lambda log_probs, target_mask: -log_probs * target_mask),
    Twin("your mask is upside down: you learn what should be left out",
         lambda log_probs, target_mask: on(~target_mask, -log_probs)),
    Twin("you averaged already: return one term for each action, so that micro-batches can be weighted by their tokens",
         lambda log_probs, target_mask: on(target_mask, -log_probs).sum() / target_mask.sum(),
         "verl, where micro-batches counted by their rows: https://github.com/verl-project/verl/pull/906; mlx-lm, "
         "where they counted alike: https://github.com/ml-explore/mlx-lm/pull/1413"),
    Twin("you averaged each row by itself: a token of a short summary then counts for more than one of a long one",
         lambda log_probs, target_mask: on(target_mask, -log_probs).sum(1) / target_mask.sum(1)),
    Twin("you divided by the length of the row: a token of a short summary then counts for more than one of a long one",
         lambda log_probs, target_mask: on(target_mask, -log_probs) / target_mask.sum(1, keepdim=True)),
    Twin("you used the probability, not its logarithm: an unlikely token then hardly has a gradient",
         lambda log_probs, target_mask: on(target_mask, -log_probs.exp())),
    Twin("you shifted once more: log-probability and mask already agree on what place t is about",
         lambda log_probs, target_mask: on(target_mask, -log_probs.roll(1, 1)),
         "labels that are shifted by hand for a model that shifts them itself"),
)  # fmt: skip


def _at(per_state: Tensor, index: Tensor) -> Tensor:
    """The entry of each row at an index, which is kept within the row."""
    return per_state.gather(1, index.clamp(0, per_state.shape[1] - 1)[:, None]).squeeze(1)


def _rightmost_other_than_pad(per_state: Tensor, texts: Texts) -> Tensor:
    places = torch.arange(per_state.shape[1])
    return _at(per_state, ((texts.tokens != PAD) * places).argmax(1))


def _before_first_pad(per_state: Tensor, texts: Texts) -> Tensor:
    index = (texts.tokens == PAD).int().argmax(1) - 1
    return _at(per_state, index % per_state.shape[1])


READ_SCORE_TWINS = (
    Twin("you looked for the last token that is not PAD: where PAD is the EOS, that is one token early",
         _rightmost_other_than_pad,
         "Hugging Face's ...ForSequenceClassification since https://github.com/huggingface/transformers/pull/35911"),
    Twin("you looked for the first PAD: where PAD is the EOS, that may stand in the prompt",
         _before_first_pad,
         "Hugging Face's ...ForSequenceClassification before that: "
         "https://github.com/huggingface/transformers/issues/35352"),
    Twin("you read one token too late: an index is a length less one",
         lambda per_state, texts: _at(per_state, texts.sequence_lengths),
         "https://github.com/deepspeedai/DeepSpeedExamples/pull/672 (`ends` points behind the EOS)"),
    Twin("you read one token too early: the reward model was trained to judge at the EOS, which it has to have read",
         lambda per_state, texts: _at(per_state, texts.sequence_lengths - 2),
         "https://github.com/EleutherAI/gpt-neox/pull/1285"),
    Twin("you read the last column: right for rows padded on the left, padding here",
         lambda per_state, texts: per_state[:, -1],
         "and its mirror image, a count of tokens as index into rows padded on the left: "
         "https://github.com/jingyaogong/minimind/issues/541"),
    Twin("you read the longest row's last place in every row",
         lambda per_state, texts: per_state[:, int(texts.sequence_lengths.max()) - 1]),
    Twin("you counted from the start of the response: the row begins with the prompt",
         lambda per_state, texts: _at(per_state, texts.sequence_lengths - texts.prompt_lengths - 1)),
    Twin("you read where the response begins, before the model has seen any of it",
         lambda per_state, texts: _at(per_state, texts.prompt_lengths - 1)),
    Twin("your scores have shape [B, 1]: less other scores of shape [B] they would give every pair of rows",
         lambda per_state, texts: _at(per_state, texts.sequence_lengths - 1)[:, None]),
    Twin("you returned one score for all rows",
         lambda per_state, texts: _at(per_state, texts.sequence_lengths - 1).mean()),
)  # fmt: skip


def _margin(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    return chosen_scores - rejected_scores


PREFERENCE_TWINS = (
    Twin("you turned the difference round: the model learns to prefer what was rejected",
         lambda chosen_scores, rejected_scores: -logsigmoid(rejected_scores - chosen_scores)),
    Twin("you took the logarithm of a sigmoid that is 0: a pair that is far wrong costs infinity and has no gradient",
         lambda chosen_scores, rejected_scores: -_margin(chosen_scores, rejected_scores).sigmoid().log(),
         "https://github.com/deepspeedai/DeepSpeedExamples/pull/501; written with an exponential: "
         "https://github.com/OpenRLHF/OpenRLHF/pull/1278"),
    Twin("you left the logarithm out: where the model is far wrong, the sigmoid is flat and nothing is learned",
         lambda chosen_scores, rejected_scores: -_margin(chosen_scores, rejected_scores).sigmoid(),
         "https://github.com/HarderThenHarder/transformers_tasks/issues/15"),
    Twin("your sign is wrong: that is the log-likelihood, a loss is its negative",
         lambda chosen_scores, rejected_scores: logsigmoid(_margin(chosen_scores, rejected_scores))),
    Twin("you used the bare difference: nothing stops it from growing for ever, also where it is right already",
         lambda chosen_scores, rejected_scores: rejected_scores - chosen_scores),
    Twin("you cut the loss off at zero: a hinge learns nothing more from a pair in the right order",
         lambda chosen_scores, rejected_scores: (rejected_scores - chosen_scores).clamp(min=0)),
    Twin("you judged each text by itself: only the difference of the two scores may count",
         lambda chosen_scores, rejected_scores: -logsigmoid(chosen_scores)
         - logsigmoid(-rejected_scores),
         "lucidrains/PaLM-rlhf-pytorch scores one text at a time: https://github.com/huggingface/trl/issues/1167"),
    Twin("you averaged already: return one term for each pair",
         lambda chosen_scores, rejected_scores: softplus(rejected_scores - chosen_scores).mean()),
    Twin("you compared every chosen text with every rejected one: only those of one pair were compared",
         lambda chosen_scores, rejected_scores: softplus(
             rejected_scores - chosen_scores[:, None]).mean(1)),
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ the exercises


def _exercise(library: Callable, specification: Callable, cases: Callable, twins: tuple[Twin, ...], **rest) -> Exercise:
    return Exercise(
        lesson="06_sft_and_reward_model",
        library=library,
        specification=specification,
        cases=cases,
        twins=twins,
        **rest,
    )


EXERCISES = (
    _exercise(
        sft.target_mask,
        target_mask_specification,
        _target_mask_cases,
        TARGET_MASK_TWINS,
        hints=(
            "Number the tokens of a row 0, 1, 2, ... Which of them is place t of the mask about? And which token is "
            "the only one that nobody ever predicts?",
            "`torch.arange(1, T)` holds the token that each place is about. Each row compares it with two numbers of "
            "its own. Token ids tell nothing: PAD may be the EOS.",
            "token >= start and token < end: `start` is 1 or the length of the prompt, `end` the length of the "
            "sequence, both as [B, 1] so that they meet [T-1].",
        ),
        difficulty=2,
        importance=4,
        minutes=10,
    ),
    _exercise(
        losses.sft_loss,
        sft_loss_specification,
        _sft_loss_cases,
        SFT_LOSS_TWINS,
        hints=(
            "How many nats does a token cost that the model gave a probability of 1? And one of 1/e?",
            "One term for each action; the caller divides. Whatever stands off the mask, NaN as well, must reach "
            "neither the value nor the gradient.",
            "`torch.where(mask, something, 0.0)`.",
        ),
        difficulty=1,
        importance=4,
        minutes=5,
    ),
    _exercise(
        models.read_score,
        read_score_specification,
        _read_score_cases,
        READ_SCORE_TWINS,
        hints=(
            "The record knows how long each row is. Do you need the tokens at all?",
            "A row of n tokens ends at index n - 1. Pick one number from each row: `gather`, or indexing with two "
            "tensors.",
            "`per_state.gather(1, index[:, None])` has shape [B, 1]: one dimension has to go.",
        ),
        difficulty=2,
        importance=5,
        minutes=10,
    ),
    _exercise(
        losses.preference_loss,
        preference_loss_specification,
        _preference_cases,
        PREFERENCE_TWINS,
        hints=(
            "What is the sigmoid of -1000 in floating point, and its logarithm?",
            "The answer is almost a straight line where the model is far wrong. torch has functions that know this: "
            "look for one whose name contains both words, or for softplus.",
            "-log sigmoid(x) = log(1 + exp(-x)) = softplus(-x).",
        ),
        difficulty=2,
        importance=4,
        minutes=10,
    ),
)
