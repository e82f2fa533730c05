"""Where rows come from: local JSON lines or Parquet, or the Hub. Each row says where it stands.

A source has `describe()`, `fingerprint()` (changes when the data do), `advice`, `tokens_at_most(kind, limits)`, and
`rows(columns)`, which yields where each row stands and a function that reads it: one row that cannot be read does not
end the others.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...engine import hub
from ...engine.files import DamagedError, brief, digest

if TYPE_CHECKING:
    from .rows import Kind, Limits

Reader = Callable[[], dict]
SUFFIXES = (".jsonl", ".parquet")
ROWS_AT_ONCE = 1000  # of a Parquet file
PAGE = "https://huggingface.co/datasets/"  # and the name


class BrokenRow(ValueError):
    """A row that cannot be used; the message says why, whoever catches it says where."""


def find_source(place: str | Path, split: str) -> LocalFiles | HubSplit:
    """The split of what `place` names: a file; a folder with `split.jsonl`, `split-00000-of-00002.parquet` or the like
    anywhere below it; or, if there is neither, a dataset on the Hub, as "owner/name" or "owner/name@revision".

    raises  DamagedError if it is meant as a path and nothing is there
    """
    path = Path(place)
    if path.is_file():
        return LocalFiles((path,))
    if path.is_dir():
        return LocalFiles(tuple(_files_of_split(path, split)))
    name, _, revision = str(place).partition("@")
    if path.is_absolute() or path.suffix in SUFFIXES or name.count("/") != 1 or name.startswith("."):
        raise DamagedError(
            f"{place} does not exist: name a .jsonl or .parquet file, a folder of them, or a Hub dataset"
        )
    return HubSplit(name, split, revision or None)


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """The shards in order. A file belongs to the split that its name begins with, up to a dot or a dash."""
    begins = (f"{split}.", f"{split}-")
    found = [path for path in folder.rglob("*") if path.name.startswith(begins) and path.suffix in SUFFIXES]
    if not found:
        raise DamagedError(f"{folder} has no {split}*.jsonl and no {split}*.parquet: name the file itself, or add it")
    if len({path.suffix for path in found}) > 1:
        raise DamagedError(f"{folder} has the split {split} both as .jsonl and as .parquet: name the one to read")
    return sorted(found)


@dataclass(frozen=True)
class LocalFiles:
    """One split, in one file or in several shards."""

    paths: tuple[Path, ...]
    advice = "mend that row, make the file again, or leave broken rows out with skip_broken"

    def describe(self) -> str:
        return str(self.paths[0]) + (f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else "")

    def fingerprint(self) -> str:
        """Of the content alone: a copy elsewhere is the same data."""
        return hashlib.sha256("".join(map(digest, self.paths)).encode()).hexdigest()

    def tokens_at_most(self, kind: Kind, limits: Limits) -> int:
        """As good as surely: a token is one byte at least, and Parquet packs text to a fifth at best."""
        return sum(path.stat().st_size * (5 if path.suffix == ".parquet" else 1) for path in self.paths)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, Reader]]:
        for path in self.paths:
            yield from _parquet_rows(path, columns) if path.suffix == ".parquet" else _json_rows(path)


@dataclass(frozen=True)
class HubSplit:
    """One split of a dataset on the Hub, or in the cache that an earlier download left."""

    name: str
    split: str
    revision: str | None = None
    advice = "leave broken rows out with skip_broken, or use another revision (owner/name@revision)"

    def describe(self) -> str:
        return f"{self.name}, split {self.split}"

    def fingerprint(self) -> str:
        """`datasets` derives it from the revision's files."""
        return self._dataset._fingerprint

    def tokens_at_most(self, kind: Kind, limits: Limits) -> int:
        return len(self._dataset) * (limits.query + len(kind.responses) * limits.response)

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, Reader]]:
        _refuse_missing(self.describe(), columns, self._dataset.column_names)
        rows = self._dataset.select_columns(list(columns))
        for number in range(len(rows)):
            yield f"{self.describe()}, row {number} (counted from 0)", partial(rows.__getitem__, number)

    @cached_property
    def _dataset(self):
        from datasets import load_dataset

        try:
            return load_dataset(self.name, split=self.split, revision=self.revision)
        except (
            Exception
        ) as error:  # no network, no such name or split, gated, a broken download: each fails its own way
            what, advice = hub.why(error, self.name, page=PAGE)
            raise DamagedError(
                f"{self.name} is no file or folder here, and its split {self.split} could not be had from the Hub "
                f"({what}): {advice}; or name local .jsonl or .parquet files"
            ) from error


def _json_rows(path: Path) -> Iterator[tuple[str, Reader]]:
    """Lines end at \\n and nowhere else: a string may hold other separators. Empty lines are passed over."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield f"{path}, line {number}", partial(_parse, line.rstrip())


def _parse(line: bytes) -> dict:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BrokenRow(f"not UTF-8 (byte {error.start} is {line[error.start]:#04x}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise BrokenRow(f"not JSON ({error.msg}, column {error.colno})") from None
    except RecursionError:
        raise BrokenRow("not JSON (nested too deeply)") from None
    if not isinstance(row, dict):
        raise BrokenRow("not a JSON object")
    return row


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Reader]]:
    import pyarrow
    import pyarrow.parquet

    start = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _refuse_missing(str(path), columns, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(columns)):
                for place in range(batch.num_rows):
                    yield f"{path}, row {start + place} (counted from 0)", partial(_cells, batch, place)
                start += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedError(
            f"{path} cannot be read as Parquet from row {start} on ({brief(error)}): make that file again"
        ) from None


def _cells(batch, place: int) -> dict:
    try:
        return {name: batch.column(name)[place].as_py() for name in batch.schema.names}
    except UnicodeDecodeError as error:
        raise BrokenRow(f"a text is not UTF-8 (byte {error.start})") from None


def _refuse_missing(what: str, wanted: Sequence[str], found: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise DamagedError(f"{what} lacks the column {missing[0]}; it has {', '.join(found) or 'none'}")
