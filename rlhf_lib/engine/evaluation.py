"""Comparing texts: ROUGE-L, copying, repetition, win rates with intervals. Pure Python and torch; no model or world."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor


def longest_common_subsequence(a: Sequence, b: Sequence) -> int:
    """Length of the longest sequence found in both in this order, gaps allowed."""
    lengths = [0] * (len(b) + 1)
    for item in a:
        previous = 0
        for place, other in enumerate(b, 1):
            previous, lengths[place] = (
                lengths[place],
                (previous + 1 if item == other else max(lengths[place], lengths[place - 1])),
            )
    return lengths[-1]


def rouge_l(candidate: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words, 0 to 1 (Lin 2004), as rouge-score's `rougeL`."""
    a, b = _words(candidate), _words(reference)
    common = longest_common_subsequence(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def is_copy(candidate: str, source: str, *, share: float = 0.8) -> bool:
    """True if at least `share` of the words of each are a common subsequence with the other."""
    a, b = _words(candidate), _words(source)
    return bool(a and b) and longest_common_subsequence(a, b) >= share * max(len(a), len(b))


def repeats_itself(text: str, *, words: int = 3) -> bool:
    """True if some run of so many words occurs twice."""
    said = _words(text)
    runs = [tuple(said[start : start + words]) for start in range(len(said) - words + 1)]
    return len(set(runs)) < len(runs)


def wins(scores: Tensor, against: Tensor) -> Tensor:
    """[N] 1 where the first is better, 1/2 for a tie, 0 where it is worse."""
    return (scores > against).double() + (scores == against).double() / 2


def bootstrap_interval(values: Tensor, *, resamples: int, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of [N] values, resampling whole entries (Efron 1979)."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(values), (resamples, len(values)), generator=generator)
    means = values.double()[draws].mean(1)
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def _words(text: str) -> list[str]:
    """Lower-case runs of letters and digits, as rouge-score tokenises."""
    return re.findall(r"[a-z0-9]+", text.lower())
