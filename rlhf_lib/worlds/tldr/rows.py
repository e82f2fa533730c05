"""Rows in the schema of the N+ datasets, checked one by one: what is broken is named with its place.

References (SFT)   subreddit, title, post, summary: texts
Preferences        info: {subreddit, title, post}; summaries: two of {text}; choice: 0 or 1, the better one's place

Other columns are ignored, those that N+ added by tokenising (query_token and so on) too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...engine.files import DamagedError
from .. import layout
from .sources import BrokenRow, HubSplit, LocalFiles

REPORTED = 3  # rows left out that are named; the rest is counted


@dataclass(frozen=True)
class Post:
    """A post of Reddit."""

    subreddit: str
    title: str
    body: str

    @property
    def query(self) -> str:
        """What a policy continues."""
        return layout.query(subreddit=self.subreddit, title=self.title, post=self.body)


@dataclass(frozen=True)
class Row:
    """A post, what was written below it under the names of its kind, and where it stands."""

    where: str
    post: Post
    responses: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most tokens of a query (a BOS included), of a response with its EOS, and of both together."""

    query: int = 512
    response: int
    total: int

    def __post_init__(self):
        if not (self.query >= 1 and self.response >= 1 and self.total > self.query):
            raise ValueError(f"limits must be at least 1, and total greater than query: {self}")


@dataclass(frozen=True)
class Kind:
    """What rows hold, and how long they may get."""

    name: str
    columns: tuple[str, ...]
    responses: tuple[str, ...]
    limits: Limits
    parse: Callable[[dict], tuple[Post, dict[str, str]]]


def read_rows(source: LocalFiles | HubSplit, kind: Kind, *, skip_broken: bool = False) -> Iterator[Row]:
    """Every row of the source; with `skip_broken`, those that can be used, the others being named on stderr.

    raises  DamagedError naming the row that cannot be used, or the source if it has none that can
    """
    used = skipped = 0
    for where, read in source.rows(kind.columns):
        try:
            row = Row(where, *kind.parse(read()))
        except BrokenRow as error:
            if not skip_broken:
                raise DamagedError(f"{where}: {error}; {source.advice}") from None
            if (skipped := skipped + 1) <= REPORTED:
                print(f"left out: {where}: {error}", file=sys.stderr)
        else:
            used += 1
            yield row
    if skipped > REPORTED:
        print(f"left out: {skipped - REPORTED} more rows of {source.describe()}", file=sys.stderr)
    if not used:
        raise DamagedError(f"{source.describe()} has no rows" + (" that can be used" if skipped else ""))


def _reference(row: dict) -> tuple[Post, dict[str, str]]:
    return _post(row), {"response": _some_text(row, "summary")}


def _comparison(row: dict) -> tuple[Post, dict[str, str]]:
    info, summaries, choice = _get(row, "info"), _get(row, "summaries"), _get(row, "choice")
    if not isinstance(info, dict):
        raise BrokenRow(f"info must be an object with subreddit, title and post, not {_kind_of(info)}")
    if info.get("post") is None and info.get("article") is not None:
        raise BrokenRow("it compares summaries of a news article (CNN/DM), not of a post")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(one, dict) for one in summaries):
        raise BrokenRow("summaries must be a list of two objects, each with a text")
    if type(choice) is not int or choice not in (0, 1):
        raise BrokenRow(f"choice must be 0 or 1, the place of the better summary, not {choice!r}")
    texts = [_some_text(summary, "text", f"summaries[{place}].") for place, summary in enumerate(summaries)]
    return _post(info, "info."), {"chosen": texts[choice], "rejected": texts[1 - choice]}


SFT = Kind(
    "references", ("subreddit", "title", "post", "summary"), ("response",),
    Limits(response=53, total=562), _reference,
)  # fmt: skip
PREFERENCES = Kind(
    "preferences", ("info", "summaries", "choice"), ("chosen", "rejected"),
    Limits(response=169, total=638), _comparison,
)  # fmt: skip


def _post(row: dict, within: str = "") -> Post:
    return Post(_text(row, "subreddit", within), _text(row, "title", within), _some_text(row, "post", within))


def _some_text(row: dict, name: str, within: str = "") -> str:
    text = _text(row, name, within)
    if not text.strip():
        raise BrokenRow(f"{within}{name} is empty")
    return text


def _text(row: dict, name: str, within: str) -> str:
    text = _get(row, name, within)
    if not isinstance(text, str):
        raise BrokenRow(f"{within}{name} must be text, not {_kind_of(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BrokenRow(f"{within}{name} has half a character (a lone surrogate) at {error.start}") from None
    return text


def _get(row: dict, name: str, within: str = "") -> object:
    if name not in row:
        raise BrokenRow(f"{within}{name} is missing")
    return row[name]


def _kind_of(value: object) -> str:
    return "null" if value is None else type(value).__name__
