"""The world as the pipeline sees it."""

import json

import pytest

from rlhf_lib.worlds.tiny_tldr import grammar
from rlhf_lib.worlds.tiny_tldr.summaries import judge
from rlhf_lib.worlds.tiny_tldr.world import TinyTLDR

WORLD = TinyTLDR(0)
POSTS = WORLD.posts("test", 200)


def test_references_are_stable():
    """Rejects a writer who writes something else each time, or depends on the posts asked for before."""
    references = [WORLD.reference(post) for post in POSTS]
    assert [TinyTLDR(0).reference(post) for post in reversed(POSTS)] == references[::-1]
    assert [TinyTLDR(1).reference(post) for post in POSTS] != references


def test_writers_who_say_it_twice():
    """Rejects a share that reaches no writer or every one, a second text, and a first text that the share changes."""
    plain = [WORLD.reference(post) for post in POSTS]
    for share in (0.0, 0.25, 1.0):
        written = [TinyTLDR(0, repetition=share).reference(post) for post in POSTS]
        assert all(text in (once, f"{once} {once}") for text, once in zip(written, plain, strict=True))
        assert sum(map(str.__ne__, written, plain)) / len(POSTS) == pytest.approx(share, abs=0.1)
    assert plain == [TinyTLDR(0, repetition=0.0).reference(post) for post in POSTS]


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


def test_the_longest_prompt():
    """Rejects a bound that some post breaks, and one that no post could reach (room that nobody may use)."""
    fillers, openers = max(map(len_of, grammar.FILLERS)), (grammar.MAIN_OPENERS, grammar.ASIDE_OPENERS)
    clauses = sum(max(map(len_of, options)) + len_of(grammar.CLAUSE) + 1 for options in openers)
    asks = max(map(len_of, grammar.ASKS)) + max(map(len_of, grammar.ASIDE_ASKS))
    title = max(map(len_of, (grammar.TITLE_FULL, *grammar.TITLE_VAGUE)))
    layout = len(WORLD.tokenizer("SUBREDDIT: r/tifu\n\nTITLE:\n\nPOST:\n\nTL;DR:").input_ids)
    assert layout + title + 2 * fillers + clauses + asks == WORLD.longest_prompt
    assert max(map(len, WORLD.encode_prompts(WORLD.posts("test", 2000)))) <= WORLD.longest_prompt


def len_of(sentence: str) -> int:
    return len(WORLD.tokenizer(f" {sentence}".replace("{", "").replace("}", "")).input_ids)


def test_the_shipped_models_read_that_much():
    config = json.loads((WORLD.base_folder / "config.json").read_text())
    assert config["max_position_embeddings"] == WORLD.context
