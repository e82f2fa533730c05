"""What a run reads is looked at before it is used: damage and impossible rows are errors that name file and line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..engine.files import DamagedError
from ..engine.run_folder import read_lines
from ..worlds.world import World
from .errors import InputError


@contextmanager
def damage_explained() -> Iterator[None]:
    """What the engine finds damaged is something that the user can mend."""
    try:
        yield
    except DamagedError as error:
        raise InputError(str(error)) from error


def read_comparisons(world: World, path: Path, *, at_least: int, why: str) -> list[dict]:
    """The rows of a file of preferences, see `comparisons`.

    raises  InputError naming file and line of a row that cannot be used, or if there are too few, with the reason why
    """
    rows = read_lines(path)
    if len(rows) < at_least:
        raise InputError(f"{path} has too few rows: {len(rows)}, {why}")
    for number, row in enumerate(rows, 1):
        if complaint := _form(row) or _length(world, row):
            raise InputError(f"{path}, line {number}: {complaint}; mend that line, or make the file again")
    return rows


def _form(row: dict) -> str:
    """What is wrong with the row as such, or nothing."""
    prompt, summaries, finished, appeal, pairs = (
        row.get(name) for name in ("prompt", "summaries", "finished", "appeal", "pairs")
    )
    if not _is_text(prompt):
        return "the prompt is empty or no text"
    if not _is_list(summaries, _is_text) or len(summaries) < 2:
        return "a summary is empty or no text, or there are fewer than two"
    count = len(summaries)
    if not _is_list(finished, lambda one: isinstance(one, bool)) or len(finished) != count:
        return f"finished must be true or false for each of the {count} summaries"
    if not _is_list(appeal, _is_finite) or len(appeal) != count:
        return f"appeal must be a finite number for each of the {count} summaries"
    if not pairs or not _is_list(pairs, lambda pair: _is_pair(pair, count)):
        return f"pairs must be [chosen, rejected], two different places from 0 to {count - 1}, and at least one"
    return ""


def _length(world: World, row: dict) -> str:
    """What does not fit into the models, or nothing."""
    prompt = len(world.tokenizer(row["prompt"]).input_ids)
    longest = prompt + max(map(len, world.encode_summaries(row["summaries"])))
    if longest <= world.context:
        return ""
    return f"too long: the prompt has {prompt} tokens, with a summary {longest}, and the models read {world.context}"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_pair(value: object, count: int) -> bool:
    places = set(range(count))
    return _is_list(value, lambda one: type(one) is int and one in places) and len(value) == len(set(value)) == 2


def _is_list(value: object, holds) -> bool:
    return isinstance(value, list) and all(map(holds, value))
