"""Rows, micro-batches and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lib.engine import distributed
from rlhf_lib.engine.batching import (
    buckets,
    in_micro_batches,
    make_texts,
    micro_batch,
    own_buckets,
    own_pairs,
    pad_rows,
)
from rlhf_lib.maths.alignment import action_mask_from_lengths
from rlhf_lib.maths.masking import mask_from_lengths
from rlhf_lib.maths.records import Targets
from tests.helpers import assert_close, floats
from tests.tiny import EOS, PAD, ragged_texts

pairs = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=7)


def texts_of(lengths):
    """Rows with (prompt, response) tokens; every token differs from every other."""
    number = iter(range(2, 1000))
    prompts, responses = ([[next(number) for _ in range(pair[side])] for pair in lengths] for side in (0, 1))
    return make_texts(prompts, responses, pad_token_id=PAD, eos_token_id=EOS)


def look(texts):
    """Something per state, per action and per row, of different types; 0 where there is only padding."""
    real = mask_from_lengths(texts.sequence_lengths, texts.tokens.shape[1])
    actions = action_mask_from_lengths(texts.prompt_lengths, texts.sequence_lengths, texts.tokens.shape[1])
    return (texts.tokens * real).double() / 7, actions, texts.tokens.sum(1)


@pytest.mark.parametrize(
    ("prompts", "responses", "says"),
    [([[5], [], [6]], [[7]] * 3, "prompt 1 "), ([[5], [6]], [[7], []], "response 1 ")],
)
def test_nothing_to_read(prompts, responses, says):
    """Rejects an empty prompt hidden by its response (the first action would have no state), and an IndexError."""
    with pytest.raises(ValueError, match=f"{says}.*is empty"):
        make_texts(prompts, responses, pad_token_id=PAD, eos_token_id=EOS)
    if [] in prompts:
        with pytest.raises(ValueError, match=r"row 1 .*is empty"):
            pad_rows(prompts, pad_token_id=PAD)


@given(pairs, st.integers(1, 8))
def test_micro_batches_give_what_the_whole_gives(lengths, rows):
    """Rejects rows left in sorted order, results left at their bucket's width, and a last bucket that is dropped."""
    texts = texts_of(lengths)
    for ours, whole in zip(in_micro_batches(look, texts, rows), look(texts), strict=True):
        assert ours.dtype == whole.dtype
        assert ours.equal(whole)


@given(pairs, st.integers(1, 8))
def test_buckets_cover_each_row_once(lengths, rows):
    """Rejects a row that is lost or counted twice, a bucket that is too large, and rows that are not sorted."""
    texts = texts_of(lengths)
    found = list(buckets(texts, rows))
    order = torch.cat(found)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert all(0 < len(index) <= rows for index in found)
    assert texts.sequence_lengths[order].diff().ge(0).all()


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_processes_make_equally_many_micro_batches(monkeypatch, processes):
    """Rejects shares as they fall: of three micro-batches one process would make two, and wait for the other one.

    And rows or pairs that are left out or dealt out twice, and micro-batches of two rows too many.
    """
    monkeypatch.setattr(distributed, "size", lambda: processes)
    for rows in range(processes, 14):
        texts, pairs = texts_of([(1, 2)] * rows), torch.arange(rows)
        for at_once in range(1, 6):
            buckets_of, pairs_of = [], []
            for rank in range(processes):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                buckets_of.append(own_buckets(texts, at_once))
                pairs_of.append([part.tokens[a] for part, a, _ in own_pairs(texts, pairs, pairs.flip(0), at_once)])
            assert len({len(own) for own in buckets_of}) == len({len(own) for own in pairs_of}) == 1
            dealt = torch.cat([index for own in buckets_of for index in own])
            assert sorted(dealt.tolist()) == list(range(rows))
            chosen = torch.cat([tokens for own in pairs_of for tokens in own])
            assert chosen.equal(texts.tokens)
            assert all(0 < len(part) <= at_once + 1 for own in buckets_of + pairs_of for part in own)


def test_short_rows_meet_no_long_padding():
    """Rejects micro-batches as wide as the whole: the point of the buckets."""
    widths = []
    in_micro_batches(lambda part: widths.append(part.tokens.shape[1]) or (part.sequence_lengths,), ragged_texts(), 2)
    longest = ragged_texts().sequence_lengths.sort().values
    assert widths == [int(part.max()) for part in longest.split(2)]


def test_targets_are_cut_with_their_texts():
    """Rejects action-indexed targets cut to the width of states: row 0 has 3 tokens, so 2 places, and not 3."""
    texts = texts_of([(1, 2), (2, 3)])
    targets = Targets(floats([1, 2, 0, 0], [0, 3, 4, 5]), floats([6, 7, 0, 0], [0, 8, 9, 1]))
    cut = micro_batch(targets, texts, torch.tensor([0]))
    assert_close(cut.advantages, floats([1, 2]))
    assert_close(cut.returns, floats([6, 7]))


@pytest.mark.parametrize("pad", [PAD, EOS])
def test_make_texts_by_hand(pad):
    """Rejects padding on the left, lengths read from token ids (PAD may be EOS), and an EOS that is not there."""
    texts = make_texts([[5, 6, 7], [8], [EOS]], [[9, EOS], [EOS], [4]], pad_token_id=pad, eos_token_id=EOS)
    assert texts.tokens.tolist() == [[5, 6, 7, 9, EOS], [8, EOS, pad, pad, pad], [EOS, 4, pad, pad, pad]]
    assert texts.prompt_lengths.tolist() == [3, 1, 1]
    assert texts.sequence_lengths.tolist() == [5, 2, 2]
    assert texts.has_eos.tolist() == [True, True, False]


def test_pad_rows_by_hand():
    """Rejects a length that counts padding, and a PAD that is not the one asked for."""
    tokens, lengths = pad_rows([[3], [4, 5, 6]], pad_token_id=9)
    assert (tokens.tolist(), lengths.tolist()) == ([[3, 9, 9], [4, 5, 6]], [1, 3])
