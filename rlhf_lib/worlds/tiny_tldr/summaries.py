"""Summaries of a post, from faithful to wrong, and the gold score that plays the human who judges them."""

from __future__ import annotations

from dataclasses import dataclass

from . import grammar
from .posts import Dice, Facts, Post

SLOT_OF = {word: slot for slot, words in grammar.SLOTS.items() for word in words}
COMFORTABLE_LENGTH = 14  # words; a full summary has 10 or 11
LENGTH_COST, REPEAT_COST, UNFINISHED_COST = 0.25, 0.5, 1.0  # gold points a word, a repeat, a text without end

# How often the writers of the reference summaries do what. They are people: one in seven is complete.
REFERENCE_KINDS = {"full": 0.15, "vague": 0.30, "wrong": 0.30, "title": 0.25}
# The pre-training mixture has worse ones as well, so that the base model meets what a policy may stumble into.
MIXTURE_KINDS = {"full": 0.2, "vague": 0.2, "wrong": 0.2, "title": 0.1, "stranger": 0.1, "repeat": 0.1, "listing": 0.1}


@dataclass(frozen=True)
class Gold:
    """The gold score of one summary and what it is made of (words, not tokens)."""

    covered: int
    invented: int
    repeated: int
    excess: int
    finished: bool

    @property
    def score(self) -> float:
        """At most 4: one point a fact told, minus one a fact made up, minus the costs above."""
        costs = REPEAT_COST * self.repeated + LENGTH_COST * self.excess + UNFINISHED_COST * (not self.finished)
        return self.covered - self.invented - costs


def judge(post: Post, summary: str, *, finished: bool = True) -> Gold:
    """Compare a summary with the facts of its post. A word of the grammar's slots is a claim; other words are free."""
    words = summary.split()
    claims = [word for word in words if word in SLOT_OF]
    distinct = set(claims)
    true = {word for word in distinct if post.facts[SLOT_OF[word]] == word}
    return Gold(
        covered=len(true),
        invented=len(distinct - true),
        repeated=len(claims) - len(distinct),
        excess=max(0, len(words) - COMFORTABLE_LENGTH),
        finished=finished,
    )


def title_agreement(post: Post, summary: str) -> float:
    """The share of the title's claims that the summary repeats, right or wrong: what a skimming reader checks."""
    claims = [word for word in post.title.split() if word in SLOT_OF]
    return sum(claim in summary.split() for claim in claims) / len(claims)


def write_summary(post: Post, kind: str, dice: Dice) -> str:
    """A summary of the kind named in REFERENCE_KINDS or MIXTURE_KINDS."""
    words = {
        "full": lambda: post.facts,
        "vague": lambda: _with_some(post.facts, grammar.VAGUE, dice),
        "wrong": lambda: _with_some(post.facts, post.aside, dice),
        "stranger": lambda: {slot: dice.pick(words) for slot, words in grammar.SLOTS.items()},
        "repeat": lambda: _with_some(post.facts, post.aside, dice),
        "listing": lambda: post.facts,
    }
    if kind == "title":
        return post.title
    text = dice.pick(grammar.SUMMARY).format(**words[kind]())
    if kind == "repeat":
        return f"{text} {dice.pick(grammar.SUMMARY).format(**post.facts)}"
    if kind == "listing":
        return f"{text} {grammar.CLAUSE.format(**post.aside)}"
    return text


def reference_summary(post: Post, dice: Dice, *, repetition: float = 0.0) -> str:
    """What one of the human writers wrote below the post; `repetition` is the share who say it twice."""
    text = write_summary(post, draw_kind(REFERENCE_KINDS, dice), dice)
    return f"{text} {text}" if dice.chance(repetition) else text


def draw_kind(kinds: dict[str, float], dice: Dice) -> str:
    level = dice.uniform() * sum(kinds.values())
    for kind, weight in kinds.items():
        level -= weight
        if level < 0:
            return kind
    return kind


def _with_some(facts: Facts, instead: Facts, dice: Dice) -> Facts:
    """`facts` with each slot taken from `instead` by an even chance, one slot at least."""
    slots = {dice.pick(list(facts)), *(slot for slot in facts if dice.chance(0.5))}
    return {slot: instead[slot] if slot in slots else word for slot, word in facts.items()}
