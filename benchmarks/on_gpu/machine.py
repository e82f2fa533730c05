"""The machine that a part runs on: what it is, how fast it multiplies, and how much of its memory may be used."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

GIB = 2**30
VERSIONS_OF = ("torch", "transformers", "accelerate", "datasets", "numpy")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MATRIX = {"cuda": 8192, "cpu": 512}  # rows and columns; large enough for the best rate
USABLE = 0.88  # of the memory, by live tensors; the rest is the CUDA context, kernels' scratch and holes between blocks


class LeftOut(Exception):
    """A part that cannot be run here, and why: nothing that failed."""


def find_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait(device: torch.device) -> None:
    """Until the device has done what it was told; a clock read before that says nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cap_memory(device: torch.device, gib: float | None) -> None:
    """Torch's allocator refuses to hold more than so much; what CUDA itself needs comes on top."""
    if gib is not None and device.type == "cuda":
        share = gib * GIB / torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)


def memory_of(device: torch.device, gib: float | None) -> int:
    """Bytes that there are, or that there are said to be. On a CPU, where small shapes run, it is a small GPU's."""
    there = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 8 * GIB
    return there if gib is None else min(there, int(gib * GIB))


def matrix_rate(device: torch.device, precision: str) -> float:
    """Operations a second at best, multiplying large matrices of these numbers."""
    from rlhf_lib.engine.arithmetic import matmul_rate

    return matmul_rate(device.type, dtype=DTYPES[precision], size=MATRIX[device.type], tries=20)


def describe(device: torch.device) -> dict:
    """What a result has to be read with: the device, the versions, and how float32 is multiplied."""
    found = {"python": platform.python_version()} | {name: _version(name) for name in VERSIONS_OF}
    return {"device": _name(device), "versions": found, "float32_products": _float32_products(device)}


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        of = torch.cuda.get_device_properties(device)
        return f"{of.name}, {of.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"
    return f"CPU, {os.cpu_count()} cores seen, {torch.get_num_threads()} threads used"


def _float32_products(device: torch.device) -> str:
    """Nothing is changed here: these are PyTorch's defaults, in which a product of float32 keeps its 24 bits."""
    chosen = torch.get_float32_matmul_precision()
    if device.type == "cpu":
        return chosen
    return f"{chosen}; TF32 {'on' if torch.backends.cuda.matmul.allow_tf32 else 'off'}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
