"""Comparing texts."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from rlhf_lib.engine.evaluation import (
    bootstrap_interval,
    is_copy,
    longest_common_subsequence,
    repeats_itself,
    rouge_l,
    wins,
)
from tests.helpers import assert_close, floats

texts = st.text(alphabet="aAbB1 .,'-éİ\n", max_size=25)  # few letters, so that words meet
short = st.lists(st.integers(0, 3), max_size=8)


@given(texts, texts)
def test_rouge_l_is_rouge_scores(candidate, reference):
    """Rejects recall or precision for F, other words (case, hyphens, accents), and empty texts that divide by 0."""
    theirs = RougeScorer(["rougeL"], use_stemmer=False).score(reference, candidate)["rougeL"].fmeasure
    assert_close(floats(rouge_l(candidate, reference)), floats(theirs))


@given(short, short)
def test_longest_common_subsequence(a, b):
    """Rejects common substrings and bags of words, against the definition by cases."""

    @cache
    def spec(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        return 1 + spec(i + 1, j + 1) if a[i] == b[j] else max(spec(i + 1, j), spec(i, j + 1))

    assert longest_common_subsequence(a, b) == spec(0, 0)


@pytest.mark.parametrize(
    ("candidate", "source", "copied"),
    [
        ("a b c d", "a b c d e", True),  # 4 of 5 on the longer side: exactly the share
        ("a b c", "a b c d e", False),  # all of the first, but 3 of 5 of the second
        ("a b c d e", "a b c", False),
        ("d c b a", "a b c d", False),  # the words, not their order
        ("A, B!", "a b", True),
        ("", "", False),
    ],
)
def test_is_copy(candidate, source, copied):
    """Rejects a share of one side only, > for >=, and empty texts that copy each other."""
    assert is_copy(candidate, source) is copied


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("my boss sold my bike , should i sue ?", False),  # "my" comes twice, no three words do
        ("my boss sold my bike ? My boss sold, my bike", True),
        ("a b c x a b c", True),
        ("a b x a b y a b", False),  # two words in a row are no repetition
        ("a a a a", True),
        ("a a a", False),
        ("", False),
    ],
)
def test_repeats_itself(text, twice):
    """Rejects single words that count, marks and capitals that hide a repeat, and the last words left out."""
    assert repeats_itself(text) is twice


def test_wins_by_hand():
    """Rejects ties that count as wins or losses, and the other side's wins."""
    assert_close(wins(floats(2, 1, 1), floats(1, 1, 2)), floats(1, 0.5, 0))


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_interval_covers_the_mean_as_often_as_it_says(level):
    """Rejects intervals of values instead of means, one-sided tails, and resampling without replacement.

    Of 600 intervals from 60 skewed values each, the number that covers the true mean is binomial; the percentile method
    is known to cover a little less than it says at this size (Efron and Tibshirani 1993, chapter 13).
    """
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(600):
        values = -torch.rand(60, generator=generator, dtype=torch.float64).log()  # exponential: mean 1
        low, high = bootstrap_interval(values, resamples=300, seed=seed, level=level)
        covered += low < 1 < high
    spread = (level * (1 - level) / 600) ** 0.5
    assert level - 0.03 - 2 * spread < covered / 600 < level + 2 * spread


def test_interval_depends_on_its_seed_alone():
    """Rejects the global generator, and a seed that is not used."""
    values = torch.randn(20, generator=torch.Generator().manual_seed(0))
    ours = bootstrap_interval(values, resamples=50, seed=1)
    torch.manual_seed(5)
    assert bootstrap_interval(values, resamples=50, seed=1) == ours
    assert bootstrap_interval(values, resamples=50, seed=2) != ours
