"""Metrics as TensorBoard scalars, where TensorBoard is installed: `tensorboard --logdir runs/mine/tensorboard`.

The events are a copy of metrics.jsonl and nothing else. When a stage begins or is resumed, its events are written anew
from the rows that metrics.jsonl keeps, so none is there twice and none is from after the checkpoint. (A TensorBoard
that was open meanwhile still shows what it read before; start it again.) They carry the time of writing, so they are
never part of a comparison of runs.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from .files import brief, naming


def mirrored(folder: Path, steps: Iterable[dict], *, before: Iterable[dict]) -> Iterator[dict]:
    """Pass the steps through; where TensorBoard is installed, write the rows `before` and each step into `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    if not _is_usable():
        yield from steps
        return
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True)
    path = folder / "events.out.tfevents.rlhf"
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        writer.write(_event(file_version="brain.Event:2"))
        rows = list(before)
        for number, row in enumerate(rows, 1):
            writer.write(_scalars(number, row))
        for number, step in enumerate(steps, len(rows) + 1):
            with naming(path):
                writer.write(_scalars(number, step))
                file.flush()
            yield step


def _is_usable() -> bool:
    """The record writer alone is used: torch's SummaryWriter would import TensorFlow wherever that is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return False
    try:
        import tensorboard.compat.proto.event_pb2
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except Exception as error:  # protobuf of another version, and whatever else breaks an installation
        print(f"TensorBoard is installed but does not work ({brief(error)}): no events are written", file=sys.stderr)
        return False
    return True


def _scalars(step: int, row: dict) -> bytes:
    from tensorboard.compat.proto.summary_pb2 import Summary

    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and math.isfinite(value)}
    values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
    return _event(step=step, summary=Summary(value=values))


def _event(**content: object) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=time.time(), **content).SerializeToString()
