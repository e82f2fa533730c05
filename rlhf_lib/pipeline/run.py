"""What every stage of a run needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..algorithms.parts import Parts
from ..engine.run_folder import RunFolder
from ..worlds.tiny_tldr.world import TinyTLDR
from .errors import MissingInputError
from .settings import Settings

Progress = Callable[[str, Iterator[dict], int], Iterator[dict]]  # stage, its steps, how many


@dataclass(frozen=True)
class Run:
    """Settings, the world, where to write, where earlier stages' output may lie, the parts, how to show progress."""

    settings: Settings
    world: TinyTLDR
    out: RunFolder
    source: RunFolder
    parts: Parts
    progress: Progress

    def input(self, name: str) -> Path:
        """A folder or file of an earlier stage: from this run if it is there, else from the source run."""
        for folder in (self.out, self.source):
            if (folder / name).exists():
                return folder / name
        raise MissingInputError(
            f"{self.out / name} does not exist: run the stage that makes it first, or name a finished run with --from"
        )

    def show(self, stage: str, steps: Iterator[dict], total: int) -> Iterator[dict]:
        """Log the steps of a stage and show their progress."""
        self.out.restart_stage(stage)
        return self.progress(stage, self.out.log(stage, steps), total)

    def save(self, name: str, model: nn.Module) -> None:
        """A folder that plain `from_pretrained` loads, tokenizer included."""
        model.save_pretrained(self.out / name)
        self.world.tokenizer.save_pretrained(self.out / name)
