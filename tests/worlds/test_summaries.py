"""The gold score, worked by hand, and the summaries that it judges."""

from collections import Counter
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lib.worlds.tiny_tldr import grammar
from rlhf_lib.worlds.tiny_tldr.posts import Dice, Post, make_posts
from rlhf_lib.worlds.tiny_tldr.summaries import (
    MIXTURE_KINDS,
    REFERENCE_KINDS,
    SLOT_OF,
    draw_kind,
    judge,
    reference_summary,
    write_summary,
)

POST = Post(
    subreddit="advice",
    title="my boss hid my bike",
    body="today my boss sold my bike . once my uncle hid my tent . some would wait . should i sue ?",
    facts={"who": "boss", "did": "sold", "what": "bike", "ask": "sue"},
    aside={"who": "uncle", "did": "hid", "what": "tent", "ask": "wait"},
)
FULL = "my boss sold my bike , should i sue ?"  # 10 words with the comma and the question mark
INVENTED = sorted(set(SLOT_OF) - set(POST.facts.values()))
words = st.lists(st.sampled_from([*POST.facts.values()] * 4 + [*INVENTED[:8], "my", ","]), max_size=24)


@pytest.mark.parametrize(
    ("summary", "finished", "gold"),
    [
        (FULL, True, 4),
        ("my boss took my bike , should i sue ?", True, 3),  # one missing: the vague word is no claim
        ("my boss hid my bike , should i sue ?", True, 2),  # sold is missing, hid is made up: 3 - 1
        ("my boss uncle sold my bike , should i sue ?", True, 3),  # all told, and one made up besides: 4 - 1
        (f"{FULL} boss boss", True, 3),  # two repeats at 1/2
        ("my uncle uncle", True, -1.5),  # one thing made up, and said twice: -1 - 1/2
        (f"{FULL} my my my my", True, 4),  # 14 words are comfortable
        (f"{FULL} my my my my my my", True, 3.5),  # 2 words too many at 1/4
        (FULL, False, 3),  # no end
        ("", True, 0),
        ("", False, -1),
        ("uncle hid tent wait", False, -5),  # 4 made up, no end
    ],
)
def test_gold_by_hand(summary, finished, gold):
    """Rejects another price for a mistake, one that is counted twice, and one that cancels another."""
    assert judge(POST, summary, finished=finished).score == gold


@given(words, st.booleans())
def test_gold_is_at_most_4(summary, finished):
    """Rejects pay for telling a fact twice."""
    assert judge(POST, " ".join(summary), finished=finished).score <= 4


@given(words, st.sampled_from(INVENTED))
def test_making_things_up_never_pays(summary, claim):
    """Rejects a price for invention that any state of the summary hides: the first costs 1, a repeat 1/2."""
    before, after = (judge(POST, " ".join(text)).score for text in (summary, [*summary, claim]))
    assert before - after >= (0.5 if claim in summary else 1)


@given(words, st.randoms(use_true_random=False))
def test_order_of_words_is_free(summary, random):
    """Rejects a judge that reads only the first or the last claim about a slot."""
    shuffled = random.sample(summary, len(summary))
    assert judge(POST, " ".join(shuffled)) == judge(POST, " ".join(summary))


@pytest.mark.parametrize("seed", range(5))
def test_each_kind_of_summary(seed):
    """Rejects a kind that makes another mistake than its name says, or none."""
    gold = {kind: judge(POST, write_summary(POST, kind, Dice(seed, kind))) for kind in MIXTURE_KINDS}
    assert gold["full"].score == 4
    assert gold["vague"].covered < 4
    assert gold["vague"].invented == 0
    assert gold["wrong"].covered < 4
    assert gold["wrong"].covered + gold["wrong"].invented == 4
    assert gold["repeat"].repeated + gold["repeat"].invented == 4  # a second summary; what the first got wrong is new
    assert gold["repeat"].covered == 4
    assert gold["listing"].covered == 4
    assert gold["listing"].invented == 3
    assert write_summary(POST, "title", Dice(seed)) == POST.title


def test_a_stranger_does_not_know_the_post():
    """Rejects a stranger who has read the post: of four facts in sixteen words each, he guesses a quarter."""
    covered = [judge(POST, write_summary(POST, "stranger", Dice("stranger", n))).covered for n in range(2000)]
    assert mean(covered) == pytest.approx(4 / 16, abs=0.05)


@pytest.mark.parametrize("kinds", [REFERENCE_KINDS, MIXTURE_KINDS])
def test_kinds_are_drawn_at_their_shares(kinds):
    """Rejects an even draw, and weights shifted by one kind."""
    drawn = Counter(draw_kind(kinds, Dice("kinds", n)) for n in range(4000))
    assert {kind: drawn[kind] / 4000 for kind in kinds} == pytest.approx(kinds, abs=0.025)
    assert sum(kinds.values()) == pytest.approx(1)


def test_a_reference_can_be_beaten_and_a_title_tempts():
    """Rejects a world without a problem: perfect references, or titles that are hopeless or safe to copy.

    The title has no question in it, so 3 is the most it gets. Of the references 15 % are full, of the titles 55 % are
    faithful and 30 % make one thing up: 0.55 * 3 + 0.30 * (2 - 1) + 0.15 * 1 = 2.1.
    """
    posts = make_posts(0, "test", 4000)
    references = [judge(post, reference_summary(post, Dice("writer", n))).score for n, post in enumerate(posts)]
    titles = [judge(post, post.title) for post in posts]
    assert mean(references) < 2
    assert mean(score == 4 for score in references) == pytest.approx(REFERENCE_KINDS["full"], abs=0.025)
    assert mean(title.score for title in titles) == pytest.approx(2.1, abs=0.06)
    assert max(title.score for title in titles) == 3
    assert mean(title.invented > 0 for title in titles) == pytest.approx(0.30, abs=0.025)
    assert mean(title.score >= score for title, score in zip(titles, references, strict=True)) > 0.7


def test_every_claim_has_one_slot():
    """Rejects a claim that the judge looks up under another slot."""
    assert all(SLOT_OF[word] == slot for slot, words in grammar.SLOTS.items() for word in words)
    assert len(SLOT_OF) == 64
