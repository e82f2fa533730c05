"""Reward modelling: Bradley-Terry on the score at the last token."""

import math
from dataclasses import replace

import pytest
import torch

from rlhf_lib.algorithms.reward_model import (
    Comparisons,
    RewardModelConfig,
    centre,
    new_state,
    score_texts,
    train_reward_model,
)
from rlhf_lib.engine.batching import make_texts
from rlhf_lib.engine.models import load_scorer, scorer_from_policy
from tests.algorithms.tiny_world import comparisons
from tests.tiny import EOS, PAD, disturb, ragged_texts, random_rows, tiny_llama

CONFIG = RewardModelConfig(steps=4, learning_rate=1e-3, head_learning_rate=1e-2)


def make_scorer(offset=0.0):
    scorer = disturb(scorer_from_policy(tiny_llama(), seed=0))
    scorer.config.reward_offset = offset
    return scorer


@torch.no_grad()
def scores_alone(scorer, texts) -> list[float]:
    """Hugging Face's scores, one row at a time and without padding."""
    rows = zip(texts.tokens, texts.sequence_lengths, strict=True)
    return [float(scorer.score(scorer.model(row[None, :end]).last_hidden_state)[0, -1, 0]) for row, end in rows]


def test_loss_by_hand():
    """Rejects chosen and rejected swapped, a sum over pairs, pairs that read other rows, and ties that count."""
    batch, scorer = comparisons(), make_scorer()
    tie = torch.tensor([2])
    batch = replace(batch, chosen=torch.cat([batch.chosen, tie]), rejected=torch.cat([batch.rejected, tie]))
    scores = scores_alone(scorer, batch.texts)
    gaps = [scores[a] - scores[b] for a, b in zip(batch.chosen.tolist(), batch.rejected.tolist(), strict=True)]
    assert 0 < sum(gap > 0 for gap in gaps) < len(gaps)
    metrics = next(train_reward_model(new_state(scorer, CONFIG), [batch], CONFIG))
    assert math.isclose(metrics["loss"], sum(math.log1p(math.exp(-gap)) for gap in gaps) / len(gaps), rel_tol=1e-5)
    assert math.isclose(metrics["agreement"], sum(gap > 0 for gap in gaps) / len(gaps), rel_tol=1e-6)


def test_micro_batches_change_nothing():
    """Rejects a mean of means, a gradient of the last micro-batch alone, and pairs that read rows of another one."""
    batch, whole, cut = comparisons(), make_scorer(), make_scorer()
    assert len(batch.chosen) % 2 == 1
    expected = next(train_reward_model(new_state(whole, CONFIG), [batch], CONFIG))
    in_twos = replace(CONFIG, micro_batch_size=2)
    found = next(train_reward_model(new_state(cut, in_twos), [batch], in_twos))
    assert found == pytest.approx(expected, rel=1e-5)
    for one, other in zip(cut.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_norms_and_rates_of_body_and_head():
    """Rejects groups that are swapped, a head left out of training, and a schedule for one of the two only."""
    batch, scorer = comparisons(), make_scorer()
    state, rates = new_state(scorer, CONFIG), []
    expected = scorer_loss(make_scorer(), batch)
    for metrics in train_reward_model(state, [batch] * 3, CONFIG):
        if metrics["step"] == 1:
            assert math.isclose(metrics["grad_norm_body"], expected[0], rel_tol=1e-4)
            assert math.isclose(metrics["grad_norm_head"], expected[1], rel_tol=1e-4)
        rates.append([group["lr"] for group in state.optimizer.param_groups])
    factors = [1.0, (1 + 0.5**0.5) / 2, 0.5]
    torch.testing.assert_close(rates, [[1e-3 * factor, 1e-2 * factor] for factor in factors])
    assert state.step == 3


def scorer_loss(scorer, batch) -> tuple[float, float]:
    """Gradient norms of body and head, from rows scored one at a time."""
    rows = zip(batch.texts.tokens, batch.texts.sequence_lengths, strict=True)
    scores = torch.stack([scorer.score(scorer.model(row[None, :end]).last_hidden_state)[0, -1, 0] for row, end in rows])
    torch.nn.functional.softplus(scores[batch.rejected] - scores[batch.chosen]).mean().backward()
    body = torch.cat([weight.grad.flatten() for weight in scorer.model.parameters()]).norm()
    return float(body), float(scorer.score.weight.grad.norm())


def separable(rows: int, seed: int) -> Comparisons:
    """Texts of any length; those whose response holds a 7 are preferred to those that hold an 8."""
    starts = random_rows([2 + row % 4 for row in range(rows)], seed)
    responses = [
        [7 + row % 2, *extra, EOS] for row, extra in enumerate(random_rows([row % 3 for row in range(rows)], seed + 1))
    ]
    texts = make_texts(starts, responses, pad_token_id=PAD, eos_token_id=EOS)
    return Comparisons(texts, torch.arange(0, rows, 2), torch.arange(1, rows, 2))


def test_learns_what_can_be_learned():
    """Rejects a sign, and a score read from the padding; on texts that it has never seen."""
    config = replace(CONFIG, steps=40, learning_rate=3e-3)
    state = new_state(scorer_from_policy(tiny_llama(), seed=0), config)
    log = list(train_reward_model(state, (separable(32, 10 + 2 * step) for step in range(40)), config))
    assert 0.2 < log[0]["agreement"] < 0.9
    unseen = separable(64, 1000)
    scores = score_texts(state.model, unseen.texts, micro_batch_size=16)
    assert (scores[unseen.chosen] > scores[unseen.rejected]).double().mean() > 0.95


@pytest.mark.parametrize("micro_batch_size", [1, 2, 100])
def test_score_texts_keeps_the_order(micro_batch_size):
    """Rejects scores in the order of lengths, an offset that is left out, and a gradient that costs memory."""
    texts, scorer = ragged_texts(), make_scorer(offset=0.3)
    found = score_texts(scorer, texts, micro_batch_size=micro_batch_size)
    expected = torch.tensor(scores_alone(scorer, texts)) - 0.3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not found.requires_grad


@pytest.mark.parametrize("offset_before", [0.0, 5.0])
def test_centre_makes_references_average_0(offset_before, tmp_path):
    """Rejects an offset of the other sign, one added to the last one, and one that is not saved; gaps stay."""
    texts, scorer = ragged_texts(), make_scorer(offset_before)
    before = score_texts(scorer, texts, micro_batch_size=3)
    offset = centre(scorer, texts, micro_batch_size=3)
    after = score_texts(scorer, texts, micro_batch_size=3)
    assert abs(float(after.mean())) < 1e-6
    torch.testing.assert_close(before - before.mean(), after, rtol=0, atol=1e-5)
    assert math.isclose(offset, sum(scores_alone(scorer, texts)) / len(after), rel_tol=1e-4)
    scorer.save_pretrained(tmp_path)
    assert score_texts(load_scorer(tmp_path), texts, micro_batch_size=3).equal(after)


def test_centring_changes_no_preference():
    """Rejects a loss that depends on the offset: only differences count."""
    losses = [
        next(train_reward_model(new_state(make_scorer(offset), CONFIG), [comparisons()], CONFIG))["loss"]
        for offset in (0.0, 2.0)
    ]
    assert math.isclose(*losses, rel_tol=1e-5)
