"""Which states have to be made, and where each of them stands: one list for all rows, without what nobody reads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from threading import RLock
from typing import TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import pad

from ..maths.shapes import Tokens

Derived = TypeVar("Derived")


@dataclass(frozen=True, eq=False)
class Places:
    """Where the N distinct states stand in rows, and which of them stands at each place."""

    first: Tensor  # [N] into the places [B * T], flat: the first at which a state stands
    state: Tensor  # [B, T] into the N states; anything where no state is made
    derived: dict = field(default_factory=dict, repr=False)
    turn: AbstractContextManager = field(default_factory=RLock, repr=False)

    def once(self, make: Callable[..., Derived], *of: object) -> Derived:
        """`make(places, *of)`, made once: models that read the same texts share it, also from several threads.

        Tensors count as themselves.
        """
        key = make, *of
        with self.turn:
            if key not in self.derived:
                self.derived[key] = make(self, *of)
            return self.derived[key]


def made_once(make: Callable[..., Derived]) -> Callable[..., Derived]:
    """The function with each of its results made once, by the thread that asks first; others wait for it."""
    remembering, turn = cache(make), RLock()

    def asked(*of: object) -> Derived:
        with turn:
            return remembering(*of)

    return asked


def find_places(tokens: Tokens, read: Bool[Tensor, "B states"]) -> Places:
    """A state is made up to the last that is read in a row, once for all rows that are equal up to there.

    Sorted rows that begin alike are neighbours: a state is new unless the row above is equal up to its place.
    """
    needed = read.flip(1).cummax(1).values.flip(1)
    seen = tokens.masked_fill(~needed, -1)
    order = torch.tensor(sorted(range(len(seen)), key=seen.tolist().__getitem__), device=seen.device)
    rows = seen[order]
    as_above = pad((rows[1:] == rows[:-1]).long().cumprod(1).bool(), (0, 0, 1, 0))
    new = needed[order] & ~as_above
    number = torch.where(new, new.flatten().cumsum(0).view_as(tokens) - 1, 0).cummax(0).values
    row, column = new.nonzero(as_tuple=True)
    return Places(
        first=order[row] * tokens.shape[1] + column, state=torch.empty_like(number).index_copy(0, order, number)
    )


def each_once(places: Places, read: Bool[Tensor, "B states"]) -> tuple[Bool[Tensor, "B states"], Tensor]:
    """Of the M places that are read, one for each distinct state; and which of these is the same as each of the M."""
    states, same = places.state[read].unique(return_inverse=True)
    order = torch.arange(len(same), device=same.device)
    first = order.new_full((len(states),), len(same)).scatter_reduce(0, same, order, "amin")
    chosen = torch.zeros_like(order, dtype=torch.bool).index_fill(0, first, True)
    return torch.zeros_like(read).masked_scatter(read, chosen), (chosen.cumsum(0) - 1)[first[same]]
