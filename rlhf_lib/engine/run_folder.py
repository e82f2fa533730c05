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

from .files import DamagedError, flush, naming

LOGS = ("metrics.jsonl", "timing.jsonl")


class RunFolder:
    """Paths and writers. Metrics hold neither time nor memory, so that equal runs have equal files."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write_json(self, name: str, data: object) -> None:
        """Atomically: the old file stays until the new one is complete."""
        self._write(name, json.dumps(strict(data), indent=2, allow_nan=False) + "\n")

    def read_json(self, name: str, default: dict | None = None) -> dict:
        """The content of a file, or `default` where there is no such file."""
        if default is not None and not (self / name).exists():
            return default
        try:
            return _object((self / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise DamagedError(f"{self / name} is damaged ({error}): restore it, or choose another folder") from None

    def write_lines(self, name: str, rows: Iterable[dict]) -> None:
        """One JSON object a line, atomically."""
        self._write(name, "".join(json.dumps(strict(row), allow_nan=False) + "\n" for row in rows))

    def _write(self, name: str, text: str) -> None:
        target = self / name
        draft = target.with_name(f".{target.name}.draft")
        with naming(target):
            draft.write_text(text, encoding="utf-8")
            flush(draft)
            os.replace(draft, target)

    def check_logs(self) -> None:
        """raises DamagedError if a line of the logs is broken; a last one that a kill cut short does not count."""
        for path in map(self.__truediv__, LOGS):
            if path.exists():
                content = path.read_bytes()
                _rows(path, content[: content.rfind(b"\n") + 1], needs="stage")

    def restart_stage(self, stage: str) -> None:
        """Forget what an earlier run of this stage logged, and a last line that a kill cut short."""
        for name in LOGS:
            if (self / name).exists():
                self._drop_broken_line(name)
                self.write_lines(name, [row for row in read_lines(self / name) if row["stage"] != stage])

    def resume_logs(self, size: int) -> None:
        """Go back to metrics.jsonl as it was at `size` bytes; of the times, drop only a last line that is cut short."""
        self.cut("metrics.jsonl", size)
        if (self / "timing.jsonl").exists():
            self._drop_broken_line("timing.jsonl")

    def flush(self, name: str) -> int:
        """Make sure that a file is on the disk, not only on its way there; returns its size in bytes."""
        flush(self / name)
        return (self / name).stat().st_size

    def cut(self, name: str, size: int) -> None:
        """Forget what was appended to a file after it had `size` bytes.

        raises  DamagedError if it is shorter than that
        """
        found = (self / name).stat().st_size if (self / name).exists() else 0
        if found < size:
            raise DamagedError(
                f"{self / name} is shorter than it was ({found} of {size} bytes): lines of it are lost; restore it, or "
                "choose another folder"
            )
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
                now = time.perf_counter()
                spent = {"stage": stage, "step": number, "seconds": now - started, "peak_mib": peak_memory_mib()}
                spent |= peak_of_gpu()
                for file, row in ((metrics, {"stage": stage, **step}), (timing, spent)):
                    with naming(file.name):
                        print(json.dumps(strict(row), allow_nan=False), file=file, flush=True)
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
    """The rows of a JSON-lines file.

    raises  DamagedError naming file and line if a row is broken
    """
    return _rows(path, path.read_bytes())


def _rows(path: Path, content: bytes, needs: str | None = None) -> list[dict]:
    rows = []
    lines = content.split(b"\n")  # and nowhere else: a string may hold other line separators
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, 1):
        try:
            rows.append(_object(line.decode("utf-8"), needs))
        except ValueError as error:
            raise DamagedError(f"{path}, line {number}: {error}; mend that line, or make the file again") from None
    return rows


def _object(text: str, needs: str | None = None) -> dict:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    if needs is not None and needs not in data:
        raise ValueError(f"it has no {needs!r}")
    return data


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


def peak_of_gpu() -> dict[str, float]:
    """`peak_gpu_mib`, the most that this process's tensors have held of its GPU, in MiB; {} where it uses none."""
    torch = sys.modules.get("torch")  # who has not imported it has used none
    return {"peak_gpu_mib": torch.cuda.max_memory_allocated() / 2**20} if torch and torch.cuda.is_initialized() else {}


@contextmanager
def stopwatch(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time of the block, in seconds, under `name`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
