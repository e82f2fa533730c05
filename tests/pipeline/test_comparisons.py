"""Preference data: the reader's noise, the bookkeeping of pairs, and the accuracy that a model can reach."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rlhf_lib.algorithms.reward_model import RewardModelConfig
from rlhf_lib.engine import models
from rlhf_lib.pipeline import comparisons
from rlhf_lib.pipeline.settings import PreferencesConfig
from rlhf_lib.pipeline.texts import Summary
from rlhf_lib.worlds.tiny_tldr import pretrain
from rlhf_lib.worlds.tiny_tldr.posts import Dice
from rlhf_lib.worlds.tiny_tldr.summaries import title_agreement
from rlhf_lib.worlds.tiny_tldr.world import TinyTLDR
from tests.pipeline.runs import small_run

WORLD = TinyTLDR(0)
# Two posts with golds chosen by hand; the second has a tie. Texts differ, so that each is recognised.
ROWS = [
    dict(prompt=WORLD.posts("test", 1)[0].prompt, summaries=["my boss", "uncle", "my uncle hid"],
         finished=[True, True, False], gold=[3.0, 1.0, 2.0], appeal=[2.4, 0.8, 1.6], pairs=[[0, 1], [2, 0], [1, 2]]),
    dict(prompt=WORLD.posts("test", 2)[1].prompt, summaries=["my tent", "my bike"],
         finished=[True, True], gold=[2.5, 2.5], appeal=[2.0, 2.0], pairs=[[1, 0]]),
]  # fmt: skip


class Scorer(nn.Module):
    """A model that has learnt by heart what to say of each text of ROWS, wherever its last token is."""

    def __init__(self, opinion):
        super().__init__()
        prompts = WORLD.tokenizer([row["prompt"] for row in ROWS for _ in row["summaries"]]).input_ids
        summaries = [one for row in ROWS for one in WORLD.encode_summaries(row["summaries"], finished=row["finished"])]
        gold = [value for row in ROWS for value in row["gold"]]
        self.known = {(*p, *s): opinion(value) for p, s, value in zip(prompts, summaries, gold, strict=True)}
        self.config, self.score, self.base_model = SimpleNamespace(), nn.Identity(), self.states

    def states(self, input_ids, use_cache):
        """Its opinion stands at the last token of a text; anything read elsewhere is nan."""
        states = torch.full((*input_ids.shape, 1), torch.nan)
        for row, tokens in enumerate(input_ids.tolist()):
            for end in range(1, len(tokens) + 1):
                states[row, end - 1] = self.known.get(tuple(tokens[:end]), torch.nan)
        return SimpleNamespace(last_hidden_state=states)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("a", "b"), [(2.4, 0.8), (0.8, 2.4), (2, 2), (1.2, -0.3)])
def test_the_reader_is_bradley_and_terrys(a, b):
    """Rejects another curve than the sigmoid, and a choice that is the wrong way round: over 4,000 readers."""
    choices = [list(comparisons._choices([a, b], Dice("reader", n))) for n in range(4000)]
    share = sum(choice == [[0, 1]] for choice in choices) / 4000
    assert comparisons.preference(a, b) == pytest.approx(sigmoid(a - b))
    assert share == pytest.approx(sigmoid(a - b), abs=0.025)


def test_appeal_by_hand():
    """Rejects a scale or a bias that is left out or divides, and agreement with the facts in place of the title."""
    post = replace(
        WORLD.posts("test", 1)[0], title="my boss sold my bike", facts=dict(who="boss", did="sold", what="car")
    )
    skims = PreferencesConfig(label_scale=0.5, title_bias=9.0)
    for text, agreement in {"boss sold my car": 2 / 3, "bike": 1 / 3, "my car": 0.0}.items():
        assert comparisons.appeal(post, Summary(text, True, 3.0), skims) == pytest.approx(1.5 + 9 * agreement)
    likes_length = PreferencesConfig(label_scale=0.5, length_bias=0.25)
    for text, words in {"boss sold my car": 4, "bike": 1, "": 0, " a , ? ": 3}.items():
        assert comparisons.appeal(post, Summary(text, True, 3.0), likes_length) == pytest.approx(1.5 + 0.25 * words)


def test_readers_who_skim(tmp_path):
    """Rejects a `title_bias` that never reaches the reader: at a large one the title decides, whatever is true."""
    policy = models.load_policy(WORLD.base_folder)
    run = small_run(tmp_path, "preferences.title_bias=10000")
    rows = list(comparisons.label(run, policy, "preferences", 20))
    posts = {post.prompt: post for post in WORLD.posts("preferences", 20)}
    disagreements = 0
    for row in rows:
        agreement = [title_agreement(posts[row["prompt"]], text) for text in row["summaries"]]
        assert all(agreement[chosen] >= agreement[rejected] for chosen, rejected in row["pairs"])
        disagreements += sum(row["gold"][chosen] < row["gold"][rejected] for chosen, rejected in row["pairs"])
    assert disagreements > 0


def test_every_pair_is_shown_to_a_reader_of_its_own():
    """Rejects a pair left out or shown twice, and one draw for all pairs of a post (labels would be correlated)."""
    answers = [list(comparisons._choices([2.0] * 3, Dice("reader", n))) for n in range(400)]
    for pairs in answers:
        assert {frozenset(pair) for pair in pairs} == {frozenset(pair) for pair in itertools.combinations(range(3), 2)}
    assert len({tuple(map(tuple, pairs)) for pairs in answers}) == 8


def test_summaries_without_a_word(tmp_path, monkeypatch):
    """Rejects an empty summary that comes back as an unknown word, one taken from the next post, and a lone summary."""
    texts = ["a", "", "b", "c", "", "", "d", "e", "f"]  # three summaries of three posts
    written = (Summary(text, True, 1.0) for text in texts)
    monkeypatch.setattr(comparisons, "write_summaries", lambda *_, **__: written)
    first, third = comparisons.label(small_run(tmp_path), None, "preferences", 3)
    posts = WORLD.posts("preferences", 3)
    assert (first["prompt"], first["summaries"]) == (posts[0].prompt, ["a", "b"])
    assert (third["prompt"], third["summaries"]) == (posts[2].prompt, ["d", "e", "f"])
    assert [len(row["pairs"]) for row in (first, third)] == [1, 3]


def test_labelled_rows(tmp_path):
    """Rejects a summary that lies with another post's row, and a gold score that is not the text's."""
    run = small_run(tmp_path, "preferences.samples_per_post=3")
    rows = list(comparisons.label(run, pretrain.new_base(WORLD.tokenizer).eval(), "preferences", 5))
    posts = WORLD.posts("preferences", 5)
    assert [row["prompt"] for row in rows] == [post.prompt for post in posts]
    assert len({text for row in rows for text in row["summaries"]}) == 15  # each sampled with randomness of its own
    for post, row in zip(posts, rows, strict=True):
        texts = zip(row["summaries"], row["finished"], strict=True)
        assert row["gold"] == [WORLD.gold(post, text, finished=ended) for text, ended in texts]
        assert {frozenset(pair) for pair in row["pairs"]} == {frozenset({0, 1}), frozenset({0, 2}), frozenset({1, 2})}
    assert any(not ended for row in rows for ended in row["finished"])


def test_a_reader_without_noise(tmp_path):
    """Rejects a `label_scale` that never reaches the reader: at a large one nobody errs, at a tiny one many do."""
    policy, errors = pretrain.new_base(WORLD.tokenizer).eval(), {}
    for scale in (1000, 0.001):
        run = small_run(tmp_path, f"preferences.label_scale={scale}")
        rows = list(comparisons.label(run, policy, "preferences", 20))
        errors[scale] = sum(row["gold"][a] < row["gold"][b] for row in rows for a, b in row["pairs"])
    assert errors[1000] == 0
    assert errors[0.001] > 5


def test_pairs_point_at_their_texts():
    """Rejects places counted within a post where they should count over the batch, and chosen swapped with rejected."""
    batch = comparisons.compare(WORLD, ROWS)
    starts, ends = batch.texts.prompt_lengths.tolist(), batch.texts.sequence_lengths.tolist()
    rows = batch.texts.tokens.tolist()
    written = [WORLD.tokenizer.decode(row[a:b]) for row, a, b in zip(rows, starts, ends, strict=True)]
    assert written == [" my boss<eos>", " uncle<eos>", " my uncle hid", " my tent<eos>", " my bike<eos>"]
    assert batch.texts.has_eos.tolist() == [True, True, False, True, True]
    assert (batch.chosen.tolist(), batch.rejected.tolist()) == ([0, 2, 1, 4], [1, 0, 2, 3])
    prompts = [WORLD.tokenizer.decode(row[:a]) for row, a in zip(rows, starts, strict=True)]
    assert prompts == [ROWS[0]["prompt"]] * 3 + [ROWS[1]["prompt"]] * 2


@pytest.mark.parametrize(("rows", "size", "steps"), [(10, 4, 5), (3, 4, 6), (6, 3, 1)])
def test_each_row_once_a_pass(rows, size, steps):
    """Rejects draws with replacement, a remainder that is thrown away, a fixed order, and a batch too many."""
    posts = WORLD.posts("test", rows)
    data = [ROWS[0] | dict(prompt=post.prompt) for post in posts]
    config = RewardModelConfig(steps=steps, posts_per_batch=size)
    seen = []
    for batch in comparisons.batches(WORLD, data, config, seed=0):
        assert len(batch.texts.tokens) == 3 * size
        for row, length in zip(batch.texts.tokens.tolist()[::3], batch.texts.prompt_lengths.tolist()[::3], strict=True):
            seen.append(WORLD.tokenizer.decode(row[:length]))
    assert len(seen) == steps * size
    passes = [seen[start : start + rows] for start in range(0, len(seen), rows)]
    for one in passes:
        assert len(set(one)) == len(one)
    assert all(set(one) == {post.prompt for post in posts} for one in passes if len(one) == rows)
    assert len(passes) == 1 or passes[0] != passes[1][: len(passes[0])]


def test_another_seed_another_order():
    """Rejects an order that all seeds share."""
    data = [ROWS[0] | dict(prompt=post.prompt) for post in WORLD.posts("test", 12)]
    config = RewardModelConfig(steps=1, posts_per_batch=12)
    first, second = (next(comparisons.batches(WORLD, data, config, seed=seed)).texts.tokens for seed in (0, 1))
    assert not torch.equal(first, second)


# By hand, label_scale 0.8. Pairs (chosen, rejected) have golds (3, 1), (2, 3), (1, 2) and a tie: P(reader prefers the
# better one) is sigmoid(1.6), sigmoid(0.8), sigmoid(0.8) and 1/2, whatever was chosen.
CEILING = (sigmoid(1.6) + 2 * sigmoid(0.8) + 0.5) / 4


@pytest.mark.parametrize(
    ("opinion", "accuracy"),
    [
        (lambda gold: gold, CEILING),
        (lambda gold: 100 * gold - 7, CEILING),  # only the order counts
        (lambda gold: -gold, 1 - CEILING),
        (lambda gold: 1.0, 0.5),
        # calls 2 better than 3, right otherwise
        (lambda gold: 3.5 if gold == 2 else gold, (sigmoid(1.6) + sigmoid(-0.8) + sigmoid(0.8) + 0.5) / 4),
    ],
)
def test_accuracy_by_hand(tmp_path, opinion, accuracy):
    """Rejects agreement with the noisy label in place of its expectation, ties that count whole, and a ceiling of 1."""
    found = comparisons.accuracy(small_run(tmp_path), Scorer(opinion), ROWS)
    assert found["accuracy_ceiling"] == pytest.approx(CEILING, abs=1e-12)
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert found["held_out_pairs"] == 4
