"""A split as token ids: ragged columns, and batches of them in the records of the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...engine.batching import make_texts, pad_rows
from ...maths.records import Prompts, Texts


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids, one behind the other."""

    tokens: Tensor  # [sum of lengths] int32
    lengths: Tensor  # [rows] int64
    cut: Tensor  # [rows] bool: there was more than the limit allowed

    @cached_property
    def _ends(self) -> Tensor:
        return self.lengths.cumsum(0)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: int) -> list[int]:
        end = int(self._ends[place])
        return self.tokens[end - int(self.lengths[place]) : end].tolist()


@dataclass(frozen=True)
class Tokenised:
    """Queries, and the responses under the names of their kind: "response", or "chosen" and "rejected".

    PAD may be EOS: lengths, not token ids, say what is padding.
    """

    queries: TokenRows
    responses: dict[str, TokenRows]
    pad_token_id: int
    eos_token_id: int

    def __len__(self) -> int:
        return len(self.queries)

    def prompts(self, places: Sequence[int]) -> Prompts:
        """The queries at these places, for a policy to continue."""
        return Prompts(*pad_rows([self.queries[place] for place in places], pad_token_id=self.pad_token_id))

    def texts(self, places: Sequence[int], name: str = "response") -> Texts:
        """Each query with its response; one that was cut has no EOS."""
        return self._texts([(place, name) for place in places])

    def pairs(self, places: Sequence[int]) -> tuple[Texts, Tensor, Tensor]:
        """Both texts of each comparison, and the rows of the chosen and the rejected ones among them: [B] each."""
        texts = self._texts([(place, name) for name in ("chosen", "rejected") for place in places])
        chosen = torch.arange(len(places))
        return texts, chosen, chosen + len(places)

    def _texts(self, wanted: Sequence[tuple[int, str]]) -> Texts:
        return make_texts(
            [self.queries[place] for place, _ in wanted],
            [self.responses[name][place] for place, name in wanted],
            pad_token_id=self.pad_token_id,
            eos_token_id=self.eos_token_id,
        )
