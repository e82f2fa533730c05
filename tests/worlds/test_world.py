"""The world as the pipeline sees it."""

import pytest

from rlhf_lib.worlds.tiny_tldr.summaries import judge
from rlhf_lib.worlds.tiny_tldr.world import TinyTLDR

WORLD = TinyTLDR(0)
POSTS = WORLD.posts("test", 200)


def test_references_are_stable():
    """Rejects a writer who writes something else each time, or depends on the posts asked for before."""
    references = [WORLD.reference(post) for post in POSTS]
    assert [TinyTLDR(0).reference(post) for post in reversed(POSTS)] == references[::-1]
    assert [TinyTLDR(1).reference(post) for post in POSTS] != references


def test_posts_of_the_worlds_seed():
    """Rejects a world that gives every seed the same posts, or forgets where to start."""
    assert WORLD.posts("test", 3, start=7) == POSTS[7:10]
    assert TinyTLDR(1).posts("test", 1) != POSTS[:1]


def test_gold_knows_whether_the_summary_ended():
    """Rejects a world that drops the flag: an endless summary costs exactly a point."""
    for post in POSTS[:20]:
        summary = WORLD.reference(post)
        assert WORLD.gold(post, summary, finished=True) == judge(post, summary).score
        assert WORLD.gold(post, summary, finished=True) - WORLD.gold(post, summary, finished=False) == 1


def test_encoded_summaries():
    """Rejects an EOS on an unfinished summary, none on a finished one, and a summary glued to its prompt."""
    eos = WORLD.tokenizer.eos_token_id
    summaries = ["my boss sold my bike", "boss", ""]
    rows = WORLD.encode_summaries(summaries, finished=[True, False, True])
    assert [row.count(eos) for row in rows] == [1, 0, 1]
    assert rows[0][-1] == eos
    assert [row[-1] for row in WORLD.encode_summaries(summaries)] == [eos] * 3
    prompt = WORLD.encode_prompts(POSTS[:1])[0]
    assert WORLD.tokenizer.decode(prompt + rows[1]) == f"{POSTS[0].prompt} boss"


def test_a_flag_for_each_summary():
    """Rejects a silent cut to the shorter of the two lists."""
    with pytest.raises(ValueError, match="zip"):
        WORLD.encode_summaries(["boss", "uncle"], finished=[True])
