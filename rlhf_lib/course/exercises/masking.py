"""Lesson 01: masks from lengths, and the mean, variance, softmax and whitening that read only what counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...maths import masking
from ..exercise import Case, Exercise, Twin
from .cases import of_every_shape

PREAMBLE = """
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_lib.maths.masking import WHITEN_EPS
"""

# ------------------------------------------------------------------------------------------------ what is right


def mask_from_lengths_specification(lengths: Tensor, width: int) -> Tensor:
    """One place at a time."""
    return torch.tensor([[place < length for place in range(width)] for length in lengths.tolist()])


def masked_mean_specification(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """The numbers that count, added up and divided by how many they are."""
    return _one_for_each(_mean, x, mask, dim)


def masked_var_specification(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """The mean squared distance from the mean, of the numbers that count."""
    return _one_for_each(_var, x, mask, dim)


def masked_softmax_specification(logits: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """exp(x) over the sum of exp(x), along each line, of the numbers that count."""

    def softmax(line: Sequence[float], counts: Sequence[bool]) -> list[float]:
        biggest = max((number for number, counted in zip(line, counts) if counted), default=0.0)
        weights = [math.exp(number - biggest) if counted else 0.0 for number, counted in zip(line, counts)]
        return [weight / sum(weights) if any(counts) else 0.0 for weight in weights]

    lines = logits.movedim(dim, -1)
    pairs = zip(
        lines.reshape(-1, lines.shape[-1]).tolist(), mask.movedim(dim, -1).reshape(-1, lines.shape[-1]).tolist()
    )
    found = torch.tensor([softmax(*pair) for pair in pairs], dtype=logits.dtype)
    return found.reshape(lines.shape).movedim(-1, dim)


def whiten_specification(x: Tensor, mask: Tensor) -> Tensor:
    """Every number that counts, less their mean, over the root of their variance and 1e-8."""
    (numbers,) = _lines(x, mask, None)
    found = torch.zeros_like(x)
    if numbers:
        scale = math.sqrt(_var(numbers) + 1e-8)
        found[mask] = torch.tensor([(number - _mean(numbers)) / scale for number in numbers], dtype=x.dtype)
    return found


def _lines(x: Tensor, mask: Tensor, dim: int | None) -> list[list[float]]:
    """The numbers that count: a list for each line along `dim`, or one list of all."""
    if dim is None:
        x, mask, dim = x.reshape(1, -1), mask.reshape(1, -1), 1
    pairs = zip(x.movedim(dim, -1).tolist(), mask.movedim(dim, -1).tolist(), strict=True)
    return [[number for number, counts in zip(*pair, strict=True) if counts] for pair in pairs]


def _one_for_each(number: Callable, x: Tensor, mask: Tensor, dim: int | None) -> Tensor:
    found = torch.tensor([number(line) for line in _lines(x, mask, dim)], dtype=x.dtype)
    return found[0] if dim is None else found


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else math.nan


def _var(numbers: list[float]) -> float:
    mean = _mean(numbers)
    return _mean([(number - mean) ** 2 for number in numbers])


# ------------------------------------------------------------------------------------------------ what is tried

NOTHING_COUNTS = "nothing counts"
Makers = Callable[[], list[Case]]


def _masks(*rows: str) -> Tensor:
    return torch.tensor([[mark == "x" for mark in row] for row in rows])


def _numbers(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _shapes(name: str, **rest: object) -> list[Case]:
    """Every shape, clean and with NaN in padding, with its gradient."""
    return [
        Case(label, {name: tensors["rewards"], "mask": tensors["action_mask"], **rest}, gradients=(name,))
        for label, tensors in of_every_shape()
    ]


def _lengths_cases() -> list[Case]:
    cases = {
        "one row, nothing behind it": ([2], 2),
        "one row, two places of padding": ([1], 3),
        "a row without a token": ([0, 2], 2),
        "rows of different lengths": ([3, 1, 4], 4),
        "wider than the longest row": ([2, 5, 1], 7),
        "rows longer than the mask is wide are cut": ([3, 6], 4),
    }
    return [Case(label, {"lengths": torch.tensor(n), "width": width}) for label, (n, width) in cases.items()]


def _statistics_cases() -> list[Case]:
    """For mean and variance: over everything, along rows and along columns."""
    along_rows = [Case(f"along rows: {case.label}", case.arguments, case.gradients) for case in _shapes("x", dim=1)]
    x, mask = _numbers([1, 2, 30], [4, 50, 60]), _masks("xx.", "x..")
    return [
        *_shapes("x"),
        *along_rows,
        Case("along columns; in the last one nothing counts", {"x": x, "mask": mask, "dim": 0}),
        Case("along the last dimension, counted from behind", {"x": x, "mask": mask, "dim": -1}, gradients=("x",)),
        Case(f"{NOTHING_COUNTS}: the mean of no numbers is NaN, so that it is seen", {"x": x, "mask": mask & False}),
        Case("a NaN that counts: it must be seen", {"x": _numbers([1, math.nan, 3]), "mask": _masks("xx.")}),
        Case("infinity in padding", {"x": _numbers([1, 2, math.inf]), "mask": _masks("xx.")}, gradients=("x",)),
        Case("numbers far from zero", {"x": x + 1e6, "mask": mask}),
    ]


def _softmax_cases() -> list[Case]:
    by_hand = _numbers([1, math.nan, -2, 0.5], [3, 4, math.inf, 5], [1, 2, 3, 4])
    some = _masks("x.xx", ".x.x", "....")
    return [
        *_shapes("logits"),
        Case(f"a row in which {NOTHING_COUNTS}",
             {"logits": by_hand, "mask": some}, gradients=("logits",)),
        Case("down the columns",
             {"logits": by_hand, "mask": _masks("x..x", "xx..", ".xxx"), "dim": 0}, gradients=("logits",)),
        Case("rows of rows: the last dimension", {"logits": by_hand[:, None], "mask": some[:, None]}),
        Case("logits whose exponential overflows", {"logits": _numbers([1000, 999, 0]), "mask": _masks("xx.")}),
        Case("logits far below zero, padding far above",
             {"logits": _numbers([-1e5, -1e5 - 1, 1e5]), "mask": _masks("xx.")}),
    ]  # fmt: skip


def _whiten_cases() -> list[Case]:
    x, mask = _numbers([1, 2, 30], [4, 50, 60]), _masks("xx.", "x..")
    return [
        *_shapes("x"),
        Case(NOTHING_COUNTS, {"x": x, "mask": mask & False}),
        Case("numbers that hardly differ", {"x": 3 + 1e-4 * x, "mask": mask}),
        Case("numbers far from zero", {"x": x + 1000, "mask": mask}),
    ]


# ------------------------------------------------------------------------------------------------ what goes wrong


def _on(mask: Tensor, x: Tensor, otherwise: float = 0.0) -> Tensor:
    return torch.where(mask, x, otherwise)


def _mean_of(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    return _on(mask, x).sum(dim) / mask.sum(dim)


def _less(x: Tensor, mean: Tensor, dim: int | None) -> Tensor:
    return x - (mean if dim is None else mean.unsqueeze(dim))


def _var_of(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    return _mean_of(_less(_on(mask, x), _mean_of(x, mask, dim), dim) ** 2, mask, dim)


LENGTHS_TWINS = (
    Twin("you count one place too many: a length is a number of tokens, not the index of the last one",
         lambda lengths, width: torch.arange(width) <= lengths[:, None],
         "vwxyzjn/summarize_from_feedback_details: its `sequence_lengths` hold last indices, and need an extra mask "
         "one slot longer"),
    Twin("you lose the last token: for a row of n tokens the places 0 to n-1 count, and the last of them is the EOS "
         "that is paid for",
         lambda lengths, width: torch.arange(width) < lengths[:, None] - 1),
    Twin("your mask is upside down: it is True for padding, and True should mean that a place counts",
         lambda lengths, width: torch.arange(width) >= lengths[:, None],
         "torchtune, whose `padding_masks` are True for padding in one place and True for tokens in another"),
    Twin("your rows lie on the right: that is the mask of rows padded on the left",
         lambda lengths, width: torch.arange(width) >= width - lengths[:, None],
         "https://github.com/jingyaogong/minimind/issues/541 reads rows from the wrong side"),
    Twin("every row is as long as the longest: compare each row with its own length",
         lambda lengths, width: (torch.arange(width) < lengths.max()).expand(len(lengths), width)),
    Twin("your mask is as wide as the longest row: the tensors it will meet are `width` wide",
         lambda lengths, width: torch.arange(int(lengths.max())) < lengths[:, None]),
    Twin("your mask holds numbers, not booleans: `~mask` then gives -1 and -2, and indexing takes rows 0 and 1",
         lambda lengths, width: (torch.arange(width) < lengths[:, None]).long()),
)  # fmt: skip

MEAN_TWINS = (
    Twin("you averaged over everything: padding is in the sum and in the count", lambda x, mask, dim=None: x.mean(dim)),
    Twin("you took padding out of the sum but left it in the count: the mean is too small by the fill rate",
         lambda x, mask, dim=None: _on(mask, x).mean(dim),
         "the logged approximate KL of N+, TRL, torchtune and trlx: a plain mean of terms that are 0 in padding"),
    Twin("you multiplied by the mask: 0 times NaN is NaN, and 0 times infinity too, so padding comes through",
         lambda x, mask, dim=None: (x * mask).sum(dim) / mask.sum(dim),
         "torchtune's `masked_mean`, and many others"),
    Twin("you averaged the means of the rows: a token in a short row then weighs more than one in a long row",
         lambda x, mask, dim=None: _mean_of(x, mask, 1).mean() if dim is None else _mean_of(x, mask, dim)),
    Twin("you forgot `dim`: with it, every line along that dimension has a mean of its own",
         lambda x, mask, dim=None: _mean_of(x, mask)),
    Twin("you hide that nothing counted: a mean of no numbers is NaN, and 0 would look like a measurement",
         lambda x, mask, dim=None: _on(mask, x).sum(dim) / mask.sum(dim).clamp(min=1),
         "torchtune's `masked_mean`, which adds 1e-8 to the count"),
    Twin("you swept a NaN away that counts: NaN in padding must not be read, but NaN in a result is a bug to be seen",
         lambda x, mask, dim=None: _on(mask & ~x.isnan(), x).sum(dim) / mask.sum(dim)),
    Twin("your mask is upside down: True means that an entry counts",
         lambda x, mask, dim=None: _on(~mask, x).sum(dim) / (~mask).sum(dim)),
)  # fmt: skip

VAR_TWINS = (
    Twin("you took the variance of everything, padding included",
         lambda x, mask, dim=None: x.var(dim, correction=0)),
    Twin("you put zeros into padding and took the variance of everything: the zeros count as numbers",
         lambda x, mask, dim=None: _on(mask, x).var(dim, correction=0)),
    Twin("you divided by the number of all places: the variance is too small by the fill rate",
         lambda x, mask, dim=None: (_on(mask, _less(_on(mask, x), _mean_of(x, mask, dim), dim)) ** 2).mean(dim)),
    Twin("you took distances from a mean that is diluted by padding",
         lambda x, mask, dim=None: _mean_of(_less(_on(mask, x), _on(mask, x).mean(dim), dim) ** 2, mask, dim)),
    Twin("you divided by the count less one: a single entry then gives NaN, not 0",
         lambda x, mask, dim=None: _var_of(x, mask, dim) * mask.sum(dim) / (mask.sum(dim) - 1),
         "the `masked_var` of TRL and torchtune, by default"),
    Twin("you took mean(x^2) - mean(x)^2: far from zero that is the difference of two huge numbers, and all rounding",
         lambda x, mask, dim=None: _mean_of(_on(mask, x) ** 2, mask, dim) - _mean_of(x, mask, dim) ** 2),
    Twin("you returned the standard deviation: the variance is its square",
         lambda x, mask, dim=None: _var_of(x, mask, dim).sqrt()),
    Twin("your values are right but your gradient is NaN: you squared what stands in padding before you left it out, "
         "and backward multiplies the 0 that comes back by it",
         lambda x, mask, dim=None: _mean_of(_less(x, _mean_of(x, mask, dim), dim) ** 2, mask, dim)),
    Twin("you multiplied by the mask: 0 times NaN is NaN",
         lambda x, mask, dim=None: (
             (_less(x, (x * mask).sum(dim) / mask.sum(dim), dim) ** 2 * mask).sum(dim) / mask.sum(dim)
         ), "torchtune's `masked_var`"),
    Twin("you forgot `dim`: with it, every line along that dimension has a variance of its own",
         lambda x, mask, dim=None: _var_of(x, mask)),
)  # fmt: skip


def _softmax_with(weights: Callable, dim_of: Callable = lambda dim: dim) -> Callable:
    """0 where nothing may stand, and else what `weights(logits, mask, dim)` says."""
    return lambda logits, mask, dim=-1: _on(mask, weights(logits, mask, dim_of(dim)))


def _from_exponentials(logits: Tensor, mask: Tensor, dim: int, exponentials: Callable) -> Tensor:
    found = exponentials(logits, mask, dim)
    total = found.sum(dim, keepdim=True)
    return found / torch.where(total > 0, total, 1.0)


def _biggest(logits: Tensor, mask: Tensor, dim: int) -> Tensor:
    return _on(mask, logits, torch.finfo(logits.dtype).min).amax(dim, keepdim=True).detach()


def _replaced(logits: Tensor, mask: Tensor, dim: int, otherwise: float) -> Tensor:
    return torch.softmax(_on(mask, logits, otherwise), dim)


SOFTMAX_TWINS = (
    Twin("you did not use the mask", lambda logits, mask, dim=-1: torch.softmax(logits, dim)),
    Twin("you masked after normalising: what padding took is lost, and the rest does not add up to 1",
         _softmax_with(lambda logits, mask, dim: torch.softmax(logits, dim))),
    Twin("you put 0 into padding as its logit: 0 is a logit like any other, and exp(0) is 1",
         _softmax_with(lambda logits, mask, dim: _replaced(logits, mask, dim, 0.0))),
    Twin("you spread a row in which nothing counts evenly over its padding: it has to be 0 throughout",
         lambda logits, mask, dim=-1: _replaced(logits, mask, dim, torch.finfo(logits.dtype).min),
         "attention that adds the smallest number of the dtype: states of left padding look at everything"),
    Twin("a row in which nothing counts gives NaN: -inf everywhere is 0 divided by 0, and the row needs zeros",
         lambda logits, mask, dim=-1: _replaced(logits, mask, dim, -torch.inf)),
    Twin("you forgot `dim`: you normalised along the last dimension",
         _softmax_with(lambda logits, mask, dim: _replaced(logits, mask, dim, torch.finfo(logits.dtype).min),
                       lambda dim: -1)),
    Twin("your exponential overflows: take the largest logit off first, or leave it to torch.softmax",
         _softmax_with(lambda logits, mask, dim: _from_exponentials(
             logits, mask, dim, lambda x, m, d: _on(m, x, -torch.inf).exp()))),
    Twin("your number for padding is not small enough: next to logits that are smaller still, it wins",
         _softmax_with(lambda logits, mask, dim: _replaced(logits, mask, dim, -10_000.0)),
         "the additive attention masks of the first BERT models, which were -10000"),
    Twin("you added a large negative number to padding: NaN plus anything is NaN, so replace instead",
         _softmax_with(lambda logits, mask, dim: torch.softmax(
             logits + _on(mask, torch.zeros_like(logits), torch.finfo(logits.dtype).min), dim))),
    Twin("your values are right but your gradient is NaN: you took the exponential of padding before you left it out",
         _softmax_with(lambda logits, mask, dim: _from_exponentials(
             logits, mask, dim, lambda x, m, d: _on(m, (x - _biggest(x, m, d)).exp())))),
    Twin("you normalised over the whole tensor: each line adds up to 1 by itself",
         _softmax_with(lambda logits, mask, dim: _replaced(
             logits.flatten(), mask.flatten(), 0, torch.finfo(logits.dtype).min).reshape(logits.shape))),
)  # fmt: skip


def _whiten_with(mean: Callable = _mean_of, var: Callable = _var_of, scale: Callable = lambda v: (v + 1e-8).rsqrt()):
    """Whitening with other statistics; their `mean(x, mask)` and `var(x, mask)`."""

    def whiten(x: Tensor, mask: Tensor) -> Tensor:
        kept = _on(mask, x)
        return _on(mask, (kept - mean(x, mask)) * scale(var(x, mask)))

    return whiten


def _each_row(statistic: Callable) -> Callable:
    return lambda x, mask: statistic(x, mask, 1).unsqueeze(1)


WHITEN_TWINS = (
    Twin("you took mean and variance over padding as well",
         _whiten_with(lambda x, mask: x.mean(), lambda x, mask: x.var(correction=0)),
         "trlx whitens advantages without a mask"),
    Twin("you put zeros into padding and whitened with the mean and variance of everything: the zeros count as numbers",
         _whiten_with(lambda x, mask: _on(mask, x).mean(), lambda x, mask: _on(mask, x).var(correction=0))),
    Twin("you added the mean back: the result has the mean it came with, and many advantages the wrong sign",
         lambda x, mask: _on(mask, _whiten_with()(x, mask) + _mean_of(x, mask)),
         "ash80/RLHF_in_notebooks, notebook 3, cell 46; torchtune, whose `shift_mean` means the opposite of TRL's"),
    Twin("you scaled but did not centre", _whiten_with(mean=lambda x, mask: torch.zeros_like(x[0, 0]))),
    Twin("you divided the variance by the count less one: a single entry gives NaN instead of 0",
         _whiten_with(var=lambda x, mask: _var_of(x, mask) * mask.sum() / (mask.sum() - 1)),
         "the `masked_whiten` of TRL"),
    Twin("you left -mean/std in padding: whatever sums over the tensor later reads it",
         lambda x, mask: (_on(mask, x) - _mean_of(x, mask)) * (_var_of(x, mask) + 1e-8).rsqrt(),
         "ash80/RLHF_in_notebooks, notebook 3, cell 46, does not mask again"),
    Twin("you whitened each row by itself: a row that went badly as a whole must stay below one that went well",
         _whiten_with(_each_row(_mean_of), _each_row(_var_of))),
    Twin("you divided by the variance: it is its root that brings the spread to 1",
         _whiten_with(scale=lambda v: 1 / (v + 1e-8))),
    Twin("your small number stands outside the root: inside, it is added to the variance",
         _whiten_with(scale=lambda v: 1 / (v.sqrt() + 1e-8))),
    Twin("you multiplied by the mask: 0 times NaN is NaN",
         lambda x, mask: (x - _mean_of(x, mask)) * (_var_of(x, mask) + 1e-8).rsqrt() * mask),
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ the exercises


def _exercise(library: Callable, specification: Callable, cases: Makers, twins: tuple[Twin, ...], **rest) -> Exercise:
    return Exercise(lesson="01_masking", library=library, specification=specification, cases=cases, twins=twins, **rest)


EXERCISES = (
    _exercise(
        masking.mask_from_lengths,
        mask_from_lengths_specification,
        _lengths_cases,
        LENGTHS_TWINS,
        hints=(
            "Number the places of a row 0, 1, 2, ... Which of them count in a row of three tokens?",
            "`torch.arange(width)` numbers the places. Every row compares them with its own length: which shapes "
            "have to meet for that?",
            "A comparison of [width] with [B, 1] broadcasts to [B, width], and its result is boolean.",
        ),
        difficulty=1,
        importance=5,
        minutes=5,
    ),
    _exercise(
        masking.masked_mean,
        masked_mean_specification,
        _statistics_cases,
        MEAN_TWINS,
        hints=(
            "Two things have to leave padding out: the sum, and what it is divided by.",
            "Put 0 where the mask is False without reading what stood there: select, do not multiply. Then a plain sum "
            "is a masked sum. Nothing special has to be done where nothing counts: what is 0 divided by 0?",
            "`torch.where(mask, x, 0.0)` selects; `sum(dim)` takes `dim=None` as well, for `x` and for `mask`.",
        ),
        difficulty=2,
        importance=5,
        minutes=10,
    ),
    _exercise(
        masking.masked_var,
        masked_var_specification,
        _statistics_cases,
        VAR_TWINS,
        hints=(
            "A variance is a mean: of what?",
            "Take the masked mean off, along `dim` if there is one, then average the squares with your `masked_mean`. "
            "If the values are right and the gradient is NaN, ask what was squared.",
            "Select before you square: put 0 where the mask is False into `x` first, or into the distances. "
            "With `dim`, the mean needs its dimension back: `unsqueeze(dim)`.",
        ),
        difficulty=3,
        importance=3,
        minutes=10,
    ),
    _exercise(
        masking.masked_softmax,
        masked_softmax_specification,
        _softmax_cases,
        SOFTMAX_TWINS,
        hints=(
            "Which logit makes exp(logit) equal to 0? And what is left when a whole row has that logit?",
            "Replace the logits that do not count before the softmax, and look after the result once more: there are "
            "rows in which nothing counts.",
            "`torch.where` twice: around the logits with -inf (or the smallest number of their dtype), and around the "
            "softmax with 0.",
        ),
        difficulty=3,
        importance=4,
        minutes=10,
    ),
    _exercise(
        masking.whiten,
        whiten_specification,
        _whiten_cases,
        WHITEN_TWINS,
        hints=(
            "What should the mean of the result be, over the entries that count? And what should stand elsewhere?",
            "Your `masked_mean` and `masked_var` do the reading. One number each for the whole tensor. Then think of "
            "what the subtraction leaves in padding.",
            "Select `x` first, subtract the mean, multiply by `torch.rsqrt(variance + WHITEN_EPS)`, select again.",
        ),
        difficulty=2,
        importance=5,
        minutes=10,
    ),
)
