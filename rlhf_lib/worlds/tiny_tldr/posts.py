"""Reddit-like posts with known facts, the same on every machine for the same seed.

Each post tells one thing that happened (the facts), one thing beside the point (the aside), and asks a question. Its
title is usually, not always, faithful: copying it is tempting and often wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .. import layout
from . import grammar

Facts = dict[str, str]
Choice = TypeVar("Choice")

TITLE_FAITHFUL, TITLE_WRONG = 0.55, 0.30  # the rest are vague


@dataclass(frozen=True, kw_only=True)
class Post:
    """One post. `facts` and `aside` map each slot of the grammar to a word; the two never share a word."""

    subreddit: str
    title: str
    body: str
    facts: Facts
    aside: Facts

    @property
    def prompt(self) -> str:
        """The query in the layout of the TL;DR dataset."""
        return layout.query(subreddit=self.subreddit, title=self.title, post=self.body)


class Dice:
    """Draws that depend on the key alone. Only `Random.random` is used: Python promises it across versions."""

    def __init__(self, *key: object):
        self.uniform = random.Random("/".join(map(str, key))).random

    def pick(self, options: Sequence[Choice]) -> Choice:
        return options[int(self.uniform() * len(options))]

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def other(self, options: Sequence[Choice], taken: Choice) -> Choice:
        return self.pick([option for option in options if option != taken])

    def shuffled(self, items: Sequence[Choice]) -> list[Choice]:
        return [item for _, item in sorted(((self.uniform(), item) for item in items), key=lambda draw: draw[0])]


class Loaded(Dice):
    """Dice that always fall on the longest option; `uniform` is what they give where nothing is picked."""

    def __init__(self, length: Callable[[str], int], uniform: float):
        self.length, self.uniform = length, lambda: uniform

    def pick(self, options: Sequence[str]) -> str:
        return max(options, key=self.length)


def make_post(seed: int, split: str, index: int) -> Post:
    """Post number `index` of a split; any post can be made without making those before it."""
    return _post(Dice("post", seed, split, index))


def longest_posts(length: Callable[[str], int]) -> list[Post]:
    """One of which no other post exceeds, with a full title and with a vague one; `length` is that of a few words."""
    return [_post(Loaded(length, uniform)) for uniform in (0.0, 1.0)]


def _post(dice: Dice) -> Post:
    facts = {slot: dice.pick(words) for slot, words in grammar.SLOTS.items()}
    aside = {slot: dice.other(words, facts[slot]) for slot, words in grammar.SLOTS.items()}
    return Post(
        subreddit=dice.pick(grammar.SUBREDDITS),
        title=_title(dice, facts, aside),
        body=_body(dice, facts, aside),
        facts=facts,
        aside=aside,
    )


def make_posts(seed: int, split: str, count: int, *, start: int = 0) -> list[Post]:
    """Posts `start` to `start + count` of a split."""
    return [make_post(seed, split, index) for index in range(start, start + count)]


def _title(dice: Dice, facts: Facts, aside: Facts) -> str:
    kind = dice.uniform()
    if kind < TITLE_FAITHFUL:
        return grammar.TITLE_FULL.format(**facts)
    if kind < TITLE_FAITHFUL + TITLE_WRONG:
        slot = dice.pick(("who", "did", "what"))
        return grammar.TITLE_FULL.format(**{**facts, slot: aside[slot]})
    return dice.pick(grammar.TITLE_VAGUE).format(**facts)


def _body(dice: Dice, facts: Facts, aside: Facts) -> str:
    told = [
        f"{dice.pick(grammar.MAIN_OPENERS)} {grammar.CLAUSE.format(**facts)} .",
        f"{dice.pick(grammar.ASIDE_OPENERS)} {grammar.CLAUSE.format(**aside)} .",
    ]
    asked = [dice.pick(grammar.ASKS).format(**facts), dice.pick(grammar.ASIDE_ASKS).format(**aside)]
    before, between = dice.pick(grammar.FILLERS), dice.pick(grammar.FILLERS)
    return " ".join([before, *dice.shuffled(told), between, *dice.shuffled(asked)])
