"""Supervised fine-tuning: which tokens count, and that nothing else does."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from rlhf_lib.algorithms.sft import SFTConfig, new_state, train_sft
from rlhf_lib.engine.optimiser import NonFiniteError
from tests.tiny import PAD, VOCAB, gradients_of, ragged_texts, same_weights, tiny_gpt2, tiny_llama, weights_of

CONFIG = SFTConfig(steps=4, batch_size=7, micro_batch_size=3, learning_rate=1e-3)
IGNORED = -100


def labels_of(texts, imitate_query):
    """Hugging Face's way: the tokens, with everything that does not count taken out, one row at a time."""
    labels = texts.tokens.clone()
    for row, (start, end) in enumerate(zip(texts.prompt_lengths, texts.sequence_lengths, strict=True)):
        labels[row, end:] = IGNORED
        labels[row, : 1 if imitate_query else start] = IGNORED
    return labels


def expected_loss(model, texts, imitate_query):
    logits = model(texts.tokens, attention_mask=(texts.tokens != PAD).long()).logits
    targets = labels_of(texts, imitate_query)[:, 1:]
    return cross_entropy(logits[:, :-1].reshape(-1, VOCAB), targets.flatten(), ignore_index=IGNORED)


def first_step(texts, config):
    """Metrics and change of the weights of the first step."""
    state = new_state(tiny_llama(), config)
    metrics = next(train_sft(state, [texts], config))
    return metrics, weights_of(state.model)


@pytest.mark.parametrize("imitate_query", [True, False])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 7])
def test_loss_is_the_cross_entropy_of_the_targets(imitate_query, micro_batch_size):
    """Rejects a mean of means, padding or query that counts, an EOS that does not, and a temperature."""
    texts = ragged_texts()
    config = replace(CONFIG, imitate_query=imitate_query, micro_batch_size=micro_batch_size)
    metrics, _ = first_step(texts, config)
    model = tiny_llama()
    loss = expected_loss(model, texts, imitate_query)
    assert math.isclose(metrics["loss"], float(loss.detach()), rel_tol=1e-5)
    loss.backward()
    norm = torch.cat([gradient.flatten() for gradient in gradients_of(model).values()]).norm()
    assert math.isclose(metrics["grad_norm"], float(norm), rel_tol=1e-5)


def test_micro_batches_change_no_gradient():
    """Rejects micro-batches that are weighted alike: the accumulated gradients are those of the whole."""
    texts, found = ragged_texts(), []
    for size in (1, 3, 7):
        model = tiny_llama()
        state = new_state(model, CONFIG)
        state.optimizer.step = lambda: found.append(gradients_of(model))  # noqa: B023
        next(train_sft(state, [texts], replace(CONFIG, micro_batch_size=size)))
    for gradients in found[:2]:
        torch.testing.assert_close(gradients, found[2], rtol=1e-4, atol=1e-5)


def test_steps_follow_the_schedule():
    """Rejects a schedule that is off by one, and a rate that is logged but not used: cosine from 1 over 4 steps."""
    state = new_state(tiny_llama(), CONFIG)
    rates, counts = [], []
    for metrics in train_sft(state, [ragged_texts()] * 4, CONFIG):
        assert state.optimizer.param_groups[0]["lr"] == metrics["learning_rate"]
        rates.append(metrics["learning_rate"] / CONFIG.learning_rate)
        counts.append(metrics["step"])
    torch.testing.assert_close(rates, [1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    assert counts == [1, 2, 3, 4] and state.step == 4


def test_it_learns():
    """Rejects a sign: after 30 steps on one batch the loss of the responses has fallen to less than a tenth."""
    config = replace(CONFIG, steps=30, learning_rate=1e-2, imitate_query=False)
    losses = [metrics["loss"] for metrics in train_sft(new_state(tiny_llama(), config), [ragged_texts()] * 30, config)]
    assert losses[-1] < losses[0] / 10


def test_waits_to_be_asked():
    """Rejects steps that nobody asked for yet."""
    state, taken = new_state(tiny_llama(), CONFIG), []
    run = train_sft(state, (taken.append(0) or ragged_texts() for _ in range(3)), CONFIG)
    assert taken == []
    next(run)
    assert taken == [0]


def test_a_loss_that_is_not_finite_changes_no_weight():
    """Rejects a check after the step."""
    model = tiny_gpt2()
    with torch.no_grad():
        model.transformer.wpe.weight[9] = torch.nan  # only long rows, which come last, reach this position
    state, before = new_state(model, CONFIG), weights_of(model)
    with pytest.raises(NonFiniteError, match="the SFT loss"):
        next(train_sft(state, [ragged_texts()], CONFIG))
    before["transformer.wpe.weight"] = before["transformer.wpe.weight"].nan_to_num()
    model.transformer.wpe.weight.data.nan_to_num_()
    assert same_weights(before, weights_of(model))
