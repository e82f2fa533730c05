"""The parts, in the order in which they run: what each measures, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .work import LLAMA_1B, PYTHIA_410M, SMOLLM2, Work, small

T4 = dict(memory_gib=15, precision="float16")


@dataclass(frozen=True)
class Part:
    """Something that is measured in a process of its own."""

    kind: str  # what is done: one of KINDS
    seconds: int  # guessed for an H100, for the bar; a part that takes PATIENCE times as long is stopped
    work: Work | None = None


PATIENCE = 4
BESIDE_TRL = dict(micro_batch=4)  # TRL makes the logits of all tokens, so that more rows of a 1B model do not fit

PARTS = {
    "the tiny world, a whole run": Part("whole run", 150),
    "SmolLM2-135M's shape": Part("updates", 60, Work(shape=SMOLLM2)),
    "1B Llama, batch 64": Part("updates", 75, Work(shape=LLAMA_1B)),
    "1B Llama, batch 512": Part("updates", 240, Work(shape=LLAMA_1B, batch=512, updates=2)),
    "writing, SmolLM2-135M's shape": Part("decoding", 90, Work(shape=SMOLLM2)),
    "writing, 1B Llama": Part("decoding", 90, Work(shape=LLAMA_1B)),
    "beside TRL, SmolLM2-135M's shape": Part("updates", 75, Work(shape=SMOLLM2, **BESIDE_TRL)),
    "TRL 1.12.0, SmolLM2-135M's shape": Part("TRL", 100, Work(shape=SMOLLM2, **BESIDE_TRL)),
    "beside TRL, 1B Llama": Part("updates", 90, Work(shape=LLAMA_1B, **BESIDE_TRL)),
    "TRL 1.12.0, 1B Llama": Part("TRL", 120, Work(shape=LLAMA_1B, **BESIDE_TRL)),
    "as on a T4, SmolLM2-135M's shape": Part("updates", 75, Work(shape=SMOLLM2, **T4)),
    "as on a T4, 1B Llama, all layers": Part("updates", 15, Work(shape=LLAMA_1B, **T4)),
    "as on a T4, 1B Llama, top 2 layers": Part("updates", 75, Work(shape=LLAMA_1B, trainable_layers=2, **T4)),
    "as on a T4, Pythia-410M, top 8 layers": Part("updates", 60, Work(shape=PYTHIA_410M, trainable_layers=8, **T4)),
}


def run(name: str, *, smaller: bool) -> dict:
    """What a part measures; with `smaller` on small shapes, for a CPU."""
    part = PARTS[name]
    work = small(part.work) if smaller and part.work else part.work
    return KINDS[part.kind](work, smaller)


def _whole_run(_, smaller: bool) -> dict:
    from . import whole_run

    return whole_run.measure(smaller)


def _updates(work: Work, _) -> dict:
    from . import updates

    return updates.measure(work)


def _decoding(work: Work, _) -> dict:
    from . import decoding

    return decoding.measure(work)


def _trl(work: Work, _) -> dict:
    from . import peer

    return peer.measure(work)


KINDS: dict[str, Callable[[Work | None, bool], dict]] = {
    "whole run": _whole_run, "updates": _updates, "decoding": _decoding, "TRL": _trl,
}  # fmt: skip
