"""Meters of memory, read whenever a frame comes or goes.

tensors  bytes of the storages of live CPU tensors, to the byte and with the true peak, however short. Every operation
         of torch is looked at by the thread that made the profile (its backward passes included), and every new
         storage is counted until it is freed; what lived before is found once, through the garbage collector. It does
         not see a kernel's own scratch memory, memory of numpy and Python, nor operations of other threads. Measured
         on a PPO update of the tiny world: 8 KiB less than the 46.8 MiB that torch's allocator logs. It adds some
         microseconds to every operation (a fifth to that update): take times from a profile without it.
rss      resident bytes of the process, as the operating system counts them: Python, torch's caches, everything.
         The peak is the highest of the readings, so a rise and fall within a call escapes it. An allocator gives back
         what it likes, when it likes.
cuda     bytes of tensors and bytes reserved by torch's caching allocator on the current device, with true peaks. The
         allocator counts on the host, in the order of launches, so no synchronisation is needed; torch's own peak
         counters are reset at each reading.

All of it is the process's: what another thread allocates meanwhile counts, too.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Meter(Protocol):
    """Something that counts bytes, under one name or several."""

    names: tuple[str, ...]

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def read(self) -> list[tuple[int, int]]:
        """For each name: bytes now, and the most there were since the last reading."""


class Rss:
    """The resident set of the process."""

    names = ("rss",)

    def start(self) -> None:
        import psutil

        self.process = psutil.Process()

    def stop(self) -> None: ...

    def read(self) -> list[tuple[int, int]]:
        now = self.process.memory_info().rss
        return [(now, now)]


class Cuda:
    """Torch's caching allocator on the current CUDA device."""

    names = ("cuda allocated", "cuda reserved")

    def start(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("there is no CUDA device whose memory could be read")

    def stop(self) -> None: ...

    def read(self) -> list[tuple[int, int]]:
        cuda = torch.cuda
        read = [
            (cuda.memory_allocated(), cuda.max_memory_allocated()),
            (cuda.memory_reserved(), cuda.max_memory_reserved()),
        ]
        cuda.reset_peak_memory_stats()
        return read


class Tensors:
    """The storages of live CPU tensors."""

    names = ("tensors",)

    def __init__(self):
        self.sizes: dict[int, int] = {}  # bytes, by the storage's address
        self.references: dict[int, weakref.ref] = {}
        self.freed: deque[int] = deque()  # addresses; appended to at any moment, even within the collector
        self.live = self.peak = 0
        self.lock = threading.RLock()
        self.operations = _EveryOperation(self)

    def start(self) -> None:
        for tensor in _tensors_alive():
            self.see(tensor)
        self.peak = self.live
        self.operations.__enter__()

    def stop(self) -> None:
        self.operations.__exit__(None, None, None)
        self.references.clear()  # and with them, their calls back

    def read(self) -> list[tuple[int, int]]:
        with self.lock:
            self._settle()
            pair = (self.live, self.peak)
            self.peak = self.live
        return [pair]

    def see(self, tensor: Tensor) -> None:
        """Count the tensor's storage if it is new, or its change if it was resized."""
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        with self.lock:
            self._settle()
            address = storage._cdata
            if address not in self.references:
                self.references[address] = weakref.ref(storage, lambda _: self.freed.append(address))
            self.live += storage.nbytes() - self.sizes.get(address, 0)
            self.sizes[address] = storage.nbytes()
            self.peak = max(self.peak, self.live)

    def _settle(self) -> None:
        """Take off what was freed since; before anything is added, so that no peak counts both."""
        while self.freed:
            address = self.freed.popleft()
            self.live -= self.sizes.pop(address)
            del self.references[address]


class _EveryOperation(TorchDispatchMode):
    """Shows the results of every operation, also within backward passes and optimisers, to a meter."""

    def __init__(self, meter: Tensors):
        super().__init__()
        self.meter = meter

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        results = operation(*args, **(kwargs or {}))
        for result in (results,) if isinstance(results, Tensor) else tree_iter(results):
            if isinstance(result, Tensor):
                self.meter.see(result)
        return results


def _tensors_alive() -> Iterable[Tensor]:
    """The tensors that Python knows, and the gradients of those; `type`, since isinstance wakes lazy proxies."""
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor) and _is_defined(thing):
            yield thing
            if thing.is_leaf and thing.grad is not None:
                yield thing.grad


def _is_defined(tensor: Tensor) -> bool:
    """PyTorch 2.6 has some that are not: in C++ they stand for no tensor at all."""
    try:
        return tensor.device is not None
    except RuntimeError:
        return False


METERS = {"tensors": Tensors, "rss": Rss, "cuda": Cuda}


def make_meters(wanted: Iterable[str | Meter]) -> list[Meter]:
    """Meters by name, and others as they are."""
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if unknown := [name for name in wanted if isinstance(name, str) and name not in METERS]:
        raise ValueError(f"no meter is called {unknown[0]!r}; there are {', '.join(METERS)}")
    return [METERS[meter]() if isinstance(meter, str) else meter for meter in wanted]
