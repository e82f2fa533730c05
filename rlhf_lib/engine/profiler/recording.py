"""The recording: it reads the clock and the memory whenever a frame comes or goes, and keeps the calls for a trace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from . import export, report
from .memory import Meter, make_meters
from .tree import Frame, Levels, Thread, highest

active: Profile | None = None  # whom regions and `profiled` functions report to


class Call(NamedTuple):
    """A finished stay on the clock, ns."""

    label: str
    thread: int
    started: int
    elapsed: int


class Reading(NamedTuple):
    """The bytes in use at a moment, one number a quantity."""

    time: int
    levels: Levels


class Profile:
    """A recording of all threads, between `__enter__` and `__exit__`; only one at a time, and each only once.

    memory       names of `memory.METERS`, or meters of one's own
    synchronize  called before every reading of the clock: torch.cuda.synchronize
    clock        returns ns
    keep         calls, and readings of the memory, kept for the trace; the tree counts what comes after, too
    """

    def __init__(
        self, *, memory: Iterable[str | Meter] = (), synchronize: Callable[[], object] | None = None,
        clock: Callable[[], int] = time.perf_counter_ns, keep: int = 100_000,
    ):  # fmt: skip
        self.meters = make_meters(memory)
        self.quantities = [name for meter in self.meters for name in meter.names]
        self.synchronize, self.clock, self.keep = synchronize, clock, keep
        self.threads: list[Thread] = []
        self.calls: list[Call] = []
        self.readings: list[Reading] = []
        self.dropped = 0
        self.began: int | None = None
        self.ended: int | None = None
        self._mine = threading.local()
        self._lock = threading.Lock()  # of the threads and of the memory

    def __enter__(self) -> Profile:
        global active
        if active is not None or self.began is not None:
            raise RuntimeError("one profile at a time, and each records once: leave the other, or make a new one")
        for meter in self.meters:
            meter.start()
        self.first_levels = self.levels = self._observe()
        self._thread()  # the starting thread comes first
        self.began = self.now()
        active = self
        return self

    def __exit__(self, *_: object) -> None:
        global active
        active = None
        now = self.now()
        self._observe()
        self.ended = now
        for meter in reversed(self.meters):
            meter.stop()

    # ------------------------------------------------------------------------------------------------- as it happens

    def enter(self, label: str, *, called: bool = True) -> Frame:
        """Begin a call, or go on with one that began before the profile; `leave` must get the frame back."""
        frame = Frame(label)
        self._push(frame, called=called)
        return frame

    def leave(self, frame: Frame) -> None:
        """End the call. It has to be the innermost: stretches of time that overlap without nesting make no tree.

        A frame that is on no stack is let go: its generator slept through the end of this profile.
        """
        if frame.thread is None:
            return
        if frame.thread is not self._thread() or frame.thread.frames[-1] is not frame:
            frame.thread.forget(frame)
            raise RuntimeError(
                f"{frame.label!r} ended inside of what began after it, or in another thread: "
                "a generator that yields within a region must be `profiled` itself"
            )
        self._pop(frame.thread)

    def suspend(self, frame: Frame) -> list[Frame]:
        """Take a frame and all above it off the stack: what `resume` puts back."""
        thread, taken = frame.thread, []
        while thread is not None and frame.thread is thread:
            taken.insert(0, self._pop(thread))
        return taken

    def resume(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            self._push(frame, called=False)

    def now(self) -> int:
        """The clock, which stands still when the profile has ended: what other threads have open ends there."""
        if self.ended is not None:
            return self.ended
        if self.synchronize is not None:
            self.synchronize()
        return self.clock()

    def _push(self, frame: Frame, *, called: bool) -> None:
        levels = self._observe()
        self._thread().push(frame, self.now(), levels, called=called)

    def _pop(self, thread: Thread) -> Frame:
        now = self.now()
        frame = thread.pop(now, self._observe())
        if len(self.calls) < self.keep:
            self.calls.append(Call(frame.label, thread.index, frame.started, now - frame.started))
        else:
            self.dropped += 1
        return frame

    def _thread(self) -> Thread:
        try:
            return self._mine.thread
        except AttributeError:
            with self._lock:
                thread = Thread(len(self.threads), threading.current_thread().name, len(self.quantities))
                self.threads.append(thread)
            self._mine.thread = thread
            return thread

    def _observe(self) -> Levels:
        """The levels now. The peaks since the last time go to the innermost frame of each thread: memory is shared."""
        if not self.meters or self.ended is not None:
            return self.levels if self.meters else ()
        with self._lock:
            read = [pair for meter in self.meters for pair in meter.read()]
            self.levels, peaks = [level for level, _ in read], [peak for _, peak in read]
            for thread in self.threads:
                for frame in thread.frames[-1:]:
                    frame.peaks = highest(frame.peaks, peaks)
            if self.threads:
                self.threads[0].root.peaks = highest(self.threads[0].root.peaks, peaks)
            if self.began is not None and len(self.readings) < self.keep:
                self.readings.append(Reading(self.clock(), self.levels))
            return self.levels

    # ------------------------------------------------------------------------------------------------ when it is read

    def tree(self) -> list[report.Entry]:
        """What was recorded so far, one tree a thread; calls in progress count up to now."""
        return report.summarise(self)

    def __str__(self) -> str:
        return report.as_text(self.tree(), dropped=self.dropped)

    def _repr_html_(self) -> str:
        return report.as_html(self.tree(), dropped=self.dropped)

    def save_json(self, path: str | Path) -> None:
        export.write(path, export.as_json(self))

    def save_trace(self, path: str | Path) -> None:
        export.write(path, export.as_trace(self))
