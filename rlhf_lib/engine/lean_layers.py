"""The layers of a lean pass: which states ask, which are asked, and what becomes of them. See `lean`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention

from ..maths.shapes import Tokens
from .fused import feed_forward, normed_product, spread
from .places import Places
from .short_attention import attention, picks_of_all, picks_of_some

if TYPE_CHECKING:
    from .frozen_trunk import FrozenTrunk

LONG = 128  # tokens of a row above which attention goes through PyTorch's kernel, which keeps no [T, T] weights


def run_layers(body: nn.Module, tokens: Tokens, read: Tensor, places: Places) -> Tensor:
    """Final states [M, D] where `read` is True, in its order."""
    angles, last = angles_of(body, tokens.shape[1]), body.layers[-1]
    if tokens.shape[1] > LONG:
        look, look_at_last = partial(_look_back, places=places, angles=angles), _look_back_at_last
    else:
        look = partial(_look_back_short, places=places, angles=angles)
        look_at_last = _look_back_at_last_short
    states, place = run_all_but_last(body, tokens, places, look)
    asking = embedding(place[read], states)
    return body.norm(finish(last, asking, look_at_last(last, states, asking, place, places, angles, read)))


def run_all_but_last(
    body: nn.Module, tokens: Tokens, places: Places, look: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """The states [N, D] that the last layer gets, and which of them stands where, [B, T].

    look  (layer, states, place) to [N, heads * d]: what attention brings to each state
    """
    layers, token = body.layers, places.first
    if "trunk" in vars(body):  # see `frozen_trunk`
        layers = layers[len(body.trunk.body.layers) :]
        states, place = places.once(_of_trunk, body.trunk, tokens), places.state
    else:
        distinct, token = tokens.flatten()[places.first].unique(return_inverse=True)
        states, place = body.embed_tokens(distinct), token[places.state]
    for layer in layers[:-1]:
        attended = look(layer, states, place)
        if place is not places.state:
            states, place = embedding(token, states), places.state
        states = finish(layer, states, attended)
    return states, place


def _of_trunk(places: Places, trunk: FrozenTrunk, tokens: Tokens) -> Tensor:
    return embedding(places.first, trunk.states(tokens).flatten(0, 1))


def _look_back(layer: nn.Module, states: Tensor, place: Tensor, *, places: Places, angles: Tensor) -> Tensor:
    """[N, heads * d] what attention brings to each state from itself and those before it."""
    attended = attend(layer, *heads_of(layer, states, place, angles, "q", "k", "v"))
    return embedding(places.first, attended.flatten(0, 1))


def _look_back_short(layer: nn.Module, states: Tensor, place: Tensor, *, places: Places, angles: Tensor) -> Tensor:
    """The same for short rows."""
    made, _ = _project(layer, states, "q", "k", "v")
    if place is not places.state:
        made = embedding(place.flatten()[places.first], made)
    key_heads, groups = _heads_in(layer)
    picks = places.once(picks_of_all, key_heads, groups)
    may_look = places.state.new_ones(place.shape[1:] * 2, dtype=torch.bool).tril().repeat(groups, 1)
    table = made.view(-1, layer.self_attn.head_dim)
    return attention(table, picks, angles[:, 0], may_look, layer.self_attn.scaling)


def _look_back_at_last(
    layer: nn.Module, states: Tensor, asking: Tensor, place: Tensor, places: Places, angles: Tensor, read: Tensor
) -> Tensor:  # fmt: skip
    """[M, heads * d] what attention brings to the states `asking` [M, D], which are those that are read."""
    keys, values = heads_of(layer, states, place, angles, "k", "v")
    asked = places.once(_asked, read)
    queries = _queries_at_last(layer, asking, angles, asked)
    queries = queries.new_zeros(*asked.may_look.shape[:2], queries.shape[1]).index_put(asked.where, queries)
    return attend(layer, queries, keys, values, asked.may_look[:, None])[asked.where]


def _look_back_at_last_short(
    layer: nn.Module, states: Tensor, asking: Tensor, place: Tensor, places: Places, angles: Tensor, read: Tensor
) -> Tensor:  # fmt: skip
    """The same for short rows."""
    made, _ = _project(layer, states, "k", "v")
    if place is not places.state:
        made = embedding(place.flatten()[places.first], made)
    asked, (key_heads, groups) = places.once(_asked, read), _heads_in(layer)
    queries = _queries_at_last(layer, asking, angles, asked)
    table = torch.cat([numbers.view(-1, layer.self_attn.head_dim) for numbers in (made, queries)])
    picks = places.once(picks_of_some, asked.stands, key_heads, groups)
    return attention(table, picks, angles[:, 0], asked.may_look.repeat(key_heads, groups, 1), layer.self_attn.scaling)


@dataclass(frozen=True)
class Asked:
    """The M states that are read, as the last layer's queries: at most `queries` of them in a row."""

    column: Tensor  # [M] their places in their rows
    where: tuple[Tensor, Tensor]  # [M] and [M]: their row, and which of those in it
    stands: Tensor  # bool [B, queries] whether there is one
    may_look: Tensor  # bool [B, queries, T] at which places


def _asked(places: Places, read: Tensor) -> Asked:
    row, column = read.nonzero(as_tuple=True)
    where = row, (read.cumsum(1) - 1)[read]
    latest = column.new_full((len(read), int(where[1].max()) + 1), -1).index_put(where, column)
    stands, places_in_row = latest >= 0, torch.arange(read.shape[1], device=row.device)
    return Asked(column, where, stands, places_in_row <= latest.clamp(min=0)[:, :, None])


def _queries_at_last(layer: nn.Module, asking: Tensor, angles: Tensor, asked: Asked) -> Tensor:
    """[M, heads * d], rotated."""
    each = torch.arange(len(asking), device=asking.device)
    return heads_of(layer, asking, each, angles[asked.column], "q")[0]


def _heads_in(layer: nn.Module) -> tuple[int, int]:
    """Key heads, and heads for each of them."""
    attention = layer.self_attn
    return len(attention.k_proj.weight) // attention.head_dim, attention.num_key_value_groups


def heads_of(layer: nn.Module, states: Tensor, place: Tensor, angles: Tensor, *names: str) -> tuple[Tensor, ...]:
    """Queries, keys or values [*P, heads * d] of the states [N, D] that stand at the places [*P], rotated."""
    made, widths = _project(layer, states, *names)
    turned = sum(width for name, width in zip(names, widths, strict=True) if name != "v")
    return spread(made, place, angles, turned).split(widths, -1)


def _project(layer: nn.Module, states: Tensor, *names: str) -> tuple[Tensor, list[int]]:
    """Queries, keys or values [N, sum of widths] before rotation, and their widths."""
    attention, norm = layer.self_attn, layer.input_layernorm
    weights = {name: getattr(attention, f"{name}_proj").weight for name in names}
    paired = [weight if name == "v" else _neighbours(weight, attention.head_dim) for name, weight in weights.items()]
    return normed_product(states, norm.weight, norm.variance_epsilon, *paired), [len(weight) for weight in paired]


def _neighbours(weight: Tensor, width: int) -> Tensor:
    """Rows i and i + width/2 of each head, which rotate together, side by side: no product of two heads changes."""
    return weight.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)


def attend(layer: nn.Module, queries: Tensor, keys: Tensor, values: Tensor, may_look: Tensor | None = None) -> Tensor:
    """[B, queries, heads * width] from three of [B, places, heads * width]; without `may_look`, at all before it."""
    heads = [
        numbers.unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(1, 2) for numbers in (queries, keys, values)
    ]
    attended = scaled_dot_product_attention(
        *heads, attn_mask=may_look, is_causal=may_look is None, scale=layer.self_attn.scaling,
        enable_gqa=heads[0].shape[1] != heads[1].shape[1],
    )  # fmt: skip
    return attended.transpose(1, 2).flatten(2)


def finish(layer: nn.Module, states: Tensor, attended: Tensor) -> Tensor:
    """The layer's output from its input and what attention brought together."""
    states = torch.addmm(states, attended, layer.self_attn.o_proj.weight.T)
    norm, mlp = layer.post_attention_layernorm, layer.mlp
    weights = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
    return feed_forward(states, norm.weight, norm.variance_epsilon, *weights)


def angles_of(body: nn.Module, length: int) -> Tensor:
    """[T, 1, d/2] complex numbers by which pairs turn, as the model's own rotary embedding says."""
    positions = torch.arange(length, device=body.device)[None]
    cos, sin = body.rotary_emb(body.embed_tokens.weight.detach(), positions)  # of the weights only dtype and device
    return torch.complex(*(half[0, :, None, : half.shape[-1] // 2].contiguous() for half in (cos, sin)))
