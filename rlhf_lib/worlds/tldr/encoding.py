"""From rows to token ids, within the limits.

A query that is too long loses the end of its post, from the last newline on, as often as it takes; where no newline is
left, single characters. A response gets a leading space if it has none, and EOS; one that is too long is cut off, and
with its end it loses its EOS. All this is as in N+ (summarize_from_feedback_details/tldr_dataset.py: process_query, and
truncation=True), which filters out no row either. Differs: N+ adds the space to every SFT summary and to no
preference, trusting that all of one have it and none of the other; special tokens that stand in a text as plain
characters stay characters here; a tokenizer's BOS comes before the query only, not before the response as well.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

import torch

from ...engine.files import DamagedError
from .rows import Kind, Limits, Post, Row
from .tokenised import Tokenised, TokenRows

ROWS_AT_ONCE = 1000


def tokenise(rows: Iterable[Row], kind: Kind, tokenizer, limits: Limits) -> Tokenised:
    """raises DamagedError naming the row whose headings alone are longer than a query may be"""
    refuse_unfit(tokenizer)
    columns = {name: _Column() for name in ("query", *kind.responses)}
    rows = iter(rows)
    while block := list(islice(rows, ROWS_AT_ONCE)):
        queries = encode_queries(block, tokenizer, limits.query)
        columns["query"].extend(queries)
        rooms = [min(limits.response, limits.total - len(query)) for query, _ in queries]
        for name in kind.responses:
            columns[name].extend(encode_responses([row.responses[name] for row in block], tokenizer, rooms))
    queries, *responses = (column.finish() for column in columns.values())
    return Tokenised(
        queries, dict(zip(kind.responses, responses, strict=True)), pad_token_of(tokenizer), tokenizer.eos_token_id
    )


def encode_queries(rows: Sequence[Row], tokenizer, limit: int) -> list[tuple[list[int], bool]]:
    """Token ids of each query, at most `limit`, and whether its post was cut."""
    whole = encode_texts([row.post.query for row in rows], tokenizer)
    return [
        (ids, False) if len(ids) <= limit else (_shortened(row, len(ids), tokenizer, limit), True)
        for row, ids in zip(rows, whole, strict=True)
    ]


def encode_responses(texts: Sequence[str], tokenizer, rooms: Sequence[int]) -> list[tuple[list[int], bool]]:
    """Token ids of each response, at most its room, and whether it was cut."""
    spaced = [text if text[0].isspace() else f" {text}" for text in texts]
    whole = [[*ids, tokenizer.eos_token_id] for ids in encode_texts(spaced, tokenizer, add_special_tokens=False)]
    return [(ids[:room], len(ids) > room) for ids, room in zip(whole, rooms, strict=True)]


def cut_post(post: Post, excess: int) -> Post:
    """The post up to its last newline, or without its last characters if there is none.

    A character makes at most four tokens (one a byte), so that `excess // 4` of them can go at once without cutting
    more than one by one would.
    """
    end = max(0, len(post.body) - max(1, excess // 4))
    newline = post.body.rfind("\n", 0, end + 1)
    return replace(post, body=post.body[: end if newline < 0 else newline])


def pad_token_of(tokenizer) -> int:
    """EOS where a tokenizer has no PAD, as those of Pythia and Llama."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def refuse_unfit(tokenizer) -> None:
    """raises DamagedError if no response could end, or every query would"""
    if tokenizer.eos_token_id is None:
        raise DamagedError("the tokenizer has no EOS token, so that no summary could end: set its eos_token")
    if encode_texts(["TL;DR:"], tokenizer)[0][-1] == tokenizer.eos_token_id:
        raise DamagedError("the tokenizer ends every text with EOS, the query too: load it with add_eos_token=False")


def _shortened(row: Row, length: int, tokenizer, limit: int) -> list[int]:
    post = row.post
    while length > limit:
        if not post.body:
            raise DamagedError(
                f"{row.where}: without its post the query still has {length} tokens, and {limit} is the limit: shorten "
                "the title, or raise the limit"
            )
        post = cut_post(post, length - limit)
        (ids,) = encode_texts([post.query], tokenizer)
        length = len(ids)
    return ids


def encode_texts(texts: list[str], tokenizer, *, add_special_tokens: bool = True) -> list[list[int]]:
    """Token ids. Special tokens that somebody typed stay the characters that they are."""
    options = dict(split_special_tokens=True, return_attention_mask=False, verbose=False)
    return tokenizer(texts, add_special_tokens=add_special_tokens, **options).input_ids


class _Column:
    """Grows row by row at four bytes a token; lists would need ten times as much."""

    def __init__(self):
        self.tokens, self.lengths, self.cut = array("i"), array("q"), array("b")

    def extend(self, rows: Iterable[tuple[list[int], bool]]) -> None:
        for ids, cut in rows:
            self.tokens.extend(ids)
            self.lengths.append(len(ids))
            self.cut.append(cut)

    def finish(self) -> TokenRows:
        return TokenRows(
            torch.frombuffer(self.tokens, dtype=torch.int32),
            torch.frombuffer(self.lengths, dtype=torch.int64),
            torch.frombuffer(self.cut, dtype=torch.int8).bool(),
        )
