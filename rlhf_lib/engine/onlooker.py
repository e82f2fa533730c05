"""The run folder as the processes see it that do not write: they read what the main one has written."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from .run_folder import RunFolder


class Onlooker(RunFolder):
    """Takes everything that is to be written, and leaves it to the main process. What makes rows is still run."""

    def write_json(self, name: str, data: object) -> None:
        pass

    def write_lines(self, name: str, rows: Iterable[dict]) -> None:
        deque(rows, maxlen=0)  # making them is work that all processes share

    def restart_stage(self, stage: str) -> None:
        pass

    def resume_logs(self, size: int) -> None:
        pass

    def flush(self, name: str) -> int:
        return 0

    def cut(self, name: str, size: int) -> None:
        pass

    def log(self, stage: str, steps: Iterable[dict], *, start: int = 0) -> Iterator[dict]:
        yield from steps
