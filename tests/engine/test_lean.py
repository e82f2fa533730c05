"""The lean pass against Hugging Face's: the same values and gradients where somebody reads, and less that is made."""

import contextlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_lib.engine import lean, lean_layers, models
from rlhf_lib.engine.attention import with_open_attention
from rlhf_lib.engine.frozen_trunk import FrozenTrunk
from rlhf_lib.engine.fused import chosen_log_probs
from rlhf_lib.engine.models import hidden_states, scorer_from_policy
from rlhf_lib.engine.places import find_places
from rlhf_lib.maths.alignment import acting_mask, action_mask_from_lengths
from rlhf_lib.maths.records import Texts
from tests.tiny import PAD, SPECIAL, VOCAB, disturb, gradients_of, ragged_texts, tiny_gpt2, tiny_llama, tiny_neox

CLOSE = dict(rtol=1e-3, atol=1e-4)
SHAPES = {"heads in groups": (4, 2, 3), "one key head": (4, 1, 2), "a key head each": (4, 4, 2), "one layer": (2, 1, 1)}


def llama(heads: int, key_heads: int, layers: int, **settings) -> LlamaForCausalLM:
    """Every weight random, the gains of the norms as well."""
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, max_position_embeddings=64, initializer_range=0.2, **SPECIAL, **settings,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return disturb(LlamaForCausalLM(config).eval(), by=0.1)


def states_where(read):
    """Of a model at `read`, with the gradients of a sum in which each number has a weight of its own."""

    def look(model, tokens, within):
        with within(read, model):
            states = hidden_states(model, tokens)[read]
        (states * torch.linspace(-1, 1, states.numel()).view_as(states).sin()).sum().backward()
        return states.detach(), gradients_of(model)

    return look


def plainly(*_):
    return contextlib.nullcontext()


def reads_of(texts):
    """What policy and critic are read for, what a reward model is, and every second state with some rows unread."""
    states = texts.tokens.shape[1]
    every_second = (torch.arange(states) % 2 == 0) & (torch.arange(len(texts.tokens)) % 3 > 0)[:, None]
    return {
        "actions": acting_mask(action_mask_from_lengths(texts.prompt_lengths, texts.sequence_lengths, states)),
        "score": models.scored_states(texts),
        "every second": every_second,
    }


@pytest.mark.parametrize("long", [1, 128], ids=["long rows", "short rows"])
@pytest.mark.parametrize("what", ["actions", "score", "every second"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_read_is_what_it_would_be(monkeypatch, shape, what, long):
    """Rejects a wrong rotation, scale, group of heads, gain, mask or last layer, and a gradient that misses a path."""
    monkeypatch.setattr(lean_layers, "LONG", long)
    texts = ragged_texts()
    look = states_where(reads_of(texts)[what])
    found, expected = (
        look(llama(*SHAPES[shape]), texts.tokens, within) for within in (lean.only_what_is_read, plainly)
    )
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("long", [1, 128], ids=["long rows", "short rows"])
def test_rows_that_begin_alike_stay_apart_where_they_part(monkeypatch, long):
    """Rejects states shared by rows that differ before them, agree again later, or of which one is read less far.

    And a shared state that is read only where the first of its rows reads it.
    """
    monkeypatch.setattr(lean_layers, "LONG", long)
    tokens = torch.tensor(
        [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [5, 6, 9, 8, 9], [4, 6, 7, 8, 9], [5, 6, 7, 8, 9], [5, 6, 7, 3, PAD]]
    )
    read = torch.tensor(
        [[0, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 1, 1, 0]]
    ).bool()
    look = states_where(read)
    found, expected = (look(tiny_llama(), tokens, within) for within in (lean.only_what_is_read, plainly))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert len(find_places(tokens, read).first) == 5 + 3 + 5 + 0 + 1


def test_models_share_places_and_nothing_else(monkeypatch):
    """Rejects places of the texts read before, heads of the model that read them, and places found for each model."""
    texts, found, searched = ragged_texts(), [], []
    monkeypatch.setattr(lean, "find_places", lambda *of: searched.append(of) or find_places(*of))
    other = texts.tokens.flip(0)
    read = torch.ones_like(other, dtype=torch.bool)
    several, single = llama(4, 4, 2), llama(4, 1, 2)
    expected = [hidden_states(*asked) for asked in ((several, other), (single, texts.tokens), (single, other))]
    with lean.only_what_is_read(read, several, single):
        for model, tokens in ((several, texts.tokens), (several, other), (single, texts.tokens), (single, other)):
            found.append(hidden_states(model, tokens))
    assert len(searched) == 2
    torch.testing.assert_close(found[1:], expected, **CLOSE)


def test_other_angles_and_an_own_width_of_heads():
    """Rejects angles of its own making: a model may scale them, and its heads may be wider than D over their number."""
    scaled = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
    texts = ragged_texts()
    look = states_where(reads_of(texts)["actions"])
    found, expected = (
        look(llama(4, 2, 2, rope_scaling=scaled, head_dim=12), texts.tokens, within)
        for within in (lean.only_what_is_read, plainly)
    )
    torch.testing.assert_close(found, expected, **CLOSE)


def test_nothing_else_is_made():
    """Rejects padding that is computed, a prefix that is computed for each row, and a last layer that does not ask once
    in a state that all rows read, or asks in states that none does.

    Counted are products of states with weights; those of attention are between three-dimensional tensors.
    """
    rows, prompt, response = 8, 12, 4
    tokens = torch.randint(3, VOCAB, (rows, prompt + response), generator=torch.Generator().manual_seed(0))
    tokens[:, :prompt], tokens[:, prompt] = tokens[:1, :prompt], torch.arange(3, 3 + rows)
    read = torch.zeros(tokens.shape, dtype=torch.bool)
    read[:, prompt - 1 : -1] = True
    made = prompt + rows * (response - 1)
    assert len(find_places(tokens, read).first) == made
    model, width = llama(4, 4, 2), 32
    with FlopCounterMode(display=False) as counter, torch.no_grad(), lean.only_what_is_read(read, model):
        hidden_states(model, tokens)
    products = counter.get_flop_counts()["Global"]
    found = sum(n for operation, n in products.items() if str(operation) in ("aten.mm", "aten.addmm"))
    distinct, asked = len(tokens[:, :-1].unique()), 1 + rows * (response - 1)
    feed_forward = 3 * 48
    first = distinct * 3 * width + made * (width + feed_forward)
    last = made * 2 * width + asked * (2 * width + feed_forward)
    assert found == 2 * width * (first + last)


def test_outside_the_model_is_as_it_was():
    """Rejects a pass that stays lean after an error, a model that is changed by it, and 0 that is not 0 elsewhere."""
    model, texts = tiny_llama(), ragged_texts()
    read = reads_of(texts)["score"]
    before = hidden_states(model, texts.tokens)
    with pytest.raises(KeyError), lean.only_what_is_read(read, model, model):
        assert not hidden_states(model, texts.tokens)[~read].any()
        raise KeyError
    assert hidden_states(model, texts.tokens).equal(before)


REFUSED = {
    "architecture is not Llama": lambda: tiny_gpt2(),
    "architecture is not Llama ": lambda: tiny_neox(),
    "gate is not SiLU": lambda: llama(4, 2, 1, hidden_act="gelu"),
    "biases": lambda: llama(4, 2, 1, mlp_bias=True),
    "biases ": lambda: llama(4, 2, 1, attention_bias=True),
    "attention is not PyTorch's own": lambda: with_open_attention(tiny_llama()),
    "not in float32": lambda: tiny_llama().bfloat16(),
    "something wraps it": lambda: models.run_layers_again(tiny_llama()),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_another_model_is_refused(reason):
    """Rejects a silent wrong answer for a model of which the pass knows nothing."""
    model = REFUSED[reason]()
    own = vars(model.base_model).get("forward")
    message = f"ppo.lean=true does not go with this model, .*{reason.strip()}: leave ppo.lean at false"
    with pytest.raises(ValueError, match=message), lean.only_what_is_read(torch.ones(1, 1, dtype=torch.bool), model):
        pass
    assert vars(model.base_model).get("forward") is own


def each_twice_but_the_last_token() -> Texts:
    """Rows 2i and 2i + 1 are equal up to their last token."""
    texts = ragged_texts()
    texts = texts.select(torch.arange(len(texts.tokens)).repeat_interleave(2))
    last = texts.sequence_lengths[1::2, None] - 1
    texts.tokens[1::2] = texts.tokens[1::2].scatter(1, last, 3 + texts.tokens[1::2].gather(1, last) % (VOCAB - 3))
    return texts


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("learns", [True, False], ids=["head learns", "frozen head"])
def test_log_probs_in_blocks_with_one_gradient_of_the_head(monkeypatch, learns, rows):
    """Rejects a last block that is dropped, a forgotten temperature or sign, and a gradient of one block alone.

    And of actions in equal states one that gets another's log-probability or gradient, or none.
    """
    monkeypatch.setattr(models, "LOGITS_AT_ONCE", rows * VOCAB)
    texts = each_twice_but_the_last_token()
    mask = action_mask_from_lengths(texts.prompt_lengths, texts.sequence_lengths, texts.tokens.shape[1])

    def look(within):
        model = llama(4, 4, 2)
        model.lm_head.weight.requires_grad_(learns)
        with within(acting_mask(mask), model):
            found, _ = models.score_actions(model, texts.tokens, mask, temperature=0.7, entropy=models.no_entropy)
        (found * torch.linspace(-1, 1, found.numel()).view_as(found).sin()).sum().backward()
        return found.detach(), gradients_of(model)

    torch.testing.assert_close(look(lean.only_what_is_read), look(plainly), **CLOSE)


def test_logits_of_equal_states_are_made_once():
    """Rejects a head that runs for every action, and a frozen one that makes its logits again in backward."""
    distinct = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    states, head = distinct.repeat(2, 1).requires_grad_(), torch.nn.Linear(32, VOCAB, bias=False).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        chosen_log_probs(
            states, torch.arange(len(states)) % VOCAB, head.weight, temperature=1.0, rows=1
        ).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * len(distinct) * VOCAB * 32


def test_mixed_precision_is_refused():
    """Rejects float32 states added to products in bfloat16 without a word."""
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="it runs in mixed precision"):
        lean.refuse_if_not_lean(tiny_llama().base_model)


@pytest.mark.parametrize("layers", [1, 2])
def test_on_a_frozen_trunk(layers):
    """Rejects a pass around the trunk, one that runs its layers again, and a trunk that is gone afterwards."""
    texts = ragged_texts()
    for read in (reads_of(texts)["actions"], reads_of(texts)["score"]):
        plain, model = llama(4, 4, 2), FrozenTrunk(trainable_layers=layers, pad_token_id=PAD).adopt(llama(4, 4, 2))
        models.train_top_layers(plain, layers)
        look = states_where(read)
        expected, before = look(plain, texts.tokens, plainly), model.base_model.forward
        torch.testing.assert_close(look(model, texts.tokens, lean.only_what_is_read), expected, **CLOSE)
        assert model.base_model.forward is before


def test_frozen_layers_stay_without_gradients():
    """Rejects a pass that trains what `train_top_layers` left frozen, or loses what it trains."""
    texts = ragged_texts()
    look = states_where(reads_of(texts)["actions"])
    found, expected = (
        look(models.train_top_layers(scorer_from_policy(tiny_llama(), seed=3), 1), texts.tokens, within)
        for within in (lean.only_what_is_read, plainly)
    )
    torch.testing.assert_close(found, expected, **CLOSE)
