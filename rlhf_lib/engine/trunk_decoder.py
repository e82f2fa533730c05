"""The sampler's decoder on a frozen trunk, which has read the prompts already or reads them once for all rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..maths.shapes import Tokens
from .models import part_of
from .past import cache_name, cache_of
from .sampling import Decoder

if TYPE_CHECKING:
    from .frozen_trunk import FrozenTrunk


class TrunkDecoder(Decoder):
    """Only the top layers read the prompts anew. Rows with the same prompt share all of it until their first token."""

    def __init__(self, trunk: FrozenTrunk, model: nn.Module, tokens: Tokens, mask: Tensor):
        self.trunk = trunk
        super().__init__(model, tokens, mask)

    def _forward(self, tokens: Tokens) -> None:
        if self.cache is not None:
            return super()._forward(tokens)
        together, which = torch.cat([tokens, self.mask.long()], 1).unique(dim=0, return_inverse=True)
        self.logits = self._read(*together.chunk(2, 1))[which]
        self.cache.batch_select_indices(which)

    def _read(self, tokens: Tokens, mask: Tensor) -> Tensor:
        """[rows, V] logits behind these prompts, whose keys and values the cache has from now on."""
        rows = zip(tokens.tolist(), mask.sum(1).tolist(), strict=True)
        readings = [self.trunk.prompt(tuple(row[len(row) - length :])) for row, length in rows]
        body, width, self.cache = self.model.base_model, tokens.shape[1], cache_of(())
        top = part_of(body, body.layers[len(self.trunk.body.layers) :])
        output = type(body).forward(
            top, inputs_embeds=_on_the_right([reading.states for reading in readings], width), attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=True, **{cache_name(): self.cache},
        )  # fmt: skip
        for layer, pairs in enumerate(zip(*(reading.keys_and_values for reading in readings), strict=True)):
            both = (_on_the_right([numbers[0] for numbers in side], width) for side in zip(*pairs))
            self.cache.update(*both, layer)
        return self.model.get_output_embeddings()(output.last_hidden_state[:, -1]).float()


def _on_the_right(rows: Sequence[Tensor], width: int) -> Tensor:
    """[B, ..., width, D] from rows of [..., T, D], with zeros on the left."""
    return torch.stack([nn.functional.pad(row, (0, 0, width - row.shape[-2], 0)) for row in rows])
