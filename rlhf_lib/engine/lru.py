"""A memory of limited size (least recently used)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from cachetools import LRUCache


class LRU(LRUCache):
    """A dictionary of things with `nbytes` that forgets the one not used for longest when there is no room."""

    def __init__(self, at_most: int):
        super().__init__(at_most, getsizeof=lambda thing: thing.nbytes)

    def remember(self, things: Mapping[Hashable, object]) -> None:
        """Those that are no larger than all there is room for."""
        self.update({key: thing for key, thing in things.items() if thing.nbytes <= self.maxsize})

    def recall(self, keys: Sequence[Hashable]) -> dict:
        """All of these, or nothing."""
        return {key: self[key] for key in keys} if all(key in self for key in keys) else {}
