"""Layers that never learn, held once by all models and run once for each text.

The lower layers of policy, reference, value and reward model are the same modules, down to the embeddings. What they
make of a text is remembered: a text is read once, however many models and epochs look at it, and only the top layers
run again. Texts with the same prompt share its reading, and so does the sampler that wrote them. Keys and values, which
texts look back at, take 95 % of a prompt's reading: they have a memory of their own, and go before the states do.

A prompt goes through the trunk by itself, then the texts below it side by side, since it is the weights that take the
time. So a row's states depend, in their last bits, on which texts of its prompt are read with it, and on no other row.
All texts of a prompt are met together, first or again: neither batches nor resuming change a result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import RLock

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..maths.masking import mask_from_lengths
from ..maths.shapes import Tokens
from .files import DamagedError
from .lean import lean_forward, why_not_lean
from .lru import LRU
from .models import part_of, train_top_layers
from .past import cache_name, cache_of
from .trunk_decoder import TrunkDecoder

STATES_BYTES = 2**29  # about 1,200 prompts of 66 tokens with eight texts of 16 more below each, of SmolLM2-135M
PROMPTS_BYTES = 7 * 2**28  # about 620 such prompts, to go on from
REMEMBERED_BYTES = STATES_BYTES + PROMPTS_BYTES
Row = tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """What the trunk makes of some tokens: states [T, D] for the top layers, and what later tokens look back at.

    keys_and_values  of each layer two of [1, heads, T, d]
    """

    states: Tensor
    keys_and_values: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def nbytes(self) -> int:
        return self.states.nbytes + sum(numbers.nbytes for layer in self.keys_and_values for numbers in layer)


class FrozenTrunk:
    """The trunk of the first model that it adopts; later ones must have the same.

    prompt_end  tokens with which a prompt ends, where they occur last; without them every text is read by itself
    """

    def __init__(self, *, trainable_layers: int, pad_token_id: int, prompt_end: Sequence[int] = ()):
        self.trainable_layers, self.pad_token_id, self.prompt_end = trainable_layers, pad_token_id, tuple(prompt_end)
        self.body: nn.Module | None = None
        self.known, self.known_prompts = LRU(STATES_BYTES), LRU(PROMPTS_BYTES)  # states by row, readings by prompt
        self.turn = RLock()  # of threads, see `side_by_side`

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
        body.trunk, body.forward, model.decoder = self, partial(_forward, self, body), partial(TrunkDecoder, self)
        return train_top_layers(model, self.trainable_layers)

    def states(self, tokens: Tokens) -> Tensor:
        """[B, T, D] before the top layers; 0 at padding."""
        rows = self.rows(tokens)
        found = self.states_of(rows)
        states = pad_sequence([found[row] for row in rows], batch_first=True)
        return nn.functional.pad(states, (0, 0, 0, tokens.shape[1] - states.shape[1]))  # or cut, by what ends a row

    def rows(self, tokens: Tokens) -> list[Row]:
        """Each up to its first padding, which may be the EOS that ends it; where there is none, with one behind it.

        So a text is the same row however wide its batch. If several PADs were really written last, the first is read.
        """
        return [(*_without_padding(row, self.pad_token_id), self.pad_token_id) for row in tokens.tolist()]

    def __deepcopy__(self, memo: dict) -> FrozenTrunk:
        return self

    @torch.no_grad()
    def states_of(self, rows: Sequence[Row]) -> dict[Row, Tensor]:
        """[T, D] of these texts: from memory if they are there; if not, all of one prompt are read side by side."""
        below: defaultdict[Row, list[Row]] = defaultdict(list)
        for row in dict.fromkeys(rows):
            below[self._prompt_of(row)].append(row)
        found: dict[Row, Tensor] = {}
        for prompt, texts in below.items():
            with self.turn:
                own = self.known.recall([prompt, *texts]) or self._read(prompt, texts)
            found |= {row: torch.cat([own[prompt], own[row]]) if row != prompt else own[row] for row in texts}
        return found

    def _read(self, prompt: Row, texts: Sequence[Row]) -> dict[Row, Tensor]:
        """The states of a prompt and, of each text below it, those behind the prompt."""
        before, longer = self.prompt(prompt), [row for row in texts if row != prompt]
        behind = self._go_on([row[len(prompt) :] for row in longer], before) if longer else ()
        found = {prompt: before.states, **dict(zip(longer, (reading.states for reading in behind), strict=True))}
        self.known.remember(found)
        return found

    @torch.no_grad()
    def prompt(self, row: Row) -> Reading:
        """From memory, or read by itself."""
        if row not in self.known_prompts:
            reading = next(self._go_on([row], Reading(self.body.get_input_embeddings().weight[:0])))
            self.known_prompts.remember({row: reading})
            return reading
        return self.known_prompts[row]

    def _prompt_of(self, row: Row) -> Row:
        """The row up to the end of its prompt, or all of it where it has none or is one."""
        size = len(self.prompt_end) or len(row)
        ends = (end for end in range(len(row), size - 1, -1) if row[end - size : end] == self.prompt_end)
        return row[: next(ends, len(row))]

    def _go_on(self, rows: Sequence[Row], before: Reading) -> Iterator[Reading]:
        """The readings of these tokens behind what was read before; shorter rows are padded on the right."""
        device = self.body.get_input_embeddings().weight.device
        tokens = pad_sequence([torch.tensor(row, device=device) for row in rows], batch_first=True)
        cache = cache_of(before.keys_and_values, copies=len(rows))
        found = type(self.body).forward(self.body, input_ids=tokens, use_cache=True, **{cache_name(): cache})
        for place, row in enumerate(rows):
            own = slice(place, place + 1)
            keys_and_values = tuple((layer.keys[own], layer.values[own]) for layer in cache.layers)
            yield Reading(found.last_hidden_state[place, : len(row)].clone(), keys_and_values)  # not those of all rows


def _forward(trunk: FrozenTrunk, body: nn.Module, input_ids: Tokens, use_cache: bool = True, **options):
    """In place of the body's own forward pass: whole where there is a cache to fill, else the top layers alone.

    Of a Llama they run once for each state, so that texts below one prompt share it here as well.
    """
    if use_cache:
        return type(body).forward(body, input_ids=input_ids, use_cache=use_cache, **options)
    if not why_not_lean(body):
        lengths = torch.tensor([len(row) for row in trunk.rows(input_ids)], device=input_ids.device)
        width = input_ids.shape[1]
        return lean_forward(body, mask_from_lengths(lengths.clamp(max=width), width), input_ids)
    top = part_of(body, body.layers[len(trunk.body.layers) :])
    return type(body).forward(top, inputs_embeds=trunk.states(input_ids), use_cache=False, **options)


def _lower(body: nn.Module, trainable_layers: int) -> nn.Module:
    """Embeddings and lower layers, without the final norm."""
    lower = part_of(body, body.layers[: len(body.layers) - trainable_layers])
    for name in [name for name, _ in lower.named_children() if "norm" in name]:
        setattr(lower, name, nn.Identity())
    return lower


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


def _without_padding(row: list[int], pad_token_id: int) -> list[int]:
    end = len(row)
    while end > 1 and row[end - 1] == pad_token_id:
        end -= 1
    return row[:end]
