"""Attention with our own weights, against the fused kernel."""

from __future__ import annotations

import torch

from rlhf_lib.engine.attention import with_open_attention
from rlhf_lib.engine.past import cache_name
from tests.tiny import VOCAB, tiny_llama

SEEN = 7  # tokens of the second row that are real; the first has none missing


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(3, VOCAB, (2, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, :-SEEN] = 0  # padded on the left, where a causal mask alone does not help
    return tokens, mask


def test_equals_the_fused_kernel():
    """Rejects a missing scale, a mask that lets the future or padding through, and heads in another order."""
    tokens, mask = rows()
    for ask in ({}, {"attention_mask": mask}):
        fused = tiny_llama()(input_ids=tokens, **ask).logits
        ours = with_open_attention(tiny_llama())(input_ids=tokens, **ask).logits
        torch.testing.assert_close(ours[:, -SEEN:], fused[:, -SEEN:], rtol=1e-5, atol=1e-5)


def test_left_padding_is_never_looked_at():
    """Rejects weights on padding: they are 0, so that the text there cannot matter. States of padding see nothing."""
    tokens, mask = rows()
    model = with_open_attention(tiny_llama())
    weights = model(input_ids=tokens, attention_mask=mask, output_attentions=True).attentions
    for layer in weights:
        assert (layer[1, :, :, :-SEEN] == 0).all()
        torch.testing.assert_close(layer[1, :, -SEEN:].sum(-1), torch.ones_like(layer[1, :, -SEEN:, 0]))


def test_continues_a_cache():
    """Rejects a mask made for the new tokens alone."""
    tokens, _ = rows()
    model = with_open_attention(tiny_llama())
    whole = model(input_ids=tokens).logits
    cache = model(input_ids=tokens[:, :6], use_cache=True)[cache_name()]
    rest = model(input_ids=tokens[:, 6:], use_cache=True, **{cache_name(): cache}).logits
    torch.testing.assert_close(rest, whole[:, 6:], rtol=1e-5, atol=1e-5)
