"""From texts to padded rows, and from many rows to micro-batches of rows of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from ..maths.records import Record, Texts, trim
from . import distributed


def pad_rows(rows: Sequence[Sequence[int]], *, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """[B, T] token ids padded on the right, and [B] lengths. Every row must have a token."""
    _refuse_empty("row", rows)
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    return torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows]), lengths


def make_texts(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, pad_token_id: int, eos_token_id: int
) -> Texts:
    """Prompt and response in one right-padded row, neither of them empty. A response ends with its EOS, or has none."""
    _refuse_empty("prompt", prompts)
    _refuse_empty("response", responses)
    tokens, lengths = pad_rows([[*p, *r] for p, r in zip(prompts, responses, strict=True)], pad_token_id=pad_token_id)
    return Texts(
        tokens=tokens,
        prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
        sequence_lengths=lengths,
        has_eos=torch.tensor([response[-1] == eos_token_id for response in responses]),
    )


def buckets(texts: Texts, rows: int) -> Iterator[Tensor]:
    """Indices of at most `rows` rows each, similar in length: short rows are not padded to the longest of all.

    Several processes have as many each, see `turns`; with fewer rows than processes, some have none.
    """
    order = texts.sequence_lengths.argsort(stable=True)
    yield from _pieces(order, rows, min(distributed.size() * turns(len(order), rows), len(order)))


def turns(things: int, at_once: int) -> int:
    """How many micro-batches each process makes of so many things: as many as the others, see `sharding`.

    Where one of them would be empty, there is one less, with one thing more than `at_once` in some.
    """
    most = -(-things // distributed.size())
    return max(1, min(-(-most // at_once), things // distributed.size()))


def own_buckets(texts: Texts, rows: int) -> list[Tensor]:
    """Those of this process."""
    return distributed.own_share(list(buckets(texts, rows)))


def own_pairs(texts: Texts, chosen: Tensor, rejected: Tensor, rows: int) -> Iterator[tuple[Texts, Tensor, Tensor]]:
    """This process's share of the pairs, at most `rows` at a time, neighbours together.

    Each time as the texts that these pairs are made of, and the places among them of those chosen and rejected.
    """
    own = torch.arange(len(chosen), device=chosen.device).tensor_split(distributed.size())[distributed.rank()]
    if len(own) == len(chosen) <= rows:
        yield texts, chosen, rejected
        return
    if not len(own):  # there may be more processes than pairs
        return
    for some in _pieces(own, rows, turns(len(chosen), rows)):
        needed, places = torch.cat([chosen[some], rejected[some]]).unique(return_inverse=True)
        yield (micro_batch(texts, texts, needed), *places.split(len(some)))


def _pieces(index: Tensor, rows: int, pieces: int) -> tuple[Tensor, ...]:
    """Alone `rows` at a time; with other processes, so many pieces."""
    return index.split(rows) if distributed.size() == 1 else index.tensor_split(pieces)


def micro_batch(record: Record, texts: Texts, index: Tensor) -> Record:
    """The rows of `record` named by `index`, cut to the longest of these rows of `texts`."""
    return trim(record.select(index), int(texts.sequence_lengths[index].max()))


def in_micro_batches(
    function: Callable[[Texts], tuple[Tensor, ...]], texts: Texts, rows: int
) -> tuple[Tensor, ...]:  # fmt: skip
    """The function over buckets of `texts`, its results put back in the order and at the width of `texts`.

    Every process asks it about its own buckets, and has all results in the end.
    """
    collected: tuple[Tensor, ...] = ()
    states = texts.tokens.shape[1]
    own = own_buckets(texts, rows)
    for index in own or islice(buckets(texts, rows), 1):  # whoever has none still has to know what the results are like
        part = micro_batch(texts, texts, index)
        missing = states - part.tokens.shape[1]
        results = [_widen(result, missing) for result in function(part)]
        collected = collected or tuple(result.new_zeros(len(texts.tokens), *result.shape[1:]) for result in results)
        for whole, result in zip(collected, results, strict=True):
            whole[index] = result if own else 0
    return tuple(map(distributed.add_up, collected))


def _widen(result: Tensor, missing: int) -> Tensor:
    return result if result.dim() == 1 else torch.nn.functional.pad(result, (0, missing))


def _refuse_empty(what: str, rows: Sequence[Sequence[int]]) -> None:
    if not all(rows):
        raise ValueError(f"{what} {list(map(bool, rows)).index(False)} (counted from 0) of {len(rows)} is empty")
