"""What a run leaves behind when a loss or a gradient is not finite, and how to look at it.

    python -m rlhf_lib.engine.dump runs/mine/dump                      a table of what is not finite, and where
    dump = rlhf_lib.engine.dump.read("runs/mine/dump")                 the same to work with: dump.tensors["advantages"]

A dump is a folder: `tensors.safetensors` holds the micro-batch (tokens, masks, targets, what the models made of them,
and the terms of the loss), `dump.json` the facts: stage, steps done, settings, parts, and one line about each trained
weight and its gradient. The weights are those of before the failing optimiser step. They are not in the dump; the last
checkpoint, which the facts name, holds the latest that were saved. Of several processes the first leaves `dump`, the
second `dump-1` and so on, each that found something.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from . import distributed
from .files import DamagedError, brief, naming
from .optimiser import NonFiniteError
from .sharding import own_part

TENSORS, FACTS = "tensors.safetensors", "dump.json"


@dataclass(frozen=True)
class Dump:
    """What was read: `facts` is the content of dump.json."""

    facts: dict
    tensors: dict[str, Tensor]

    def not_finite(self) -> dict[str, str]:
        """How many numbers of which tensor, weight or gradient are NaN or infinite; those that are fine are left out.

        A weight or gradient so large that its norm overflows is named as well.
        """
        found = {name: _count(self.tensors[name]) for name in _not_finite(self.tensors)}
        for kind in ("weights", "gradients"):
            of_kind = self.facts[kind].items()
            found |= {f"{kind}: {name}": about["not_finite"] for name, about in of_kind if about["not_finite"]}
        return found

    def __str__(self) -> str:
        facts = self.facts
        rows = [f"stage {facts['stage']}, after step {facts['steps_done']}: {facts['error']}", "", "not finite:"]
        rows += [f"  {name:<48} {count}" for name, count in self.not_finite().items()]
        rows += ["", "tensors of the micro-batch:"]
        rows += [f"  {name:<24} {_describe(tensor)}" for name, tensor in self.tensors.items()]
        return "\n".join([*rows, "", f"weights: those before this optimiser step; checkpoint: {facts['checkpoint']}"])


def write(folder: Path, error: NonFiniteError, models: Mapping[str, nn.Module], facts: dict) -> None:
    """Write the dump in one piece; one that is there already gives way."""
    from safetensors.torch import save_file

    draft = folder.with_name(f".{folder.name}.draft")
    weights = _weights(models)
    gradients = {name: error.gradients[weight] for name, weight in weights.items() if weight in error.gradients}
    about = {"weights": _table(weights), "gradients": _table(gradients)}
    with naming(folder):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file({name: tensor.detach().clone() for name, tensor in error.evidence.items()}, draft / TENSORS)
        (draft / FACTS).write_text(json.dumps({**facts, "error": str(error), **about}, indent=2), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(draft, folder)


def read(folder: str | Path) -> Dump:
    """The dump in a folder.

    raises  DamagedError naming the folder if there is none, or not a whole one
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        return Dump(json.loads((folder / FACTS).read_text(encoding="utf-8")), load_file(folder / TENSORS))
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedError(f"{folder} holds no dump of a run, or not a whole one ({brief(error)})") from None


def culprits(error: NonFiniteError, models: Mapping[str, nn.Module]) -> list[str]:
    """Names of what is not finite: terms and tensors of the loss, or else gradients, or else weights."""
    terms, weights = _not_finite(error.evidence), _weights(models)
    gradients = {name: error.gradients[weight] for name, weight in weights.items() if weight in error.gradients}
    overflowing = [name for name, gradient in gradients.items() if not torch.isfinite(gradient.norm())]
    return terms or [f"the gradient of {name}" for name in overflowing] or _not_finite(weights)


def refuse_non_finite(models: Mapping[str, nn.Module]) -> None:
    """Even a finite gradient can throw weights out of range. Ask before they are saved in the place of good ones.

    raises  NonFiniteError in all processes, whichever of them holds what is not finite
    """
    if distributed.any_process(bool(_not_finite(_weights(models)))):
        raise NonFiniteError("the weights are not finite after this step", {}, {})


def _weights(models: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {f"{name}/{key}": weight for name, model in models.items() for key, weight in model.named_parameters()}


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in tensors.items() if not torch.isfinite(own_part(tensor)).all()]


def _table(tensors: Mapping[str, Tensor]) -> dict[str, dict]:
    """One line each, in words that JSON has: how many numbers are not finite, how large the rest are."""
    return {
        name: {
            "shape": list(tensor.shape),
            "not_finite": "" if torch.isfinite(tensor.norm()) else _count(tensor),
            "largest": float(torch.where(torch.isfinite(tensor), tensor, 0).abs().max()),
        }
        for name, tensor in ((name, own_part(tensor).detach()) for name, tensor in tensors.items())
    }


def _count(tensor: Tensor) -> str:
    nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    if not nan + infinite:
        return "its norm overflows"
    return f"{nan} NaN, {infinite} infinite of {tensor.numel()}"


def _describe(tensor: Tensor) -> str:
    shape = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    if not tensor.is_floating_point() or not (finite := tensor[torch.isfinite(tensor)]).numel():
        return shape
    return f"{shape}  {float(finite.min()):.4g} to {float(finite.max()):.4g} where finite"


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description="Show what a run left behind that met a NaN or an infinity.")
    parser.add_argument("folder", type=Path, help="the dump folder that the run's last message named")
    try:
        print(read(parser.parse_args().folder))
    except DamagedError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
