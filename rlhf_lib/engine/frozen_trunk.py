"""Layers that never learn, held once by all models and run once for each text.

The lower layers of policy, reference, value and reward model are the same modules, down to the embeddings. What they
make of a text is remembered: a text is read once, however many models and epochs look at it, and only the top layers
run again. A row's states depend on its tokens alone, bit for bit: each row goes through the trunk by itself, so that
neither batches nor resuming change a result. Sampling runs whole models as ever.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..maths.shapes import Tokens
from .files import DamagedError
from .models import train_top_layers

REMEMBERED_BYTES = 2**30  # of states; about six thousand texts of 77 tokens and width 576


class FrozenTrunk:
    """The trunk of the first model that it adopts; later ones must have the same."""

    def __init__(self, *, trainable_layers: int, pad_token_id: int):
        self.trainable_layers, self.pad_token_id = trainable_layers, pad_token_id
        self.body: nn.Module | None = None
        self.remembered: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self.bytes = 0  # of what is remembered

    def adopt(self, model: nn.Module) -> nn.Module:
        """The same model with this trunk in place of its own. What trains is what `train_top_layers` says.

        raises  DamagedError if the model's lower layers are others
        """
        body = model.base_model
        if self.body is None:
            self.body = _shared(_lower(body, self.trainable_layers))
        _refuse_others(self.body, _lower(body, self.trainable_layers))
        for place, layer in enumerate(self.body.layers):
            body.layers[place] = layer
        _replace_embeddings(model, self.body.get_input_embeddings())
        body.forward = partial(_forward, self, body)
        return train_top_layers(model, self.trainable_layers)

    def states(self, tokens: Tokens) -> Tensor:
        """[B, T, D] before the top layers; 0 at padding."""
        rows = [_without_padding(row, self.pad_token_id) for row in tokens.tolist()]
        states = pad_sequence([self._states_of(row) for row in rows], batch_first=True)
        return nn.functional.pad(states, (0, 0, 0, tokens.shape[1] - states.shape[1]))

    def __deepcopy__(self, memo: dict) -> FrozenTrunk:
        return self

    @torch.no_grad()
    def _states_of(self, row: tuple[int, ...]) -> Tensor:
        """[T, D] of one row, from memory if it is there."""
        if row not in self.remembered:
            tokens = torch.tensor([row], device=self.body.get_input_embeddings().weight.device)
            found = type(self.body).forward(self.body, input_ids=tokens, use_cache=False)
            self._remember(row, found.last_hidden_state[0])
        self.remembered.move_to_end(row)
        return self.remembered[row]

    def _remember(self, row: tuple[int, ...], states: Tensor) -> None:
        """And forget the oldest that there is no room for."""
        self.remembered[row] = states
        self.bytes += states.nbytes
        while self.bytes > REMEMBERED_BYTES:
            self.bytes -= self.remembered.popitem(last=False)[1].nbytes


def _forward(trunk: FrozenTrunk, body: nn.Module, input_ids: Tokens, use_cache: bool = True, **options):
    """In place of the body's own forward pass: whole where there is a cache to fill, else the top layers alone."""
    if use_cache:
        return type(body).forward(body, input_ids=input_ids, use_cache=use_cache, **options)
    top = _part(body, body.layers[len(trunk.body.layers) :])
    return type(body).forward(top, inputs_embeds=trunk.states(input_ids), use_cache=False, **options)


def _lower(body: nn.Module, trainable_layers: int) -> nn.Module:
    """Embeddings and lower layers, without the final norm."""
    lower = _part(body, body.layers[: len(body.layers) - trainable_layers])
    for name in [name for name, _ in lower.named_children() if "norm" in name]:
        setattr(lower, name, nn.Identity())
    return lower


def _part(body: nn.Module, layers: Sequence[nn.Module]) -> nn.Module:
    """The same body with some of its layers."""
    part = copy.copy(body)
    part._modules = dict(body._modules)
    part.layers = nn.ModuleList(layers)
    return part


def _shared(body: nn.Module) -> nn.Module:
    """The same modules, frozen; in a deep copy of a model they stay the same ones."""
    for module in [*body.layers, body.get_input_embeddings()]:
        module.requires_grad_(False).__deepcopy__ = partial(_itself, module)
    return body


def _itself(module: nn.Module, memo: dict) -> nn.Module:
    return module


def _replace_embeddings(model: nn.Module, embeddings: nn.Module) -> None:
    """A head that is tied to the embeddings stays tied to them."""
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    model.set_input_embeddings(embeddings)
    if tied:
        head.weight = embeddings.weight
        head.__deepcopy__ = partial(_itself, head)


def _refuse_others(ours: nn.Module, theirs: nn.Module) -> None:
    weights = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        if name not in weights or not torch.equal(weight, weights[name]):
            raise DamagedError(
                f"{name} is not as in the other models, though only top layers train: start from models of one run"
            )


def _without_padding(row: list[int], pad_token_id: int) -> tuple[int, ...]:
    """The row up to its first padding, which may be an EOS: then it is needed."""
    end = len(row)
    while end > 1 and row[end - 1] == row[end - 2] == pad_token_id:
        end -= 1
    return tuple(row[:end])
