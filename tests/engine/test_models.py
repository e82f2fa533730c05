"""What the algorithms ask of a model, against plain Hugging Face calls."""

import functools

import pytest
import torch
from torch.distributions import Categorical
from transformers import AutoModelForSequenceClassification

from rlhf_lib.algorithms.parts import prepare_reference
from rlhf_lib.engine import models
from rlhf_lib.engine.models import read_score, score_actions, scorer_from_policy, state_values
from rlhf_lib.maths.alignment import acting_mask, action_mask_from_lengths
from tests.tiny import (
    MODELS,
    PAD,
    VOCAB,
    WIDTH,
    LargestTensor,
    disturb,
    gradients_of,
    ragged_texts,
    same_weights,
    tiny_gpt2,
    tiny_llama,
    weights_of,
)

CLOSE = dict(rtol=1e-5, atol=1e-5)


def mask_of(texts, states=None):
    return action_mask_from_lengths(texts.prompt_lengths, texts.sequence_lengths, states or texts.tokens.shape[1])


def make_scorer(offset=0.0, seed=3):
    scorer = scorer_from_policy(tiny_llama(), seed=seed)
    scorer.config.reward_offset = offset
    scorer.config.pad_token_id = PAD
    return scorer


# Log-probabilities and entropies


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_the_whole_distribution(name, temperature):
    """Rejects a shift by one, a forgotten temperature, a missing final norm, and entropies of other states."""
    model, texts = MODELS[name](), ragged_texts()
    mask = mask_of(texts)
    log_probs, entropies = score_actions(model, texts.tokens, mask, temperature=temperature)
    attention = torch.arange(texts.tokens.shape[1]) < texts.sequence_lengths[:, None]
    logits = model(texts.tokens, attention_mask=attention.long()).logits[:, :-1]
    whole = Categorical(logits=logits / temperature)
    torch.testing.assert_close(log_probs, whole.log_prob(texts.tokens[:, 1:]) * mask, **CLOSE)
    torch.testing.assert_close(entropies, whole.entropy() * mask, **CLOSE)


def with_gradients(score):
    """Log-probs, entropies and the gradient of a sum in which each of them has a weight of its own."""
    model, texts = tiny_llama(), ragged_texts()
    log_probs, entropies = score(model, texts.tokens, mask_of(texts))
    weights = torch.arange(1.0, log_probs.numel() + 1).reshape(log_probs.shape) / log_probs.numel()
    (weights * (log_probs - 0.3 * entropies)).sum().backward()
    return log_probs.detach(), entropies.detach(), gradients_of(model)


def score_naively(model, tokens, mask):
    whole = Categorical(logits=model(tokens).logits[:, :-1] / 0.7)
    return whole.log_prob(tokens[:, 1:]) * mask, whole.entropy() * mask


def test_the_plain_way_is_the_same():
    """Rejects a scorer for the exercises that trains something else than the library's, off the mask as well."""
    expected = with_gradients(functools.partial(score_actions, temperature=0.7))
    found = with_gradients(functools.partial(models.score_actions_from_logits, temperature=0.7))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 2, 5, 1000])
def test_blocks_change_no_value_and_no_gradient(monkeypatch, rows):
    """Rejects a last block that is dropped, results in another order, and gradients lost in recomputing or detached."""
    monkeypatch.setattr(models, "LOGITS_AT_ONCE", rows * VOCAB)
    expected = with_gradients(score_naively)
    assert len(expected[2]) == len(list(tiny_llama().parameters()))
    found = with_gradients(functools.partial(score_actions, temperature=0.7))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def test_no_tensor_of_the_whole_vocabulary_at_every_place(monkeypatch):
    """Rejects logits of [B, T, V] in forward or backward, and blocks that are all kept until backward."""
    vocab, texts = 3000, ragged_texts(rows=40)
    model, mask = tiny_llama(vocab=vocab), mask_of(texts)
    monkeypatch.setattr(models, "LOGITS_AT_ONCE", 8 * vocab)
    kept = []
    with (
        LargestTensor() as seen,
        torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x),
    ):
        log_probs, entropies = score_actions(model, texts.tokens, mask, temperature=0.7)
        (log_probs + entropies).sum().backward()
    assert int(mask.sum()) > 4 * WIDTH
    assert seen.numbers <= WIDTH * vocab  # the head's own weights
    assert [shape for shape in kept if vocab in shape and WIDTH not in shape] == []


def test_padding_is_never_seen():
    """Rejects results that depend on how wide the row is, or on what stands after its end."""
    model, texts = tiny_gpt2(), ragged_texts()
    states = texts.tokens.shape[1]
    plain = score_actions(model, texts.tokens, mask_of(texts), temperature=0.7)
    beyond = torch.arange(states + 3) >= texts.sequence_lengths[:, None]
    junk = torch.nn.functional.pad(texts.tokens, (0, 3)).masked_fill(beyond, 17)
    wider = score_actions(model, junk, mask_of(texts, states + 3), temperature=0.7)
    for ours, theirs in zip(plain, wider, strict=True):
        torch.testing.assert_close(torch.nn.functional.pad(ours, (0, 3)), theirs, **CLOSE)


def test_scores_nothing_but_the_actions():
    """Rejects a gradient from the prompt or padding: in every state where nothing is chosen, logits may be anything."""
    model, texts = tiny_llama(), ragged_texts()
    mask, reached = mask_of(texts), []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: reached.append(len(inputs[0])))
    log_probs, entropies = score_actions(model, texts.tokens, mask, temperature=0.7)
    assert sum(reached) == int(mask.sum())
    assert not log_probs[~mask].any() and not entropies[~mask].any()


@pytest.mark.parametrize("name", MODELS)
def test_skipping_the_last_feed_forward_changes_nothing_that_is_read(name):
    """Rejects a mask that is off by one state, rows mixed up on the way back, and a layer that is not the last."""
    texts = ragged_texts()
    mask = mask_of(texts)
    weights = torch.arange(1.0, mask.numel() + 1).reshape(mask.shape) / mask.numel()

    def look(*sparing):
        model = MODELS[name]()
        critic = scorer_from_policy(model, seed=3)
        with models.last_mlp_only_where(acting_mask(mask), *(chosen for chosen in (model, critic) if sparing)):
            log_probs, entropies = score_actions(model, texts.tokens, mask, temperature=0.7)
            values = models.state_values(critic, texts.tokens)[:, :-1] * mask
        (weights * (log_probs - 0.3 * entropies + values)).sum().backward()
        return log_probs.detach(), entropies.detach(), values.detach(), gradients_of(model), gradients_of(critic)

    torch.testing.assert_close(look("both"), look(), rtol=1e-4, atol=2e-5)


def test_the_last_feed_forward_is_spared_and_only_within():
    """Rejects hooks that stay on the model, after an error too, and a feed-forward that runs on everything still."""
    model, texts, seen = tiny_llama(), ragged_texts(), []
    read = acting_mask(mask_of(texts))
    first, last = (model.model.layers[at].mlp.gate_proj for at in (0, -1))
    for layer in (first, last):
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[:-1].numel()))
    with pytest.raises(KeyError), models.last_mlp_only_where(read, model):
        models.hidden_states(model, texts.tokens)
        raise KeyError
    models.hidden_states(model, texts.tokens)
    assert seen == [read.numel(), int(read.sum()), read.numel(), read.numel()]


# Values and scores


@pytest.mark.parametrize("offset", [0.0, 0.75])
def test_score_is_hugging_faces_at_the_last_token(offset):
    """Rejects reading the padding, one token early, a forgotten offset, and an offset that is added."""
    scorer, texts = make_scorer(offset), ragged_texts()
    theirs = scorer(texts.tokens, attention_mask=(texts.tokens != PAD).long()).logits[:, 0] - offset
    torch.testing.assert_close(read_score(state_values(scorer, texts.tokens), texts), theirs, **CLOSE)


def test_every_state_is_the_score_of_the_text_so_far():
    """Rejects values that are shifted against their states."""
    critic, texts = make_scorer(0.5), ragged_texts()
    values = state_values(critic, texts.tokens)
    assert values.shape == texts.tokens.shape
    for t in range(int(texts.sequence_lengths[2])):
        alone = critic(texts.tokens[2:3, : t + 1]).logits[0, 0] - 0.5
        torch.testing.assert_close(values[2, t], alone, **CLOSE)


def test_offset_survives_saving(tmp_path):
    """Rejects an offset that is kept beside the model and lost on the way to PPO."""
    scorer, texts = make_scorer(0.75), ragged_texts()
    scorer.save_pretrained(tmp_path)
    loaded = models.load_scorer(tmp_path)
    assert state_values(loaded, texts.tokens).equal(state_values(scorer, texts.tokens))
    raw = AutoModelForSequenceClassification.from_pretrained(tmp_path)(texts.tokens[:1, :1]).logits[0, 0]
    torch.testing.assert_close(state_values(loaded, texts.tokens)[0, 0], raw - 0.75, **CLOSE)


# Models from models


@pytest.mark.parametrize("name", MODELS)
def test_scorer_starts_from_the_policy(name):
    """Rejects a random body, one that shares memory with the policy, and a head that ignores its seed."""
    policy = MODELS[name]()
    before = weights_of(policy)
    scorer, again, other = (scorer_from_policy(policy, seed=seed) for seed in (3, 3, 4))
    tokens = ragged_texts().tokens
    assert models.hidden_states(scorer, tokens).equal(models.hidden_states(policy, tokens))
    assert scorer.score.weight.equal(again.score.weight)
    assert not scorer.score.weight.equal(other.score.weight)
    assert not scorer.training and scorer.config.num_labels == 1
    disturb(scorer)
    assert same_weights(weights_of(policy), before)


def test_spread_of_the_head():
    """Rejects a head of spread 1, 1/D or 1/sqrt(2D): head * sqrt(D + 1) is standard normal (5 sigma)."""
    policy = tiny_llama()
    heads = torch.cat([scorer_from_policy(policy, seed=seed).score.weight[0].detach() for seed in range(50)])
    z = heads * (WIDTH + 1) ** 0.5
    assert abs(float(z.mean())) < 5 / 1600**0.5
    assert abs(float((z**2).mean()) - 1) < 5 * (2 / 1600) ** 0.5


def test_frozen_models_get_no_gradient():
    """Rejects a reference or reward model that trains along, or keeps its dropout."""
    model = models.freeze(tiny_llama().train())
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not any(module.training for module in model.modules())


def test_loaded_models_are_float32_and_without_dropout(tmp_path):
    """Rejects training in the precision that the weights happen to be stored in, and dropout that is left on."""
    tiny_llama().train().to(torch.bfloat16).save_pretrained(tmp_path / "policy")
    scorer_from_policy(tiny_llama(), seed=0).to(torch.bfloat16).save_pretrained(tmp_path / "scorer")
    for model in (models.load_policy(tmp_path / "policy"), models.load_scorer(tmp_path / "scorer")):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        assert not any(module.training for module in model.modules())


# Models that take less memory


def scores_and_gradients(model, texts):
    log_probs, _ = score_actions(model, texts.tokens, mask_of(texts), temperature=0.7)
    return log_probs, torch.autograd.grad(log_probs.sum(), list(model.parameters()))


def test_layers_that_run_again_change_no_bit():
    """Rejects a second run with other inputs, and gradients that end at a layer's input."""
    texts = ragged_texts()
    log_probs, gradients = scores_and_gradients(tiny_llama(), texts)
    again, gradients_again = scores_and_gradients(models.run_layers_again(tiny_llama()), texts)
    assert again.equal(log_probs)
    assert all(map(torch.equal, gradients, gradients_again))


def test_layers_run_again_only_for_backward():
    """Rejects a second run where nothing is kept anyway, and none where it should be."""
    model, texts = models.run_layers_again(tiny_llama()), ragged_texts()
    runs = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    with torch.no_grad():
        score_actions(model, texts.tokens, mask_of(texts), temperature=1.0)
    assert runs == [False]
    score_actions(model, texts.tokens, mask_of(texts), temperature=1.0)[0].sum().backward()
    assert runs == [False, True, True]


def test_a_copy_of_layers_that_run_again_has_weights_of_its_own():
    """Rejects a reference whose layers are the policy's: its KL would stay 0 for ever."""
    policy, texts = models.run_layers_again(tiny_llama()), ragged_texts()
    reference = prepare_reference(policy)
    before = score_actions(reference, texts.tokens, mask_of(texts), temperature=1.0)[0]
    disturb(policy)
    assert score_actions(reference, texts.tokens, mask_of(texts), temperature=1.0)[0].equal(before)
    assert not score_actions(policy, texts.tokens, mask_of(texts), temperature=1.0)[0].equal(before)


@pytest.mark.parametrize("layers", [-1, 3])
def test_as_many_layers_as_there_are(layers):
    """Rejects 3 layers of 2 taken for the last one alone, and a model that is changed before it is refused."""
    scorer = make_scorer()
    with pytest.raises(ValueError, match=f"layers must be from 0 to 2, got {layers}"):
        models.train_top_layers(scorer, layers)
    assert all(weight.requires_grad for weight in scorer.parameters())


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_only_the_top_trains(layers):
    """Rejects the layers at the bottom, a head that rests, and an embedding that trains."""
    scorer = models.train_top_layers(make_scorer(), layers)
    trains = {name for name, weight in scorer.named_parameters() if weight.requires_grad}
    top = {str(index) for index in range(2 - layers, 2)}
    assert {name.split(".")[2] for name in trains if ".layers." in name} == top
    assert {name for name in trains if ".layers." not in name} == {"model.norm.weight", "score.weight"}
