"""Tokenised once: a split's token ids stay in a folder, and are made again when they are not those of this data.

CACHE/NAME-KEY/tokens.safetensors   the columns
CACHE/NAME-KEY/facts.json           what they were made from, and the SHA-256 of the tensors

The key is a hash of the data, the tokenizer, the limits and this format. Writing is atomic, and of several processes
one writes while the others wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from ...engine.files import DamagedError, brief, digest, flush, naming
from .encoding import pad_token_of, tokenise
from .rows import Kind, Limits, read_rows
from .sources import HubSplit, LocalFiles, find_source
from .tokenised import Tokenised, TokenRows

FORMAT = 1  # to be raised when the same rows would give other tokens
BYTES_OF_A_TOKEN = 4
CACHE_VARIABLE = "RLHF_CACHE"  # names another folder than `cache_folder` would
TENSORS, FACTS = "tokens.safetensors", "facts.json"
COLUMN = ("tokens", "lengths", "cut")


def cache_folder() -> Path:
    """Where tokenised data are kept for the next run."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "rlhf_lib" / "tldr"


def load_split(
    place: str | Path,
    kind: Kind,
    tokenizer,
    *,
    split: str,
    cache: str | Path,
    limits: Limits | None = None,
    skip_broken: bool = False,
) -> Tokenised:
    """A split of a file, a folder or a Hub dataset as token ids: from the cache, or tokenised and put there.

    raises  DamagedError if the data, one of their rows, or the tokenizer cannot be used
    """
    source, limits = find_source(place, split), limits or kind.limits
    made_from = {
        "data": source.fingerprint(),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "settings": {"kind": kind.name, "limits": asdict(limits), "skip_broken": skip_broken, "format": FORMAT},
    }
    folder = Path(cache) / f"{kind.name}-{split}-{_hash(made_from)[:16]}"
    with naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if (found := _read(folder, made_from, tokenizer)) is not None:
            return found
        _refuse_full_disk(folder.parent, source.tokens_at_most(kind, limits))
        _announce(folder, made_from, source)
        made = tokenise(read_rows(source, kind, skip_broken=skip_broken), kind, tokenizer, limits)
        _write(folder, made, made_from)
        return made


def tokenizer_fingerprint(tokenizer) -> str:
    """Of everything that decides its token ids, however it was loaded."""
    special = {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id}
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return _hash([type(tokenizer).__name__, tokenizer.get_vocab(), special])
    rules = json.loads(core.to_str())
    rules.update(truncation=None, padding=None)  # these it remembers from the latest call
    return _hash([rules, special])


def _refuse_full_disk(folder: Path, tokens: int) -> None:
    needed, free = tokens * BYTES_OF_A_TOKEN, shutil.disk_usage(folder).free
    if needed > free:
        raise DamagedError(
            f"{folder} has {free / 2**20:.0f} MiB free, and what is to be tokenised takes up to {needed / 2**20:.0f}: "
            f"make room, or name a folder on another disk in {CACHE_VARIABLE}"
        )


def _announce(folder: Path, made_from: dict, source: LocalFiles | HubSplit) -> None:
    """Say that it takes a while now, and why the cache did not help."""
    why = "it is not in the cache yet"
    if folder.exists():
        why = f"the cache in {folder} is damaged"
    elif changed := _nearest(folder, made_from):
        why = f"the cache was made with other {' and '.join(changed)}"
    print(f"tokenising {source.describe()}: {why}", file=sys.stderr)


def _nearest(folder: Path, made_from: dict) -> list[str]:
    """What differs from the most similar of the split's other caches; empty if there is none."""
    split = folder.name.rpartition("-")[0]
    others = [_facts(path).get("made_from", {}) for path in folder.parent.glob(f"{split}-*") if path.is_dir()]
    differences = [[part for part in made_from if made_from[part] != other.get(part)] for other in others]
    return min(differences, key=len, default=[])


def _read(folder: Path, made_from: dict, tokenizer) -> Tokenised | None:
    """None if there is none, or none that can be used; why goes to stderr."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not folder.exists():
        return None
    try:
        facts = _facts(folder)
        if facts.get("made_from") != made_from or facts.get("sha256") != digest(folder / TENSORS):
            raise ValueError("it is not what was written")
        tensors = load_file(folder / TENSORS)
        queries, *responses = (TokenRows(*(tensors[f"{name}.{part}"] for part in COLUMN)) for name in facts["columns"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        print(f"{folder}: {brief(error)}", file=sys.stderr)
        return None
    named = dict(zip(facts["columns"][1:], responses, strict=True))
    return Tokenised(queries, named, pad_token_of(tokenizer), tokenizer.eos_token_id)


def _write(folder: Path, made: Tokenised, made_from: dict) -> None:
    from safetensors.torch import save_file

    draft = folder.with_name(f".{folder.name}.draft")
    columns = {"query": made.queries, **made.responses}
    tensors = {f"{name}.{part}": getattr(rows, part) for name, rows in columns.items() for part in COLUMN}
    with naming(folder):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        save_file(tensors, draft / TENSORS)
        facts = {"made_from": made_from, "columns": list(columns), "sha256": digest(draft / TENSORS)}
        (draft / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        for path in (draft / TENSORS, draft / FACTS, draft):
            flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(draft, folder)
        flush(folder.parent)


def _facts(folder: Path) -> dict:
    """Empty if they cannot be read."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _hash(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
