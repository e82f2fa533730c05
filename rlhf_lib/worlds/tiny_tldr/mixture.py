"""What the base model reads before anybody fine-tunes it: posts, and what readers write below them.

A document is one post and several comments. Each comment follows the post alone (it cannot see its neighbours), so one
pass over a post teaches several continuations of it:

    facts      who: roommate what: laptop ...
    quote      a summary with a reader's mark right behind each claim: my roommate right broke wrong ...
    summary    a summary, <eos>, an overall reaction (noisy, as votes are), and a verdict on each kind of fact

The last kind is why a reward model can be trained in a minute: what readers thought of a whole summary is the next
word after its <eos>, which is where a reward model reads. A large model has seen as much in its own corpus.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import grammar
from .posts import Dice, Post, make_post
from .summaries import MIXTURE_KINDS, SLOT_OF, draw_kind, judge, write_summary
from .tokenizer import EOS

QUOTES, SUMMARIES = 2, 4  # comments of each kind below a post, beside one of facts
POST_WEIGHT, JUDGEMENT_WEIGHT = 0.1, 3.0  # of a word of the post, of a fact, mark, reaction or verdict; others 1
BLENDED = 0.6  # of the summaries mix true facts, the aside's and invented ones at random
NOISE = 0.1  # of the reactions are one level too high, and as many one too low

Segments = list[tuple[str, float]]  # text and the weight of its tokens in the loss


@dataclass(frozen=True)
class Batch:
    """[B, T] tokens, their positions, what follows each and how much that counts; [B, 1, T, T] who may look at whom."""

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    mask: Tensor


def make_batch(tokenizer, seed: int, start: int, posts: int) -> Batch:
    """Documents `start` to `start + posts` of the pre-training mixture."""
    return _pack([_encode(tokenizer, *_document(seed, index)) for index in range(start, start + posts)])


def _document(seed: int, index: int) -> tuple[Post, list[Segments]]:
    post, dice = make_post(seed, "pretrain", index), Dice("comments", seed, index)
    summaries = [_summary_comment(post, dice) for _ in range(SUMMARIES)]
    return post, [*summaries, _facts_comment(post, dice), *(_quote_comment(post, dice) for _ in range(QUOTES))]


def _facts_comment(post: Post, dice: Dice) -> Segments:
    return [
        segment
        for slot in dice.shuffled(list(grammar.SLOTS))
        for segment in ((f" {slot}:", 0.0), (f" {post.facts[slot]}", JUDGEMENT_WEIGHT))
    ]


def _quote_comment(post: Post, dice: Dice) -> Segments:
    segments: Segments = []
    for word in _blended_summary(post, dice).split():
        segments.append((f" {word}", 1.0))
        if word in SLOT_OF:
            verdict = "right" if post.facts[SLOT_OF[word]] == word else "wrong"
            segments.append((f" {verdict}", JUDGEMENT_WEIGHT))
    return [*segments, (EOS, 1.0)]


def _summary_comment(post: Post, dice: Dice) -> Segments:
    blended = dice.chance(BLENDED)
    summary = _blended_summary(post, dice) if blended else write_summary(post, draw_kind(MIXTURE_KINDS, dice), dice)
    segments = [(f" {summary}", 1.0), (EOS, 1.0), (f" {_reaction(judge(post, summary).score, dice)}", JUDGEMENT_WEIGHT)]
    for slot in dice.shuffled(list(grammar.SLOTS)):
        segments += [(f" {slot}:", 0.0), (f" {_verdict(post, slot, summary)}", JUDGEMENT_WEIGHT)]
    return segments


def _blended_summary(post: Post, dice: Dice) -> str:
    def claim(slot: str) -> str:
        level = dice.uniform()
        if level < 0.40:
            return post.facts[slot]
        if level < 0.75:
            return post.aside[slot]
        return dice.pick(grammar.SLOTS[slot]) if level < 0.85 else grammar.VAGUE[slot]

    return dice.pick(grammar.SUMMARY).format(**{slot: claim(slot) for slot in grammar.SLOTS})


def _reaction(gold: float, dice: Dice) -> str:
    level, draw = round(gold) + 1, dice.uniform()
    level += (draw < NOISE) - (draw > 1 - NOISE)
    return grammar.REACTIONS[min(max(level, 0), len(grammar.REACTIONS) - 1)]


def _verdict(post: Post, slot: str, summary: str) -> str:
    claims = {word for word in summary.split() if SLOT_OF.get(word) == slot}
    if not claims:
        return "missing"
    return "right" if claims == {post.facts[slot]} else "wrong"


def _encode(tokenizer, post: Post, comments: list[Segments]) -> list[tuple[list[int], list[float]]]:
    """Token ids and weights of the post and of each comment."""
    blocks = []
    for segments in [[(post.prompt, POST_WEIGHT)], *comments]:
        encoded = [(tokenizer(text).input_ids, weight) for text, weight in segments]
        ids = [token for tokens, _ in encoded for token in tokens]
        blocks.append((ids, [weight for tokens, weight in encoded for _ in tokens]))
    return blocks


def _pack(documents: list[list[tuple[list[int], list[float]]]]) -> Batch:
    """Each document in one row; positions of every comment go on where its post ends."""
    shape = len(documents), max(sum(len(ids) for ids, _ in blocks) for blocks in documents)
    tokens, positions, block_of = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, -1)
    weight_of = torch.zeros(shape)
    for row, blocks in enumerate(documents):
        start, post_length = 0, len(blocks[0][0])
        for number, (ids, weights) in enumerate(blocks):
            place = slice(start, start + len(ids))
            tokens[row, place], weight_of[row, place] = torch.tensor(ids), torch.tensor(weights)
            positions[row, place] = torch.arange(len(ids)) + (post_length if number else 0)
            block_of[row, place] = number
            if number != 1:  # only the first comment, a summary, follows on from what stands before it: the post
                weight_of[row, start] = 0
            start += len(ids)
    return Batch(tokens, positions, _next(tokens), _next(weight_of), _visible(block_of))


def _next(per_token: Tensor) -> Tensor:
    """What belongs to the following token, at each place; 0 at the last."""
    return torch.nn.functional.pad(per_token[:, 1:], (0, 1))


def _visible(block_of: Tensor) -> Tensor:
    """A token sees those before it in its own comment and in the post; padding sees itself, so that nothing is NaN."""
    reader, read = block_of[:, :, None], block_of[:, None, :]
    width = block_of.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return (((read == 0) | (reader == read)) & (read >= 0) & causal | torch.eye(width, dtype=torch.bool))[:, None]
