"""The forward pass of a Llama that makes nothing that nobody reads, and nothing twice; it keeps less for backward, too.

States stand in one list [N, D], without padding. Rows that begin alike are in the same states until they part: these
are made once. What comes before the first layer's attention depends on the token alone: once for each distinct token.
The last layer makes keys and values for all states, and the rest only in states whose output is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import SimpleNamespace

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention

from ..maths.shapes import Tokens
from .fused import feed_forward, normed_product, spread
from .models import last_mlp_only_where
from .places import Places, find_places
from .short_attention import Picks, attention, picks_of_all, picks_of_some

LONG = 128  # tokens of a row above which attention goes through PyTorch's kernel, which keeps no [T, T] weights


def sparing(
    read: Bool[Tensor, "B states"], *of: nn.Module, lean: bool, skip_unread: bool
) -> AbstractContextManager:  # fmt: skip
    """Within, these models need not make what nobody reads where `read` is False, and do not if the settings say so."""
    if lean:
        return only_what_is_read(read, *of)
    return last_mlp_only_where(read, *(of if skip_unread else ()))


@contextmanager
def only_what_is_read(read: Bool[Tensor, "B states"], *of: nn.Module) -> Iterator[None]:
    """Within, the bodies of these Llamas give their final states where `read` is True, and 0 elsewhere.

    A state is made if it is read or if a later state of its row is. What is read is what it would be, up to rounding.
    raises  ValueError for a model that is not a Llama as `refuse_if_not_lean` knows it
    """
    bodies = {id(model.base_model): model.base_model for model in of}.values()
    for body in bodies:
        refuse_if_not_lean(body)
    wrapped = [(body, body.forward) for body in bodies if "trunk" in vars(body)]
    for body in bodies:
        body.forward, body.lean = partial(lean_forward, body, read), True
    try:
        yield
    finally:
        for body in bodies:
            del body.forward, body.lean
        for body, forward in wrapped:
            body.forward = forward


def refuse_if_not_lean(body: nn.Module) -> None:
    """ValueError unless this is a Llama in float32 with SiLU gates, without biases, that attends to all before it."""
    if reason := why_not_lean(body):
        raise ValueError(f"ppo.lean=true does not go with this model, {reason}: leave ppo.lean at false")


def why_not_lean(body: nn.Module) -> str | None:
    """The first reason for `refuse_if_not_lean`, or None."""
    wrapped = [*getattr(body, "layers", ()), *([] if "trunk" in vars(body) else [body])]
    checks = {
        "it is not in float32": any(weight.dtype != torch.float32 for weight in body.parameters()),
        "it runs in mixed precision": torch.is_autocast_enabled(body.device.type),
        "something wraps it": any("forward" in vars(module) for module in wrapped),
    }
    return why_no_config_of_lean(body.config) or next((reason for reason, holds in checks.items() if holds), None)


def why_no_config_of_lean(config) -> str | None:
    """The first reason that a model's config alone gives, or None."""
    checks = {
        "its architecture is not Llama": config.model_type != "llama",
        "its gate is not SiLU": getattr(config, "hidden_act", "silu") != "silu",
        "its products have biases": getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False),
        "its attention is not PyTorch's own": (getattr(config, "_attn_implementation", None) or "sdpa") != "sdpa",
        "its rotation depends on how long the text is": _rope_type(config) in ("dynamic", "longrope"),
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def _rope_type(config) -> str | None:
    return (getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}).get("rope_type")


def lean_forward(body: nn.Module, read: Tensor, input_ids: Tokens, **_) -> SimpleNamespace:
    """In place of the body's own forward pass: `last_hidden_state` [B, T, D] where `read` is True, and 0 elsewhere."""
    places = find_places(input_ids, read)
    states = _run(body, input_ids, read, places)
    blank = states.new_zeros(*read.shape, states.shape[-1])
    return SimpleNamespace(last_hidden_state=blank.index_put(read.nonzero(as_tuple=True), states))


# -------------------------------------------------------------------------------------------------------- the layers


def _run(body: nn.Module, tokens: Tokens, read: Tensor, places: Places) -> Tensor:
    """Final states [M, D] where `read` is True, in its order."""
    angles, last = angles_of(body, tokens.shape[1]), body.layers[-1]
    if tokens.shape[1] > LONG:
        look, look_at_last = partial(_look_back, places=places, angles=angles), _look_back_at_last
    else:
        picks = picks_of_all(places.first, places.state, **_heads_in(last))
        look = partial(_look_back_short, picks=picks, places=places, angles=angles)
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
        states, place = embedding(places.first, body.trunk.states(tokens).flatten(0, 1)), places.state
    else:
        distinct, token = tokens.flatten()[places.first].unique(return_inverse=True)
        states, place = body.embed_tokens(distinct), token[places.state]
    for layer in layers[:-1]:
        attended = look(layer, states, place)
        if place is not places.state:
            states, place = embedding(token, states), places.state
        states = finish(layer, states, attended)
    return states, place


def _look_back(layer: nn.Module, states: Tensor, place: Tensor, *, places: Places, angles: Tensor) -> Tensor:
    """[N, heads * d] what attention brings to each state from itself and those before it."""
    attended = attend(layer, *heads_of(layer, states, place, angles, "q", "k", "v"))
    return embedding(places.first, attended.flatten(0, 1))


def _look_back_short(
    layer: nn.Module, states: Tensor, place: Tensor, *, picks: Picks, places: Places, angles: Tensor
) -> Tensor:  # fmt: skip
    """The same for short rows."""
    made, _ = _project(layer, states, "q", "k", "v")
    if place is not places.state:
        made = embedding(place.flatten()[places.first], made)
    before = places.state.new_ones(place.shape[1:] * 2, dtype=torch.bool).tril()
    table = made.view(-1, layer.self_attn.head_dim)
    may_look = before.repeat(layer.self_attn.num_key_value_groups, 1)
    return attention(table, picks, angles[:, 0], may_look, layer.self_attn.scaling)


def _look_back_at_last(
    layer: nn.Module, states: Tensor, asking: Tensor, place: Tensor, places: Places, angles: Tensor, read: Tensor
) -> Tensor:  # fmt: skip
    """[M, heads * d] what attention brings to the states `asking` [M, D], which are those that are read."""
    keys, values = heads_of(layer, states, place, angles, "k", "v")
    queries, where, may_look = _queries_at_last(layer, asking, angles, read)
    asked = queries.new_zeros(*may_look.shape[:2], queries.shape[1]).index_put(where, queries)
    return attend(layer, asked, keys, values, may_look[:, None])[where]


def _look_back_at_last_short(
    layer: nn.Module, states: Tensor, asking: Tensor, place: Tensor, places: Places, angles: Tensor, read: Tensor
) -> Tensor:  # fmt: skip
    """The same for short rows."""
    made, _ = _project(layer, states, "k", "v")
    if place is not places.state:
        made = embedding(place.flatten()[places.first], made)
    queries, where, may_look = _queries_at_last(layer, asking, angles, read)
    table = torch.cat([numbers.view(-1, layer.self_attn.head_dim) for numbers in (made, queries)])
    heads, stands = _heads_in(layer), read.new_zeros(may_look.shape[:2]).index_put(where, read.new_ones(()))
    picks = picks_of_some(places.first, places.state, stands, **heads)
    may_look = may_look.repeat(heads["key_heads"], heads["groups"], 1)
    return attention(table, picks, angles[:, 0], may_look, layer.self_attn.scaling)


def _queries_at_last(
    layer: nn.Module, asking: Tensor, angles: Tensor, read: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:  # fmt: skip
    """[M, heads * d], rotated; where each stands, in [B, queries]; and bool [B, queries, T], what it may look at."""
    row, column = read.nonzero(as_tuple=True)
    where = row, (read.cumsum(1) - 1)[read]
    (queries,) = heads_of(layer, asking, torch.arange(len(row), device=row.device), angles[column], "q")
    latest = column.new_zeros(len(read), int(where[1].max()) + 1).index_put(where, column)
    return queries, where, torch.arange(read.shape[1], device=row.device) <= latest[:, :, None]


def _heads_in(layer: nn.Module) -> dict[str, int]:
    attention, groups = layer.self_attn, layer.self_attn.num_key_value_groups
    return dict(key_heads=len(attention.k_proj.weight) // attention.head_dim, groups=groups)


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
