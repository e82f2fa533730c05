"""Attention of short rows as plain products of heads, from states in a list back to a list, with its own gradient.

For rows of up to about a hundred tokens the weights [T, T] of a head are no more numbers than its queries, keys and
values, and to make and keep them takes less time on a CPU than the fused kernel's way around them. Heads are picked
from the list straight into the order in which they are multiplied, and back: one pass over memory each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

from .places import Places

aten = torch.ops.aten


@dataclass(frozen=True)
class Picks:
    """Which head of which state stands where, in rows of a head's width d.

    The table holds rows as they are made: all heads of one state, then of the next. In order stand queries [key heads,
    B, groups, queries], then keys [key heads, B, T], then as many values. An answer is what a query brings together.
    """

    sizes: tuple[int, int, int]  # rows of queries, keys, values in order
    batch: int  # key heads * B: products of matrices
    turned: slice  # rows in order that are rotated
    spread: Tensor  # in order, from the table
    collect: Tensor  # of the table, from the order: the first place at which a state stands
    answers: Tensor  # [M, heads] in order: of those queries that are read
    again: Tensor  # [places, heads of a state in the table] in order: where a state stands that stood elsewhere before
    state_again: Tensor  # [places] the state
    states: int  # in the table, before other queries


def attention(table: Tensor, picks: Picks, angles: Tensor, may_look: Tensor, scaling: float) -> Tensor:
    """Answers [M, heads * d] to the queries in the table [rows, d].

    angles    complex [T, d/2] by which pairs of neighbouring columns turn at each place
    may_look  bool [groups * queries, T] or one for each product: which query may look at which place
    """
    return _Attention.apply(table, picks, angles, may_look, scaling)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, picks, angles, may_look, scaling):
        rows = embedding(picks.spread, table)
        _turn(rows[picks.turned], angles)
        queries, keys, values = _matrices(rows, picks)
        barred = rows.new_zeros(may_look.shape).masked_fill_(~may_look, -torch.inf)
        logits = torch.baddbmm(barred, queries, keys.mT, alpha=scaling)
        weights = torch.softmax(logits, -1)  # not into the logits' place: that takes half as long again
        ctx.save_for_backward(rows, weights, angles)
        ctx.rest = picks, scaling
        return embedding(picks.answers, (weights @ values).flatten(0, 1)).flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, weights, angles = ctx.saved_tensors
        picks, scaling = ctx.rest
        queries, keys, values = _matrices(rows, picks)
        back = torch.empty_like(rows)
        of_queries, of_keys, of_values = _matrices(back, picks)
        grad = _to_queries(grad, picks, queries)
        of_logits = aten._softmax_backward_data(grad @ values.mT, weights, -1, weights.dtype)
        torch.baddbmm(of_queries, of_logits, keys, beta=0, alpha=scaling, out=of_queries)
        torch.baddbmm(of_keys, of_logits.mT, queries, beta=0, alpha=scaling, out=of_keys)
        torch.bmm(weights.mT, grad, out=of_values)
        _turn(back[picks.turned], angles.conj_physical())
        of_table = embedding(picks.collect, back)
        together = of_table[: picks.states * picks.again.shape[1]].view(picks.states, -1)
        together.index_add_(0, picks.state_again, embedding(picks.again, back).flatten(1))
        return of_table, None, None, None, None


def _turn(rows: Tensor, angles: Tensor) -> None:
    """In place."""
    torch.view_as_complex(rows.view(-1, *angles.shape, 2)).mul_(angles)


def _matrices(rows: Tensor, picks: Picks) -> list[Tensor]:
    """Three of [key heads * B, rows, d]."""
    return [part.view(picks.batch, -1, rows.shape[1]) for part in rows.split(picks.sizes)]


def _to_queries(grad: Tensor, picks: Picks, like: Tensor) -> Tensor:
    """Gradients of answers [M, heads * d] where their queries stand, and 0 at others."""
    rows = like.new_zeros(picks.sizes[0], like.shape[-1])
    return rows.index_copy_(0, picks.answers.flatten(), grad.reshape(-1, like.shape[-1])).view_as(like)


# -------------------------------------------------------------------------------------------------- who stands where


def picks_of_all(places: Places, key_heads: int, groups: int) -> Picks:
    """For a table of queries, keys and values of all states, all of which are asked; `groups` heads a key head."""
    first, state = places.first, places.state
    heads = key_heads * groups
    sizes = heads * state.numel(), key_heads * state.numel(), key_heads * state.numel()
    queries, others = _stand(state, key_heads, groups), _stand(state, 2 * key_heads) + sizes[0]
    stand = torch.cat([queries, others], 1)
    spread = stand.new_empty(sum(sizes)).index_copy_(0, stand.flatten(), _in_table(state, stand.shape[1]))
    collect, again = stand[first], _not_first(first, state)
    return Picks(
        sizes, key_heads * len(state), slice(sizes[0] + sizes[1]), spread, collect.flatten(), collect[:, :heads],
        stand[again], state.flatten()[again], len(first),
    )  # fmt: skip


def picks_of_some(places: Places, asked: Tensor, key_heads: int, groups: int) -> Picks:
    """For a table of keys and values of all states, and behind them of queries, rotated already, of M that are asked.

    asked  bool [B, queries] True where one of them stands, in their order
    """
    first, state = places.first, places.state
    heads = key_heads * groups
    sizes = heads * asked.numel(), key_heads * state.numel(), key_heads * state.numel()
    answers, stand = _stand(asked, key_heads, groups)[asked.flatten()], _stand(state, 2 * key_heads) + sizes[0]
    spread = stand.new_zeros(sum(sizes)).index_copy_(0, stand.flatten(), _in_table(state, stand.shape[1]))
    spread[answers.flatten()] = len(first) * stand.shape[1] + torch.arange(answers.numel(), device=state.device)
    collect, again = torch.cat([stand[first].flatten(), answers.flatten()]), _not_first(first, state)
    return Picks(
        sizes, key_heads * len(state), slice(sizes[0], sizes[0] + sizes[1]), spread, collect, answers,
        stand[again], state.flatten()[again], len(first),
    )  # fmt: skip


def _stand(places: Tensor, heads: int, groups: int = 1) -> Tensor:
    """[B * T, heads * groups] where the heads of each place [B, T] stand in the order [heads, B, groups, T]."""
    rows, states = places.shape
    numbers = torch.arange(heads * groups * places.numel(), device=places.device).view(heads, rows, groups, states)
    return numbers.permute(1, 3, 0, 2).reshape(places.numel(), -1)


def _in_table(state: Tensor, columns: int) -> Tensor:
    """[B * T * columns] which row of the table belongs to each place and column."""
    return (state.flatten()[:, None] * columns + torch.arange(columns, device=state.device)).flatten()


def _not_first(first: Tensor, state: Tensor) -> Tensor:
    """Places, flat, that are not the first of any state: of a prefix that another row has as well, and of padding."""
    return torch.ones_like(state, dtype=torch.bool).flatten().index_fill(0, first, False).nonzero().squeeze(1)
