"""The tree as a person reads it: numbers of one moment, as plain text and as an HTML table."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .recording import Profile
    from .tree import Node, Thread


@dataclass(frozen=True)
class Memory:
    """Bytes of one quantity. Growth is what was in use at the exits, less at the entries."""

    peak: int
    growth: int


@dataclass(frozen=True)
class Entry:
    """One name under one parent. Times in ns; the share is that of the total in the profile's whole time."""

    label: str
    calls: int
    slices: int  # times on the clock: more than calls for a generator
    total: int
    self_time: int
    share: float
    memory: dict[str, Memory]
    children: tuple[Entry, ...]  # the longest first

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Entry]]:
        """The entry and all below it, each with its depth."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)

    def find(self, label: str) -> list[Entry]:
        """All entries of a name, wherever it was called from."""
        return [entry for _, entry in self.walk() if entry.label == label]


# --------------------------------------------------------------------------------------------------------- the numbers


def summarise(profile: Profile) -> list[Entry]:
    """One tree a thread, that of the thread with the profile first; calls in progress count up to now."""
    if profile.began is None:
        return []
    now = profile.now()
    first, *others = (_Summary(profile, thread, now) for thread in list(profile.threads))
    return [first.whole(), *(other.regions() for other in others if other.thread.root.children)]


class _Summary:
    """Reads one thread's tree."""

    def __init__(self, profile: Profile, thread: Thread, now: int):
        self.profile, self.thread = profile, thread
        self.wall = now - profile.began
        frames = list(thread.frames)
        self.open = {id(frame.node): now - frame.started for frame in frames if frame.outermost}
        self.on_top = {id(frame.node): max(now - thread.since, 0) for frame in frames[-1:]}

    def whole(self) -> Entry:
        """The thread with the profile: all the time there was, and the memory of the process."""
        children, root = self._below(self.thread.root), self.thread.root
        growth = [last - first for last, first in zip(self.profile.levels, self.profile.first_levels)]
        memory = self._memory(root.peaks, growth)
        return Entry("all", 1, 1, self.wall, self.wall - sum(c.total for c in children), 1.0, memory, children)

    def regions(self) -> Entry:
        """Another thread: only what was recorded of it."""
        children = self._below(self.thread.root)
        total = sum(child.total for child in children)
        return Entry(f"thread {self.thread.name}", 1, 1, total, 0, self._share(total), {}, children)

    def _below(self, node: Node) -> tuple[Entry, ...]:
        entries = [self._entry(child) for child in list(node.children.values())]
        return tuple(sorted(entries, key=lambda entry: -entry.total))

    def _entry(self, node: Node) -> Entry:
        total = node.total + self.open.get(id(node), 0)
        self_time = node.self_time + self.on_top.get(id(node), 0)
        memory = self._memory(node.peaks, node.growth)
        return Entry(
            node.label, node.calls, node.slices, total, self_time, self._share(total), memory, self._below(node)
        )

    def _memory(self, peaks: list[int], growth: list[int]) -> dict[str, Memory]:
        return {name: Memory(*pair) for name, *pair in zip(self.profile.quantities, peaks, growth)}

    def _share(self, total: int) -> float:
        return total / self.wall if self.wall else 0.0


# ----------------------------------------------------------------------------------------------------------- the pages

NUMBERS = ["calls", "total", "self", "share"]


def as_text(trees: list[Entry], *, dropped: int = 0) -> str:
    """A table of plain characters."""
    if not trees:
        return "nothing recorded yet"
    quantities = list(trees[0].memory)
    entries = [pair for tree in trees for pair in tree.walk()]
    rows = [("  " * depth + entry.label, *_cells(entry, quantities)) for depth, entry in entries]
    table = [("", *_titles(quantities)), *rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table]
    return "\n".join(lines + _footer(dropped))


def as_html(trees: list[Entry], *, dropped: int = 0) -> str:
    """A table for a notebook; names are escaped, since a region may be called anything."""
    if not trees:
        return "<p>nothing recorded yet</p>"
    quantities = list(trees[0].memory)
    head = "".join(f'<th scope="col">{title}</th>' for title in ["call", *_titles(quantities)])
    body = "".join(_html_row(depth, entry, quantities) for tree in trees for depth, entry in tree.walk())
    foot = "".join(f"<p>{html.escape(line)}</p>" for line in _footer(dropped))
    caption = "<caption>Time and memory by call</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{foot}"


def _html_row(depth: int, entry: Entry, quantities: list[str]) -> str:
    style = f"text-align: left; padding-left: {0.5 + 1.5 * depth}em"
    cells = "".join(f"<td>{cell}</td>" for cell in _cells(entry, quantities))
    return f'<tr><th scope="row" style="{style}">{html.escape(entry.label)}</th>{cells}</tr>'


def _titles(quantities: list[str]) -> list[str]:
    return [*NUMBERS, *(f"{name} {what}" for name in quantities for what in ("peak", "growth"))]


def _cells(entry: Entry, quantities: list[str]) -> list[str]:
    times = [str(entry.calls), in_time(entry.total), in_time(entry.self_time), f"{entry.share:.1%}"]
    blank = ("", "")  # nothing is known of another thread as a whole
    pairs = [_pair(entry.memory[name]) if name in entry.memory else blank for name in quantities]
    return times + [cell for pair in pairs for cell in pair]


def _pair(memory: Memory) -> tuple[str, str]:
    return in_bytes(memory.peak), in_bytes(memory.growth, sign="+")


def _footer(dropped: int) -> list[str]:
    return [f"the trace lacks the last {dropped} calls; this table has them"] if dropped else []


def in_time(ns: int) -> str:
    """Three digits or more, in the unit that fits."""
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if abs(ns) >= size:
            return f"{ns / size:.3g} {unit}" if abs(ns) < 1000 * size else f"{ns / size:.0f} {unit}"
    return f"{ns / 1e3:.3g} us"


def in_bytes(count: int, *, sign: str = "") -> str:
    """In binary units, as memory comes."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= size:
            return f"{count / size:{sign}.2f} {unit}"
    return f"{count:{sign}d} B"
