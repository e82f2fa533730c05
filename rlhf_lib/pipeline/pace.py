"""How often a checkpoint is worth what it costs: on a GPU one may be tens of gigabytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

WORK_FOR_SAVING = 20  # of work for each second that the last checkpoint took: saving costs at most about 5 %
LONGEST = 3600.0  # seconds that its price may put off the next one: a laptop that slept while it saved took hours


class Pace:
    """When the next checkpoint is due, by a clock that nobody sets.

    seconds  of work that a kill may cost as long as saving is cheap; 0: every step is saved, whatever that costs
    """

    def __init__(self, seconds: float):
        self.seconds, self.price = seconds, 0.0
        self._since = time.monotonic()

    def due(self) -> bool:
        wait = max(self.seconds, min(self.price, LONGEST)) if self.seconds else 0.0
        return time.monotonic() - self._since >= wait

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around what saves: from then on the time counts anew."""
        started = time.perf_counter()
        yield
        self.price = WORK_FOR_SAVING * (time.perf_counter() - started)
        self._since = time.monotonic()
