"""Checkpoints: everything that a training loop cannot recompute, written so that a kill at any moment loses nothing.

A checkpoint is a folder `step-000120` with the tensors of the models and of the optimiser (safetensors, no pickle) and
a JSON file that names the step, the tensors' hash and whatever else the caller needs. It appears under its name only
when it is complete; the one before it is kept as well.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from . import distributed, sharding, zero
from .files import DamagedError, brief, digest, flush, naming

FORMAT = 1
KEPT = 2
TENSORS, FACTS = "tensors.safetensors", "checkpoint.json"
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # what AdamW knows of each weight


class CheckpointError(DamagedError):
    """A checkpoint that is incomplete, damaged, or of another version; the message names it."""


class OtherVersionError(CheckpointError):
    """A checkpoint that is sound, but not one that this version of the course, or this model, can go on from."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found sound."""

    path: Path
    step: int
    facts: dict
    tensors: dict[str, Tensor]

    def restore(self, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """Put weights and optimiser state back, bit for bit.

        raises  OtherVersionError, before anything is changed, if they are not those of these models
        """
        self._refuse_misfits(models, optimizer)
        with torch.no_grad():
            for name, model in models.items():
                for key, weight in _learning(model):
                    weight.copy_(sharding.shared_out_like(self.tensors[f"{name}/{key}"], weight))
        trained, state = _trained(optimizer), {}
        for key, tensor in self.tensors.items():
            owner, *path = key.split("/")
            if owner == "optimizer":
                place, what = int(path[0]), path[1]
                moment = tensor if what == "step" else sharding.shared_out_like(tensor, trained[place])
                state.setdefault(place, {})[what] = moment
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _refuse_misfits(self, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
        weights = {f"{name}/{key}": weight.shape for name, m in models.items() for key, weight in _learning(m)}
        trained = _trained(optimizer)
        known = {str(place) for name in self.tensors if name.startswith("optimizer/") for place in [name.split("/")[1]]}
        moments = {
            f"optimizer/{place}/{key}": torch.Size() if key == "step" else weight.shape
            for place, weight in enumerate(trained)
            for key in MOMENTS
            if str(place) in known  # a weight that no loss has reached yet has none
        }
        wanted, found = {**weights, **moments}, {name: tensor.shape for name, tensor in self.tensors.items()}
        if misfits := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
            raise OtherVersionError(
                f"checkpoint {self.path} does not fit these models and their optimiser (first at {misfits[0]}, "
                f"{len(misfits)} in all): it was made by another version"
            )


def save(
    folder: Path, step: int, models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, facts: dict
) -> None:
    """Write `folder/step-...` atomically, then forget all but the latest two. All ask, the main process writes."""
    from safetensors.torch import save_file

    tensors = sharding.gathered(_tensors(models, optimizer))
    if not distributed.is_main():
        return
    target, draft = folder / f"step-{step:06d}", folder / ".draft"
    with naming(target):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        save_file(tensors, draft / TENSORS)
        written = {"format": FORMAT, "step": step, "sha256": digest(draft / TENSORS), "facts": facts}
        (draft / FACTS).write_text(json.dumps(written), encoding="utf-8")
        for path in (draft / TENSORS, draft / FACTS, draft):
            flush(path)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(draft, target)
        flush(folder)
    for old in _steps(folder)[:-KEPT]:
        shutil.rmtree(old)


def latest(folder: Path) -> Checkpoint | None:
    """The newest sound checkpoint, or None if there is none at all; damaged ones are named on stderr and passed over.

    raises  OtherVersionError if the newest sound one is of another version
            CheckpointError   if all are damaged: whoever calls must not take that for "nothing was done yet"
    """
    steps = _steps(folder)
    for path in reversed(steps):
        try:
            return read(path)
        except OtherVersionError:
            raise
        except CheckpointError as error:
            print(
                f"{error}; {'going back to the one before it' if path != steps[0] else 'none is left'}", file=sys.stderr
            )
    if steps:
        raise CheckpointError(f"none of the {len(steps)} checkpoints in {folder} can be read")
    return None


def read(path: Path) -> Checkpoint:
    """raises CheckpointError if anything about it is wrong."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        written = json.loads((path / FACTS).read_text(encoding="utf-8"))
        if written["format"] != FORMAT:
            raise OtherVersionError(
                f"checkpoint {path} has format {written['format']}, this version of the course reads {FORMAT}"
            )
        if digest(path / TENSORS) != written["sha256"]:
            raise CheckpointError(f"checkpoint {path} is damaged: its tensors are not the ones that were written")
        return Checkpoint(path, written["step"], written["facts"], load_file(path / TENSORS))
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({brief(error)})") from None


def _tensors(models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Names to tensors; a weight that a model uses twice (tied embeddings) is stored once."""
    weights = {f"{name}/{key}": weight for name, m in models.items() for key, weight in _learning(m)}
    states = zero.moments(optimizer) if zero.is_in_parts(optimizer) else optimizer.state_dict()["state"]
    moments = {f"optimizer/{place}/{key}": value for place, state in states.items() for key, value in state.items()}
    return {name: tensor.contiguous() for name, tensor in {**weights, **moments}.items()}


def _trained(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _learning(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What training changes, by name; the rest is in the folder that the model came from."""
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def steps_done(folder: Path) -> int:
    """What the newest checkpoint is called after, 0 where there is none; it is not read."""
    return max((int(path.name.removeprefix("step-")) for path in _steps(folder)), default=0)


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
