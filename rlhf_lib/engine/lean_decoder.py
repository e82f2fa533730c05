"""A Llama with a cache, fed one token a row, as `sampling` asks for it: prompts that begin alike are read once.

Unlike Hugging Face's cache, this one has room for tokens to come, so that a step copies nothing but what is new.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.functional import embedding, pad

from ..maths.masking import mask_from_lengths
from ..maths.shapes import Lengths, Tokens
from . import lean_layers
from .lean import refuse_if_not_lean
from .places import find_places

ROOM = 32  # tokens by which the cache grows when it is full


@contextmanager
def lean_decoding(model: nn.Module, *, lean: bool) -> Iterator[None]:
    """Within, `sampling.sample` reads and writes with this Llama by a `LeanDecoder`, if the settings say so.

    A model on a frozen trunk keeps the decoder that it has: there its prompts are read already.
    """
    if not lean or hasattr(model, "decoder"):
        yield
        return
    refuse_if_not_lean(model.base_model)
    model.decoder = LeanDecoder
    try:
        yield
    finally:
        del model.decoder


class LeanDecoder:
    """`logits` [B, V] of what comes next in each row; `feed` it one token a row, or `keep` some rows only.

    Rows stand on the left here: token t of a row is at place t of its cache, whatever the other rows are like.
    """

    def __init__(self, model: nn.Module, tokens: Tokens, mask: Bool[Tensor, "B states"]):
        """Prompts padded on the left, with the mask of real tokens."""
        self.model, self.body, self.last = model, model.base_model, mask.sum(1) - 1
        self.width = int(self.last.max()) + 1  # of the longest row; asked of the device once, not in every layer
        prompts = _pad_right(tokens, self.last + 1)
        read = mask_from_lengths(self.last + 1, prompts.shape[1]) & ~mask_from_lengths(self.last, prompts.shape[1])
        self.angles = lean_layers.angles_of(self.body, prompts.shape[1] + ROOM)
        self.cache: list[list[Tensor]] = []  # of each layer, keys and values [B, key heads, places, d]
        places = find_places(prompts, read)
        states, place = lean_layers.run_all_but_last(self.body, prompts, places, partial(self._read, places.first))
        self._remember(*lean_layers.heads_of(self.body.layers[-1], states, place, self._angles_up_to(place), "k", "v"))
        self._finish(self._step(self.body.layers[-1], self.cache[-1], embedding(place[read], states)))

    def feed(self, tokens: Tensor) -> None:
        """One token for each row."""
        self.last, self.width = self.last + 1, self.width + 1
        if self.width > len(self.angles):
            self.cache = [[pad(numbers, (0, 0, 0, ROOM)) for numbers in layer] for layer in self.cache]
            self.angles = lean_layers.angles_of(self.body, len(self.angles) + ROOM)
        states = self.body.embed_tokens(tokens)
        for layer, cached in zip(self.body.layers, self.cache, strict=True):
            states = self._step(layer, cached, states)
        self._finish(states)

    def keep(self, rows: Tensor) -> None:
        """The rows named, in this order; the others have ended."""
        self.cache = [[numbers[rows] for numbers in layer] for layer in self.cache]
        self.last = self.last[rows]
        self.width = int(self.last.max()) + 1

    def _read(self, first: Tensor, layer: nn.Module, states: Tensor, place: Tensor) -> Tensor:
        queries, keys, values = lean_layers.heads_of(layer, states, place, self._angles_up_to(place), "q", "k", "v")
        self._remember(keys, values)
        return embedding(first, lean_layers.attend(layer, queries, keys, values).flatten(0, 1))

    def _step(self, layer: nn.Module, cached: list[Tensor], states: Tensor) -> Tensor:
        """The layer's output [B, D] for the last token of each row, whose key and value go into the cache."""
        row, width = torch.arange(len(states), device=states.device), self.width
        queries, *new = lean_layers.heads_of(layer, states, row, self.angles[self.last], "q", "k", "v")
        for numbers, number in zip(cached, new, strict=True):
            numbers[row, :, self.last] = number.unflatten(1, numbers.shape[1::2])
        keys, values = (numbers.flatten(0, 1)[:, :width] for numbers in cached)  # views: nothing is copied
        asked = queries.reshape(len(keys), -1, keys.shape[2]) * layer.self_attn.scaling
        weights = torch.bmm(asked, keys.mT).view(len(states), -1, width)
        barred = ~mask_from_lengths(self.last + 1, width)[:, None]
        weights = weights.masked_fill_(barred, -torch.inf).softmax(-1).view(len(keys), -1, width)
        return lean_layers.finish(layer, states, torch.bmm(weights, values).view(len(states), -1))

    def _finish(self, states: Tensor) -> None:
        self.logits = self.model.get_output_embeddings()(self.body.norm(states)).float()

    def _remember(self, *keys_and_values: Tensor) -> None:
        per_head = (-1, self.body.layers[0].self_attn.head_dim)
        apart = [numbers.unflatten(-1, per_head).transpose(1, 2) for numbers in keys_and_values]
        self.cache.append([pad(numbers, (0, 0, 0, ROOM)) for numbers in apart])

    def _angles_up_to(self, place: Tensor) -> Tensor:
        return self.angles[: place.shape[1]]


def _pad_right(tokens: Tokens, lengths: Lengths) -> Tokens:
    """Rows that stood on the right edge moved to the left one; what follows them is anything."""
    width = tokens.shape[1]
    source = torch.arange(width, device=tokens.device) + (width - lengths)[:, None]
    return tokens.gather(1, source.clamp(max=width - 1))
