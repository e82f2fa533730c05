"""What a process does with memory that its tensors no longer need."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
AT_ONCE = 1 << 30  # bytes: a larger block is still the system's own
ONE_BY_ONE = 1 << 16  # bytes: less than a weight of any model that is worth sharding


@cache
def keep_what_is_freed() -> bool:
    """From now on this process keeps freed memory and uses it again; whether the C library could be told so.

    Else glibc gives large blocks back to the system and gets them again as pages of zeros, which an update pays with
    tens of thousands of page faults, 3 to 5 % of its time on a CPU. The peak is what it was: what is kept is used.
    """
    return _large_blocks_from(AT_ONCE)


def give_back_what_is_freed() -> bool:
    """The opposite: what is freed goes back to the system, now and later; whether the C library could be told so.

    For a process that puts large tensors together for a moment. Else glibc keeps the holes that they leave: two sharded
    processes then held more than unsharded ones (`python -m benchmarks.sharding`).
    """
    told = _large_blocks_from(ONE_BY_ONE)
    return told and hasattr(c_library := ctypes.CDLL(None), "malloc_trim") and bool(c_library.malloc_trim(0))


def _large_blocks_from(size: int) -> bool:
    """Have blocks from `size` bytes on mapped and unmapped one by one."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, size) and mallopt(M_TRIM_THRESHOLD, size))
