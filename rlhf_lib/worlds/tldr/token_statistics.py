"""How long the rows of a split are, in tokens: the cheapest test there is of a layout, a space, an EOS, a limit."""

from __future__ import annotations

import statistics

from torch import Tensor

from .tokenised import Tokenised


def token_statistics(split: Tokenised) -> dict:
    """Plain data: rows; mean, median and max of each length; how many of each were cut.

    Lengths are of what is kept. "query_and_response" has the key "query_and_" and the name of the response; for
    preferences there is "chosen_minus_rejected" too.
    """
    query = split.queries.lengths
    found = {"rows": len(split), "query": _summary(query)}
    for name, rows in split.responses.items():
        found[name] = _summary(rows.lengths)
        found[f"query_and_{name}"] = _summary(query + rows.lengths)
    if "chosen" in split.responses:
        found["chosen_minus_rejected"] = _summary(
            split.responses["chosen"].lengths - split.responses["rejected"].lengths
        )
    columns = {"query": split.queries, **split.responses}
    return {**found, "cut": {name: int(rows.cut.sum()) for name, rows in columns.items()}}


def flat(name: str, numbers: dict) -> dict[str, float]:
    """Nested numbers under dotted names that begin with `name`, as in the ledger: sft_data.train.response.mean"""
    found = {}
    for key, value in numbers.items():
        found.update(flat(f"{name}.{key}", value) if isinstance(value, dict) else {f"{name}.{key}": value})
    return found


def _summary(lengths: Tensor) -> dict[str, float]:
    numbers = lengths.tolist()
    return {"mean": statistics.fmean(numbers), "median": statistics.median(numbers), "max": max(numbers)}
