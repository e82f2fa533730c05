"""The recording as files: the tree as JSON, and every call on a line of time as a Chrome trace."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .recording import Profile

MICROSECOND = 1000  # ns


def as_json(profile: Profile) -> dict[str, Any]:
    """The trees with their numbers as they are: ns and bytes."""
    trees = profile.tree()
    return {"unit": {"time": "ns", "memory": "bytes"}, "wall": trees[0].total if trees else 0,
            "threads": [asdict(tree) for tree in trees], "calls_not_in_trace": profile.dropped}  # fmt: skip


def as_trace(profile: Profile) -> dict[str, Any]:
    """Chrome's trace format, which Perfetto reads, too: times in us from the start of the profile.

    source  REFERENCES.md#traceformat: complete events "X", counters "C", metadata "M"
    """
    process = os.getpid()
    names = [
        {"ph": "M", "name": "thread_name", "pid": process, "tid": thread.index, "args": {"name": thread.name}}
        for thread in profile.threads
    ]
    calls = [
        {"ph": "X", "name": call.label, "cat": "call", "pid": process, "tid": call.thread,
         "ts": (call.started - profile.began) / MICROSECOND, "dur": call.elapsed / MICROSECOND}
        for call in profile.calls
    ]  # fmt: skip
    levels = [
        {"ph": "C", "name": name, "pid": process, "tid": 0,
         "ts": (reading.time - profile.began) / MICROSECOND, "args": {"bytes": level}}
        for reading in profile.readings for name, level in zip(profile.quantities, reading.levels)
    ]  # fmt: skip
    return {"traceEvents": names + calls + levels, "displayTimeUnit": "ms",
            "otherData": {"calls_not_in_trace": profile.dropped}}  # fmt: skip


def write(path: str | Path, content: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps(content, indent=1), encoding="utf-8", newline="\n")
