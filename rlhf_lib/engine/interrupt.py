"""Ctrl-C that ends a loop between two steps, where everything can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stop:
    """Whether the user asked to stop."""

    requested: bool = False


@contextmanager
def graceful_stop() -> Iterator[Stop]:
    """The first Ctrl-C only asks; the loop looks when it can. A second one interrupts at once, as always.

    Outside the main thread (a widget's, say) signals cannot be caught: there, ask by setting `requested`.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    usual = signal.getsignal(signal.SIGINT)

    def ask(*_: object) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, usual)
