"""The tokenizer: what goes in comes out again, to the last space."""

import pytest
from transformers import AutoTokenizer

from rlhf_lib.worlds.tiny_tldr import mixture
from rlhf_lib.worlds.tiny_tldr.tokenizer import EOS, PAD, UNK, make_tokenizer, vocabulary
from rlhf_lib.worlds.tiny_tldr.world import TinyTLDR

WORLD = TinyTLDR(0)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def texts():
    posts = WORLD.posts("test", 2000)
    return [post.prompt for post in posts] + [f" {WORLD.reference(post)}" for post in posts]


def test_round_trip(tokenizer, texts):
    """Rejects a word without a token, a space that is lost or added, and a newline that becomes a space."""
    rows = tokenizer(texts).input_ids
    assert tokenizer.unk_token_id not in {token for row in rows for token in row}
    assert tokenizer.batch_decode(rows) == texts


def test_round_trip_of_the_mixture(tokenizer):
    """Rejects a verdict, a mark or a reaction that the tokenizer cannot write."""
    for index in range(100):
        post, comments = mixture._document(0, index)
        for segments in [[(post.prompt, 1.0)], *comments]:
            text = "".join(part for part, _ in segments)
            row = [token for part, _ in segments for token in tokenizer(part).input_ids]
            assert tokenizer.unk_token_id not in row
            assert tokenizer.decode(row) == text
            assert tokenizer(text).input_ids == row


def test_ids_are_places(tokenizer):
    """Rejects ids that differ from the shipped models': special tokens first, one place for each word."""
    words = vocabulary()
    assert [words[0], words[1], words[2]] == [PAD, EOS, UNK]
    assert len(set(words)) == len(words) == len(tokenizer)
    assert tokenizer.convert_tokens_to_ids(words) == list(range(len(words)))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.padding_side == "right"


def test_every_word_is_used(tokenizer, texts):
    """Rejects a vocabulary with words that no text of the world has: weights that nothing ever trains."""
    documents = ["".join(text for text, _ in comment) for n in range(300) for comment in mixture._document(0, n)[1]]
    used = {token for row in tokenizer(texts + documents).input_ids for token in row}
    unused = set(range(len(tokenizer))) - used
    assert unused == {tokenizer.pad_token_id, tokenizer.unk_token_id}


def test_eos_is_a_token_that_is_never_added(tokenizer):
    """Rejects an EOS behind every prompt, which would end each summary before it starts, and one read as text."""
    assert tokenizer.eos_token_id not in tokenizer(WORLD.posts("test", 1)[0].prompt).input_ids
    assert tokenizer(f" boss{EOS}").input_ids == [vocabulary().index(" boss"), tokenizer.eos_token_id]


def test_saved_and_loaded(tokenizer, texts, tmp_path):
    """Rejects a folder that plain `AutoTokenizer` reads differently: other ids, other spaces, other special tokens."""
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    rows = tokenizer(texts).input_ids
    assert loaded(texts).input_ids == rows
    assert loaded.batch_decode(rows[:50]) == texts[:50]
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.padding_side == tokenizer.padding_side
