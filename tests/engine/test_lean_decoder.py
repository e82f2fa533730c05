"""The lean decoder against the plain one: the same tokens from the same random numbers, and the same log-probs."""

import pytest
import torch

from rlhf_lib.engine import lean_decoder
from rlhf_lib.engine.lean_decoder import LeanDecoder, lean_decoding
from rlhf_lib.engine.sampling import sample, uniforms
from tests.engine.test_lean import SHAPES, llama
from tests.tiny import EOS, PAD, ragged_prompts, tiny_gpt2


def write(model, prompts, steps=40):
    randomness = uniforms("lean", rows=len(prompts.tokens), steps=steps)
    return sample(
        model, prompts.tokens, prompts.lengths, randomness, temperature=0.7, eos_token_id=EOS, pad_token_id=PAD
    )


@pytest.mark.parametrize("room", [1, 3, 32])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_writes_what_the_plain_decoder_writes(monkeypatch, shape, room):
    """Rejects a key at another row's place, a mask or angle off by one, a cache that loses what it holds when it grows,
    rows mixed up when some have ended, and prompts that differ in length.
    """
    fed, feed = [], LeanDecoder.feed
    monkeypatch.setattr(LeanDecoder, "feed", lambda decoder, tokens: fed.append(len(tokens)) or feed(decoder, tokens))
    monkeypatch.setattr(lean_decoder, "ROOM", room)
    prompts, model = ragged_prompts(13), llama(*SHAPES[shape])
    expected = write(model, prompts)
    with lean_decoding(model, lean=True):
        found = write(model, prompts)
    assert 0 < expected.has_eos.sum() < 13 and fed[0] == 13 > fed[-1]
    for name, tensor in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), tensor, rtol=1e-4, atol=1e-5)


def test_prompts_that_begin_alike_are_read_once():
    """Rejects a prefix that every row reads for itself."""
    model = llama(4, 4, 2)
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9], [5, 6, 7, 8]])
    seen = []
    model.model.layers[0].self_attn.o_proj.register_forward_hook(lambda *_: seen.append("a module ran"))
    decoder = LeanDecoder(model, tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert not seen and decoder.logits[0].equal(decoder.logits[2]) and not decoder.logits[0].equal(decoder.logits[1])
    assert [len(layer[0]) for layer in decoder.cache] == [3, 3]


def test_only_within_and_only_llamas():
    """Rejects a model that goes on with another decoder, after an error too, and one the decoder does not know."""
    model = llama(4, 4, 2)
    with pytest.raises(KeyError), lean_decoding(model, lean=True):
        raise KeyError
    assert not hasattr(model, "decoder")
    with pytest.raises(ValueError, match="its architecture is not Llama"), lean_decoding(tiny_gpt2(), lean=True):
        pass
