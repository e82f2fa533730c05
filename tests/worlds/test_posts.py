"""Posts: the same everywhere, and honest about their facts."""

import hashlib
import re

import pytest

from rlhf_lib.worlds.smollm2 import SmolTLDR
from rlhf_lib.worlds.tiny_tldr import grammar
from rlhf_lib.worlds.tiny_tldr.posts import (
    TITLE_FAITHFUL,
    TITLE_WRONG,
    Dice,
    Post,
    longest_posts,
    make_post,
    make_posts,
)
from rlhf_lib.worlds.tiny_tldr.world import ASSETS, TinyTLDR

POSTS = make_posts(0, "test", 4000)


def one_of(options) -> str:
    return "|".join(map(re.escape, options))


def asked(templates) -> str:
    return one_of(templates).replace(r"\{ask\}", r"(\w+)")


def found(pattern: str, body: str) -> tuple[str, ...]:
    """What the only sentence of this form says."""
    (match,) = re.finditer(rf"(?<![^.?] )(?:{pattern})(?= |$)", body)
    return tuple(group for group in match.groups() if group)


def test_pinned():
    """Rejects any change of a draw, a word or their order: seeds would no longer name the posts that they name now."""
    text = "".join(post.prompt for post in POSTS[:200])
    digest = "bf841195b15fb7553219e60e6bd2804c46e64784f560c8ed9d40a05ef9b35983"
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_layout():
    """Rejects another layout than that of the TL;DR dataset: a stray space, one newline, a space after TL;DR:."""
    post = Post(subreddit="advice", title="a title", body="a body .", facts={}, aside={})
    assert post.prompt == "SUBREDDIT: r/advice\n\nTITLE: a title\n\nPOST: a body .\n\nTL;DR:"


def test_any_post_alone():
    """Rejects a generator that carries state from one post to the next, and a wrong start."""
    assert make_post(0, "test", 57) == POSTS[57]
    assert make_posts(0, "test", 3, start=56) == POSTS[56:59]


def test_splits_and_seeds_do_not_overlap():
    """Rejects a key that leaves out the seed or the split: what is evaluated would have been trained on."""
    sources = [(0, "sft"), (0, "preferences"), (0, "held_out_preferences"), (0, "ppo"), (1, "test"), (2, "test")]
    bodies = [{post.body for post in make_posts(*source, 500)} for source in sources] + [{p.body for p in POSTS}]
    assert len(set.union(*bodies)) == sum(map(len, bodies))
    assert len(bodies[-1]) == len(POSTS)


def test_no_word_means_two_things():
    """Rejects a grammar in which a word is a claim in one place and not, or another, in the next."""
    claims = [word for words in grammar.SLOTS.values() for word in words]
    sentences = (
        *grammar.MAIN_OPENERS, *grammar.ASIDE_OPENERS, *grammar.ASKS, *grammar.ASIDE_ASKS, *grammar.FILLERS,
        *grammar.TITLE_VAGUE, *grammar.SUMMARY, *grammar.VAGUE.values(), *grammar.REACTIONS, *grammar.VERDICTS,
        grammar.CLAUSE,
    )  # fmt: skip
    said = {word for sentence in sentences for word in sentence.split()}
    assert len(set(claims)) == len(claims)
    assert not said & set(claims)


def test_facts_are_told():
    """Rejects a body whose main clause tells the aside, or whose question is not the one in the facts."""
    clause = r" my (\w+) (\w+) my (\w+) \."
    for post in POSTS[:1000]:
        assert not set(post.facts.values()) & set(post.aside.values())
        for facts, openers, asks in (
            (post.facts, grammar.MAIN_OPENERS, grammar.ASKS),
            (post.aside, grammar.ASIDE_OPENERS, grammar.ASIDE_ASKS),
        ):
            told = found(f"(?:{one_of(openers)}){clause}", post.body) + found(asked(asks), post.body)
            assert told == tuple(facts[slot] for slot in ("who", "did", "what", "ask"))


def test_main_and_aside_change_places():
    """Rejects a fixed order, which would let a model find the facts by their place alone."""
    first = [post.body.index(post.facts["who"]) < post.body.index(post.aside["who"]) for post in POSTS]
    assert sum(first) / len(POSTS) == pytest.approx(0.5, abs=0.03)


def test_titles():
    """Rejects shares of faithful, wrong and vague titles other than the settings, and a title wrong in two ways."""
    kinds = {"faithful": 0, "wrong": 0, "vague": 0}
    for post in POSTS:
        words = re.fullmatch(r"my (\w+) (\w+) my (\w+)", post.title)
        if not words or words[2] not in grammar.SLOTS["did"]:
            kinds["vague"] += 1
            continue
        slots = zip(("who", "did", "what"), words.groups(), strict=True)
        wrong = [(slot, word) for slot, word in slots if post.facts[slot] != word]
        assert wrong in ([], [(slot, post.aside[slot]) for slot, _ in wrong[:1]])
        kinds["wrong" if wrong else "faithful"] += 1
    shares = [count / len(POSTS) for count in kinds.values()]
    assert shares == pytest.approx([TITLE_FAITHFUL, TITLE_WRONG, 1 - TITLE_FAITHFUL - TITLE_WRONG], abs=0.025)


def test_dice():
    """Rejects a shuffle that is not one, an option that is never drawn, and `other` that gives what was taken."""
    dice, options = Dice("test"), "abcd"
    orders = {"".join(dice.shuffled(options)) for _ in range(500)}
    assert len(orders) == 24
    assert all(sorted(order) == list(options) for order in orders)
    assert {dice.pick(options) for _ in range(200)} == set(options)
    assert {dice.other(options, "b") for _ in range(200)} == set("acd")


def test_no_post_is_longer_than_the_longest():
    """Rejects a bound that leaves out a title, a filler or a slot, and one far above what any post has.

    Counted in letters, in which options differ; the words that two posts share are as long in both.
    """
    longest = max(len(post.prompt) for post in longest_posts(len))
    assert longest - 30 < max(len(post.prompt) for post in POSTS) <= longest


def test_the_length_of_prompts_is_that_of_the_grammar():
    """Rejects constants that the grammar or the model has outgrown; they are computed for a model of one's own."""
    found = SmolTLDR(0, model=str(ASSETS / "base"))
    assert (found.longest_prompt, found.context) == (TinyTLDR.longest_prompt, TinyTLDR.context)
