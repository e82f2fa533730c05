"""Files that cannot be used, and disks that refuse: whoever notices, the error names the path."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DamagedError(ValueError):
    """A file or folder that cannot be used; the message names it and says what to do."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Where the disk refuses to write `path`, an OSError that names it.

    A plain write does not say which file it was for, and safetensors has an error of its own, worded in two ways.
    """
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise
    except SafetensorError as error:
        if (found := re.search(r"(?:os error|Os \{ code:) (\d+)", str(error))) is None:
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(path), code) from None  # on Windows the last one counts


def brief(error: Exception) -> str:
    """The first line of an error, with its kind: what fits into one line about it."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def digest(path: Path) -> str:
    """SHA-256 of a file that may be larger than the memory."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def flush(path: Path) -> None:
    """Make sure that it is on the disk, not only on its way there. Windows cannot flush folders, and need not."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
