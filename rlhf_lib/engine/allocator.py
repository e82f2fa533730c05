"""What a process does with memory that its tensors no longer need."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
AT_ONCE = 1 << 30  # bytes: a larger block is still the system's own


@cache
def keep_what_is_freed() -> bool:
    """From now on this process keeps freed memory and uses it again; whether the C library could be told so.

    Else glibc gives large blocks back to the system and gets them again as pages of zeros, which an update pays with
    tens of thousands of page faults, 3 to 5 % of its time on a CPU. The peak is what it was: what is kept is used.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, AT_ONCE) and mallopt(M_TRIM_THRESHOLD, AT_ONCE))
