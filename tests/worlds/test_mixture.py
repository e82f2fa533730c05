"""The pre-training mixture: who sees whom, what is learnt, and whether the readers tell the truth."""

from itertools import pairwise
from statistics import mean

import pytest
import torch

from rlhf_lib.worlds.tiny_tldr import grammar, mixture, pretrain
from rlhf_lib.worlds.tiny_tldr.posts import Dice
from rlhf_lib.worlds.tiny_tldr.summaries import SLOT_OF, judge
from rlhf_lib.worlds.tiny_tldr.tokenizer import EOS, make_tokenizer
from tests.helpers import bools

DOCUMENTS = [mixture._document(0, index) for index in range(300)]
# Two hand-made documents as _pack takes them: (ids, weights) of the post and of each comment.
POST, FIRST, SECOND = ([5, 6, 7], [0.1, 0.2, 0.3]), ([8, 9], [1.0, 3.0]), ([10, 11, 12], [4.0, 0.0, 5.0])
SHORT = [([5, 6], [0.1, 0.2]), ([8], [6.0])]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return pretrain.new_base(tokenizer).eval()


@torch.no_grad()
def logits(model, blocks) -> list[torch.Tensor]:
    """One [block, V] tensor a block of a packed document."""
    batch = mixture._pack([blocks])
    out = model(input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.mask).logits[0]
    return list(out.split([len(ids) for ids, _ in blocks]))


def test_packed_by_hand():
    """Rejects a target that crosses from one comment to the next, and a weight that goes with the wrong token.

    The post's last token (7) is followed by the first comment (8); the last of a comment by nothing that counts.
    """
    batch = mixture._pack([[POST, FIRST, SECOND], SHORT])
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12], [5, 6, 8, 0, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5], [0, 1, 2, 0, 0, 0, 0, 0]]
    weights = torch.tensor([[0.2, 0.3, 1, 3, 0, 0, 5, 0], [0.2, 6, 0, 0, 0, 0, 0, 0]])
    assert torch.equal(batch.weights, weights)
    assert batch.targets[0, [0, 1, 2, 3, 6]].tolist() == [6, 7, 8, 9, 12]
    assert batch.targets[1, :2].tolist() == [6, 8]


def test_visible_by_hand():
    """Rejects a comment that reads its neighbour, a post that reads a comment, a row of padding without an entry (its
    softmax is NaN), and padding that is read by others.
    """
    mask = mixture._pack([[([5, 6], [0, 0]), ([7, 8], [0, 0]), ([9], [0])], SHORT]).mask
    assert mask.shape == (2, 1, 5, 5)
    assert torch.equal(mask[0, 0], bools("x....", "xx...", "xxx..", "xxxx.", "xx..x"))
    assert torch.equal(mask[1, 0, :3], bools("x....", "xx...", "xxx.."))
    assert torch.equal(mask[1, 0, 3:, 3:], bools("x.", ".x"))


def test_comments_do_not_see_each_other(model):
    """Rejects a leak through mask or positions: another word in comment 2 moves no logit of post, comment 1 or 3."""
    third = ([13, 14], [1.0, 1.0])
    before = logits(model, [POST, FIRST, SECOND, third])
    after = logits(model, [POST, FIRST, ([10, 20, 12], SECOND[1]), third])
    for block in (0, 1, 3):
        assert torch.equal(before[block], after[block])
    assert torch.equal(before[2][0], after[2][0])  # before the word
    assert not torch.allclose(before[2][1:], after[2][1:], atol=1e-3)


def test_packed_as_if_alone(model, tokenizer):
    """Rejects positions that go on where the comment before ended: each comment is read as if it stood alone."""
    blocks = mixture._encode(tokenizer, *DOCUMENTS[0])
    for block, packed in zip(blocks[1:], logits(model, blocks)[1:], strict=True):
        ids = torch.tensor([blocks[0][0] + block[0]])
        with torch.no_grad():
            alone = model(input_ids=ids).logits[0, len(blocks[0][0]) :]
        torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_a_batch_is_its_documents(tokenizer):
    """Rejects a batch that starts anywhere but at `start`, and documents that depend on the batch."""
    batch = mixture.make_batch(tokenizer, 0, 5, 3)
    blocks = mixture._encode(tokenizer, *mixture._document(0, 6))
    ids = [token for of_block, _ in blocks for token in of_block]
    assert batch.tokens[1, : len(ids)].tolist() == ids
    assert len(batch.tokens) == 3


def test_what_counts(tokenizer):
    """Rejects a loss on the slot names, which are drawn at random, and judgements that weigh no more than words."""
    weight_of = {"post": set(), "slot name": set(), "judgement": set(), "word": set()}
    judgements = {*grammar.REACTIONS, *grammar.VERDICTS}
    for post, comments in DOCUMENTS[:20]:
        blocks = mixture._encode(tokenizer, post, comments)
        weight_of["post"] |= set(blocks[0][1])
        for segments in comments[:-3]:  # the summaries
            for text, weight in segments:
                is_name, is_judgement = text.endswith(":"), text.strip() in judgements
                weight_of["slot name" if is_name else "judgement" if is_judgement else "word"].add(weight)
    assert weight_of == {"post": {0.1}, "slot name": {0.0}, "judgement": {3.0}, "word": {1.0}}


def summary_comments():
    """(post, summary, reaction, verdict of each slot) of every comment of this kind."""
    for post, comments in DOCUMENTS:
        for (summary, _), (end, _), (reaction, _), *verdicts in comments[: mixture.SUMMARIES]:
            assert end == EOS
            names, said = [text[1:-1] for text, _ in verdicts[::2]], [text[1:] for text, _ in verdicts[1::2]]
            yield post, summary.strip(), reaction.strip(), dict(zip(names, said, strict=True))


def test_verdicts():
    """Rejects a reader who says "right" of a made-up word, or overlooks a claim: `judge` of one slot's words agrees."""
    seen = set()
    for post, summary, _, verdicts in summary_comments():
        assert set(verdicts) == set(grammar.SLOTS)
        for slot, verdict in verdicts.items():
            gold = judge(post, " ".join(word for word in summary.split() if SLOT_OF.get(word) == slot))
            assert verdict == ("wrong" if gold.invented else "right" if gold.covered else "missing")
            seen.add(verdict)
    assert seen == set(grammar.VERDICTS)


def test_reactions():
    """Rejects votes without noise, with too much of it, or by another score than gold.

    A vote is the level of the gold score, from awful (below -0.5) to great (4); a tenth of them lies one too high and
    as many one too low, unless there is no such level.
    """
    off = []
    for post, summary, reaction, _ in summary_comments():
        level = min(max(round(judge(post, summary).score) + 1, 0), 5)
        if 0 < level < 5:
            off.append(grammar.REACTIONS.index(reaction) - level)
    assert set(off) == {-1, 0, 1}
    assert mean(o == 1 for o in off) == pytest.approx(mixture.NOISE, abs=0.03)
    assert mean(o == -1 for o in off) == pytest.approx(mixture.NOISE, abs=0.03)


def test_quotes_and_facts():
    """Rejects a mark behind the wrong word, and a list of facts that is not the post's."""
    for post, comments in DOCUMENTS:
        facts, *quotes = comments[mixture.SUMMARIES :]
        listed = zip(facts[::2], facts[1::2], strict=True)
        assert {name[1:-1]: word[1:] for (name, _), (word, _) in listed} == post.facts
        assert len(quotes) == mixture.QUOTES
        for quote in quotes:
            words = [text.strip() for text, _ in quote]
            assert words[-1] == EOS
            claims = [(word, mark) for word, mark in pairwise(words) if word in SLOT_OF]
            assert all(mark == ("right" if judge(post, word).covered else "wrong") for word, mark in claims)


def test_blended_summaries_mix_truth_aside_and_invention():
    """Rejects a mixture in which all that is said in the post is true: the aside would never be told from the facts."""
    post = DOCUMENTS[0][0]
    said = [word for n in range(1000) for word in mixture._blended_summary(post, Dice("blend", n)).split()]
    claims = [word for word in said if word in SLOT_OF]
    assert len(claims) / 4000 == pytest.approx(0.85, abs=0.02)  # the rest are vague
    assert mean(word in post.facts.values() for word in claims) == pytest.approx((0.40 + 0.1 / 16) / 0.85, abs=0.03)
    assert mean(word in post.aside.values() for word in claims) == pytest.approx((0.35 + 0.1 / 16) / 0.85, abs=0.03)
