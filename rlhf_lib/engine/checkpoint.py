"""Checkpoints: everything that a training loop cannot recompute, written so that a kill at any moment loses nothing.

A checkpoint is a folder `step-000120` with the tensors of the models and of the optimiser (safetensors, no pickle) and
a JSON file that names the step, the tensors' hash and whatever else the caller needs. It appears under its name only
when it is complete; the one before it is kept as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

FORMAT = 1
KEPT = 2
TENSORS, FACTS = "tensors.safetensors", "checkpoint.json"


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, damaged, or of another format; the message names it."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found sound."""

    step: int
    facts: dict
    tensors: dict[str, Tensor]

    def restore(self, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """Put weights and optimiser state back, bit for bit."""
        with torch.no_grad():
            for name, model in models.items():
                for key, weight in model.named_parameters():
                    weight.copy_(self.tensors[f"{name}/{key}"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self.tensors.items():
            owner, *path = key.split("/")
            if owner == "optimizer":
                state.setdefault(int(path[0]), {})[path[1]] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def save(
    folder: Path, step: int, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, facts: dict
) -> None:
    """Write `folder/step-...` atomically, then forget all but the latest two."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / ".draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    save_file(_tensors(models, optimizer), draft / TENSORS)
    written = {"format": FORMAT, "step": step, "sha256": _digest(draft / TENSORS), "facts": facts}
    (draft / FACTS).write_text(json.dumps(written), encoding="utf-8")
    for path in (draft / TENSORS, draft / FACTS, draft):
        _flush(path)
    target = folder / f"step-{step:06d}"
    shutil.rmtree(target, ignore_errors=True)
    os.rename(draft, target)
    _flush(folder)
    for old in _steps(folder)[:-KEPT]:
        shutil.rmtree(old)


def latest(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint, or None; damaged ones are named on stderr and passed over."""
    for path in reversed(_steps(folder)):
        try:
            return read(path)
        except CheckpointError as error:
            print(f"{error}; going back to the one before it", file=sys.stderr)
    return None


def read(path: Path) -> Checkpoint:
    """raises CheckpointError if anything about it is wrong."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        written = json.loads((path / FACTS).read_text(encoding="utf-8"))
        if written["format"] != FORMAT:
            raise CheckpointError(f"checkpoint {path} has format {written['format']}, this version reads {FORMAT}")
        if _digest(path / TENSORS) != written["sha256"]:
            raise CheckpointError(f"checkpoint {path} is damaged: its tensors are not the ones that were written")
        return Checkpoint(written["step"], written["facts"], load_file(path / TENSORS))
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({type(error).__name__}: {error})") from None


def _tensors(models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Names to tensors; a weight that a model uses twice (tied embeddings) is stored once."""
    weights = {f"{name}/{key}": weight.detach() for name, m in models.items() for key, weight in m.named_parameters()}
    states = optimizer.state_dict()["state"]
    moments = {f"optimizer/{place}/{key}": value for place, state in states.items() for key, value in state.items()}
    return {name: tensor.contiguous() for name, tensor in {**weights, **moments}.items()}


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _flush(path: Path) -> None:
    """Make sure that it is on the disk, not only on its way there. Windows cannot flush folders, and need not."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
