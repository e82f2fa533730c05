"""What a run says of a stage that was cut off: memory ran out, or another process is gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..engine import distributed
from .enough import TRAINED, with_change
from .errors import TrainingError
from .run import Run
from .settings import Settings, value_of

AT_ONCE = {  # what decides how many rows of a stage are in memory together, the likeliest first
    "sft": ("sft.micro_batch_size",),
    "preferences": ("world.sampled_at_once",),
    "reward_model": ("reward_model.micro_batch_size", "ppo.micro_batch_size"),
    "ppo": ("ppo.micro_batch_size", "world.sampled_at_once"),
    "evaluation": ("world.sampled_at_once", "ppo.micro_batch_size"),
}
AGAIN = "engine.gradient_checkpointing"
NO_ERROR_OF_THEIR_OWN = (  # words of the CPU's allocator, of CUDA and of a library on it
    "can't allocate memory", "not enough memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip


@contextmanager
def loss_explained(folder: Path, when: str) -> Iterator[None]:
    """What to do when one of several processes has ended and the others cannot go on."""
    try:
        with distributed.loss_named():
            yield
    except distributed.LostProcessError as error:
        raise TrainingError(
            f"{when}: {error}; another process was killed, or failed and says why above. Nothing that was saved is "
            f"lost: the same command with --resume goes on in {folder}"
        ) from error


@contextmanager
def memory_explained(run: Run, stage: str) -> Iterator[None]:
    """What to lower when a stage runs out of memory, and how to go on with it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        asked = re.search(r"ried to allocate ([\d.]+ \w+)", str(error))
        raise TrainingError(
            f"stage {stage} ran out of {'GPU ' if run.device.type == 'cuda' else ''}memory"
            f"{f' (it tried to allocate {asked[1]})' if asked else ''}: {_what_helps(run.settings, stage)}"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    named = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return named or any(words in str(error) for words in NO_ERROR_OF_THEIR_OWN)


def _what_helps(settings: Settings, stage: str) -> str:
    """Only what can still be lowered, and what a run with these settings would not refuse."""
    ways = [f"lower {key} (it is {now})" for key in AT_ONCE[stage] if (now := value_of(settings, key)) > 1]
    if stage in TRAINED and not value_of(settings, AGAIN) and with_change(settings, f"{AGAIN}=true"):
        ways.append(f"set {AGAIN}=true")
    if not ways:
        return "there is nothing left to lower; choose a smaller world.model, or another machine"
    return f"{' or '.join(ways)}; with that and --resume the same command goes on from what was saved"
