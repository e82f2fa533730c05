"""The folder of a run: what each file is called, and how rows and results get into it."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class RunFolder:
    """Paths and writers. Metrics hold neither time nor memory, so that equal runs have equal files."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write_json(self, name: str, data: object) -> None:
        """Atomically: the old file stays until the new one is complete."""
        target = self / name
        draft = target.with_name(f".{target.name}.draft")
        draft.write_text(json.dumps(strict(data), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(draft, target)

    def read_json(self, name: str, default: dict | None = None) -> dict:
        """The content of a file, or `default` where there is no such file."""
        if default is not None and not (self / name).exists():
            return default
        return json.loads((self / name).read_text(encoding="utf-8"))

    def write_lines(self, name: str, rows: Iterable[dict]) -> None:
        """One JSON object a line, atomically."""
        target = self / name
        draft = target.with_name(f".{target.name}.draft")
        draft.write_text("".join(json.dumps(strict(row), allow_nan=False) + "\n" for row in rows), encoding="utf-8")
        os.replace(draft, target)

    def restart_stage(self, stage: str) -> None:
        """Forget what an earlier run of this stage logged, and a last line that a kill cut short."""
        for name in ("metrics.jsonl", "timing.jsonl"):
            if (self / name).exists():
                self._drop_broken_line(name)
                self.write_lines(name, [row for row in read_lines(self / name) if row["stage"] != stage])

    def flush(self, name: str) -> int:
        """Make sure that a file is on the disk, not only on its way there; returns its size in bytes."""
        with open(self / name, "rb+") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def cut(self, name: str, size: int) -> None:
        """Forget what was appended to a file after it had `size` bytes."""
        if (self / name).stat().st_size < size:
            raise ValueError(f"{self / name} is shorter than the {size} bytes it had: lines of it are lost")
        os.truncate(self / name, size)

    def _drop_broken_line(self, name: str) -> None:
        content = (self / name).read_bytes()
        self.cut(name, content.rfind(b"\n") + 1)

    def log(self, stage: str, steps: Iterable[dict], *, start: int = 0) -> Iterator[dict]:
        """Pass the steps through, counted from `start`; append each to metrics.jsonl and its time to timing.jsonl."""
        started = time.perf_counter()
        with (
            open(self / "metrics.jsonl", "a", encoding="utf-8") as metrics,
            open(self / "timing.jsonl", "a", encoding="utf-8") as timing,
        ):
            for number, step in enumerate(steps, start):
                print(json.dumps(strict({"stage": stage, **step}), allow_nan=False), file=metrics, flush=True)
                now = time.perf_counter()
                spent = {"stage": stage, "step": number, "seconds": now - started, "peak_mib": peak_memory_mib()}
                print(json.dumps(spent), file=timing, flush=True)
                started = now
                yield step


def strict(data: object) -> object:
    """The data with null for NaN and infinity, for which JSON has no words."""
    if isinstance(data, dict):
        return {name: strict(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [strict(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def read_lines(path: Path) -> list[dict]:
    """The rows of a JSON-lines file; a broken row is named by file and line."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
    return rows


def peak_memory_mib() -> float:
    """The most memory this process has held (resident set), in MiB."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    status = Path("/proc/self/status")  # Linux; getrusage there starts from the peak of whoever started this process
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8"))):
        return int(found[1]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@contextmanager
def stopwatch(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time of the block, in seconds, under `name`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
