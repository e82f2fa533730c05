"""The tree that calls are added up in, and the stack of those in progress; whoever calls brings the time and levels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Levels = Sequence[int]  # bytes in use, one number a quantity


class Node:
    """What all calls of one name under one parent add up to. Times in ns, memory in bytes."""

    def __init__(self, label: str, quantities: int):
        self.label = label
        self.calls = 0
        self.slices = 0  # times on the clock: calls, and a generator's further advances
        self.total = 0
        self.self_time = 0
        self.peaks = [0] * quantities  # the highest level while it was open
        self.growth = [0] * quantities  # the level at its exits less that at its entries
        self.children: dict[str, Node] = {}

    def child(self, label: str) -> Node:
        if label not in self.children:
            self.children[label] = Node(label, len(self.peaks))
        return self.children[label]

    def walk(self) -> Iterator[Node]:
        yield self
        for child in list(self.children.values()):
            yield from child.walk()


class Frame:
    """One call in progress. `thread` is None while it is on no stack: before, after, and at a generator's `yield`."""

    __slots__ = ("label", "levels", "node", "outermost", "peaks", "started", "thread")

    def __init__(self, label: str):
        self.label = label
        self.thread: Thread | None = None


class Thread:
    """The tree of one thread and its stack, the innermost frame last."""

    def __init__(self, index: int, name: str, quantities: int):
        self.index, self.name = index, name
        self.root = Node(name, quantities)
        self.frames: list[Frame] = []
        self.open: dict[str, Node] = {}  # by label: where a name that recurs goes on
        self.since = 0  # when the time of the top frame was last credited, ns

    def push(self, frame: Frame, now: int, levels: Levels, *, called: bool) -> None:
        self.credit(now)
        above = self.frames[-1].node if self.frames else self.root
        frame.outermost = frame.label not in self.open
        if frame.outermost:
            self.open[frame.label] = above.child(frame.label)
        frame.node = self.open[frame.label]
        frame.node.calls += called
        frame.node.slices += 1
        frame.thread, frame.started, frame.levels, frame.peaks = self, now, levels, levels
        self.frames.append(frame)

    def pop(self, now: int, levels: Levels) -> Frame:
        self.credit(now)
        frame = self.frames.pop()
        frame.thread = None
        node = frame.node
        node.peaks = highest(node.peaks, frame.peaks)
        if frame.outermost:
            del self.open[frame.label]
            node.total += now - frame.started
            node.growth = [grown + after - before for grown, after, before in zip(node.growth, levels, frame.levels)]
        for above in self.frames[-1:]:
            above.peaks = highest(above.peaks, frame.peaks)
        return frame

    def credit(self, now: int) -> None:
        """The time since the last change of the stack belongs to the frame on top: to one, and only once."""
        if self.frames:
            self.frames[-1].node.self_time += now - self.since
        self.since = now

    def forget(self, frame: Frame) -> None:
        """Drop a frame from the middle of the stack."""
        self.frames.remove(frame)
        frame.thread = None
        if frame.outermost:
            del self.open[frame.label]


def highest(some: Levels, others: Levels) -> list[int]:
    return [max(pair) for pair in zip(some, others)]
