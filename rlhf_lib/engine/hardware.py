"""On what a run is computed: the device that the settings mean, whether it can what they ask, and records on it.

Randomness stays on the CPU (see `sampling.uniforms`), so that a device changes tokens by the rounding of logits alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from dataclasses import fields, is_dataclass
from typing import TypeVar

import torch

Placeable = TypeVar("Placeable")
CPU = torch.device("cpu")
DEEPSPEED = "0.19.8"  # the oldest that was tried


def device_of(name: str) -> torch.device:
    """What "cpu", "cuda" or "auto" means here: of several processes on one machine each has a GPU of its own.

    "auto" is a GPU where there is one, unless `accelerate launch --cpu` says otherwise.
    raises  ValueError if there is none, or not one for this process
    """
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and (not seen or _cpu_was_asked_for())):
        return CPU
    if not seen:
        raise ValueError(
            f"PyTorch {torch.__version__} sees no GPU here: leave it at auto, or install a build with CUDA"
        )
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if place >= seen:
        raise ValueError(
            f"process {place} (counted from 0) of this machine has no GPU, there are {seen}: start no more processes "
            "than GPUs, or take cpu"
        )
    return torch.device("cuda", place)


def placed(record: Placeable, device: torch.device) -> Placeable:
    """The record with all its tensors on the device; records within it likewise."""

    def move(value: object) -> object:
        return placed(value, device) if is_dataclass(value) else value.to(device)

    return type(record)(**{field.name: move(getattr(record, field.name)) for field in fields(record)})


def refuse_precision(precision: str, device: torch.device) -> None:
    """raises ValueError if a GPU only imitates these numbers, which is slower than float32."""
    if precision == "bfloat16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError(f"{torch.cuda.get_device_name(device)} does not compute in bfloat16: take float16")


def refuse_attention(attention: str, precision: str, device: torch.device) -> None:
    """raises ValueError if flash-attn is not here, or not for what is computed."""
    if attention != "flash_attention_2":
        return
    if device.type != "cuda":
        raise ValueError("flash-attn runs on a GPU alone, and this run is on the CPU: take sdpa")
    if precision == "float32":
        raise ValueError("flash-attn does not compute in float32: set engine.precision=bfloat16, or take sdpa")
    if importlib.util.find_spec("flash_attn") is None:
        raise ValueError("the package flash-attn is not installed: pip install flash-attn, or take sdpa")


def refuse_to_compile(device: torch.device) -> None:
    """raises ValueError unless torch.compile works here: it needs a C++ compiler, and on a GPU Triton."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # each missing piece fails in its own way
        raise ValueError(
            f"torch.compile does not work here ({' '.join(str(error).split())[:100]}): install a C++ compiler (g++, "
            "clang or MSVC; on a GPU also Triton), or leave it at false"
        ) from None


def refuse_to_shard() -> None:
    """raises ValueError if this version of torch cannot share out models so that gloo adds up their gradients."""
    from torch.distributed import fsdp

    if not hasattr(getattr(fsdp, "FSDPModule", None), "set_force_sum_reduction_for_comms"):
        raise ValueError(f"torch {torch.__version__} is too old for it: update torch, or leave it at none")


def refuse_without_deepspeed() -> None:
    """raises ValueError unless DeepSpeed is here, and new enough to be told when a step has all its gradients."""
    try:
        found = importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError("the package deepspeed is not installed: pip install deepspeed, or take fsdp2") from None
    from packaging.version import Version  # comes with it

    if Version(found) < Version(DEEPSPEED):
        raise ValueError(f"deepspeed {found} is too old for it: update it to {DEEPSPEED}, or take fsdp2")


def _cpu_was_asked_for() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
