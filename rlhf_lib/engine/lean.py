"""The forward pass of a Llama that makes nothing that nobody reads, and nothing twice; it keeps less for backward, too.

States stand in one list [N, D], without padding. Rows that begin alike are in the same states until they part: these
are made once. What comes before the first layer's attention depends on the token alone: once for each distinct token.
The last layer makes keys and values for all states, and the rest only in states whose output is read, once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.functional import embedding

from ..maths.shapes import Tokens
from .allocator import keep_what_is_freed
from .kept_pass import kept_or_made
from .lean_layers import run_layers
from .models import last_mlp_only_where
from .places import Places, each_once, find_places, made_once
from .side_by_side import side_by_side, worth_it


@contextmanager
def sparing(
    tokens: Tokens, *reading: tuple[Bool[Tensor, "B states"], Sequence[nn.Module]], lean: bool, skip_unread: bool,
    keep: bool = False,
) -> Iterator[None]:  # fmt: skip
    """Within, models that read these tokens make nothing that nobody reads, if the settings say so.

    With a second thread, several lean models read the tokens at once, before anybody asks them: see `side_by_side`.

    reading  where states are read, and the models of which they are
    keep     lean models keep the first pass without gradients for the first with them, see `kept_pass`
    """
    within = partial(only_what_is_read, keep=keep) if lean else last_mlp_only_where
    with ExitStack() as stack:
        for read, models in reading if lean or skip_unread else ():
            stack.enter_context(within(read, *models))
        bodies = [model.base_model for _, models in reading for model in models]
        if lean and len(set(bodies)) == len(bodies) > 1 and worth_it(tokens.device):
            _read_ahead(bodies, tokens)
        yield


def _read_ahead(bodies: Sequence[nn.Module], tokens: Tokens) -> None:
    """Have them all read these tokens now, side by side: the first to ask one of them gets what it made of them."""
    made = side_by_side([lambda body=body: body.forward(tokens).last_hidden_state for body in bodies])
    for body, states in zip(bodies, made, strict=True):
        body.forward = partial(_first_what_is_made, [states], tokens, body.forward)


def _first_what_is_made(made: list[Tensor], of: Tokens, make: Callable, input_ids: Tokens, **rest) -> SimpleNamespace:
    return SimpleNamespace(last_hidden_state=made.pop()) if made and input_ids is of else make(input_ids, **rest)


@contextmanager
def only_what_is_read(read: Bool[Tensor, "B states"], *of: nn.Module, keep: bool = False) -> Iterator[None]:
    """Within, the bodies of these Llamas give their final states where `read` is True, and 0 elsewhere.

    A state is made if it is read or if a later state of its row is. What is read is what it would be, up to rounding.
    raises  ValueError for a model that is not a Llama as `refuse_if_not_lean` knows it
    """
    bodies, find = {id(model.base_model): model.base_model for model in of}.values(), made_once(find_places)
    keep_what_is_freed()
    for body in bodies:
        refuse_if_not_lean(body)
    wrapped = [(body, body.forward) for body in bodies if "trunk" in vars(body)]
    for body in bodies:
        body.forward, body.lean = partial(lean_forward, body, read, find=find, keep=keep), True
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


def lean_forward(
    body: nn.Module, read: Tensor, input_ids: Tokens, find: Callable[..., Places] = find_places, keep: bool = False, **_
) -> SimpleNamespace:  # fmt: skip
    """In place of the body's own forward pass: `last_hidden_state` [B, T, D] where `read` is True, and 0 elsewhere."""

    def make() -> Tensor:
        places = find(input_ids, read)
        each, which = places.once(each_once, read)
        states = run_layers(body, input_ids, each, places)
        return states if len(states) == len(which) else embedding(which, states)

    states = kept_or_made(body, input_ids, read, make) if keep else make()
    blank = states.new_zeros(*read.shape, states.shape[-1])
    return SimpleNamespace(last_hidden_state=blank.index_put(read.nonzero(as_tuple=True), states))


def pieces(order: Tensor, count: int, *, lean: bool) -> Iterator[Tensor]:
    """An order of rows in `count` pieces.

    Lean: the rows of a piece stand in their own order again. That changes nothing but who shares a micro-batch, and
    with one piece these are the micro-batches of the rollout, of which a pass is kept.
    """
    for piece in order.chunk(count):
        yield piece.sort().values if lean else piece
