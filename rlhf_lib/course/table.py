"""A model that is one table: what comes after a token depends on that token alone. It trains in milliseconds."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..engine.past import cache_name


class Table(nn.Module):
    """What comes after a token depends on that token alone: one row of logits, and one score, for each.

    It has what the library asks of a Hugging Face model (as a policy, a critic or a reward model), and no cache: it
    can write one token.
    """

    def __init__(self, logits: Tensor, scores: Tensor):
        super().__init__()
        vocab = len(scores)
        self.config = SimpleNamespace(reward_offset=0.0)
        self.base_model = _OneHot(vocab)
        self.head, self.score = nn.Linear(vocab, vocab, bias=False), nn.Linear(vocab, 1, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(logits.T)
            self.score.weight.copy_(scores[None])

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, **_) -> SimpleNamespace:
        logits = self.head(self.base_model(input_ids).last_hidden_state)
        return SimpleNamespace(logits=logits, **{cache_name(): None})


class _OneHot(nn.Module):
    def __init__(self, vocab: int):
        super().__init__()
        self.vocab = vocab

    def forward(self, input_ids: Tensor, **_) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=nn.functional.one_hot(input_ids, self.vocab).float())
