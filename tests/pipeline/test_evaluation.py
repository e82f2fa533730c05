"""Before and after, worked by hand."""

import pytest
import torch

from rlhf_lib.engine import models
from rlhf_lib.pipeline.evaluation import by_reward_model, compare_policies, describe, win_rates
from rlhf_lib.pipeline.texts import PromptStream, Summary, judge_samples, make_prompts, reference_texts, write_summaries
from rlhf_lib.worlds.tiny_tldr import pretrain
from rlhf_lib.worlds.tiny_tldr.posts import Post
from rlhf_lib.worlds.tiny_tldr.world import ASSETS, TinyTLDR
from tests.pipeline.runs import small_run

WORLD = TinyTLDR(0)


def written(golds: list[float], lengths: list[int]) -> list[Summary]:
    return [Summary(" ".join(["my"] * length), True, gold) for gold, length in zip(golds, lengths, strict=True)]


SIDES = {
    "policy": written([4, 2, 1, 3, 4], [5, 5, 5, 5, 9]),
    "sft": written([3, 2, 2, 3, 1], [5, 6, 3, 5, 5]),
    "reference": written([4, 4, 0, 4, 4], [5, 5, 5, 5, 5]),
}


def test_win_rates_by_hand(tmp_path):
    """Rejects ties that count whole or not at all, the other side's wins, and a match by the wrong pair of lengths.

    Against SFT: 1, 1/2, 0, 1/2, 1. Lengths differ by 0, 1, 2, 0, 4 words, so rows 0, 1 and 3 are matched.
    Against the references: 1/2, 0, 1, 0, 1/2.
    """
    found = win_rates(small_run(tmp_path), SIDES)
    assert found["win_rate_vs_sft"] == pytest.approx(3 / 5)
    assert found["win_rate_vs_sft_length_matched"] == pytest.approx(2 / 3)
    assert found["length_matched_posts"] == 3
    assert found["win_rate_vs_reference"] == pytest.approx(2 / 5)
    low, high = found["win_rate_vs_sft_interval"]
    assert 0 <= low < 3 / 5 < high <= 1


def test_matched_length_is_a_setting(tmp_path):
    """Rejects a width that is fixed, and a mean of nothing."""
    exactly = win_rates(small_run(tmp_path, "evaluation.matched_length=0"), SIDES)
    assert exactly["length_matched_posts"] == 2
    assert exactly["win_rate_vs_sft_length_matched"] == pytest.approx(3 / 4)
    none = win_rates(small_run(tmp_path), SIDES | {"sft": written([0] * 5, [1] * 5)})
    assert none["length_matched_posts"] == 0
    assert none["win_rate_vs_sft_length_matched"] is None


def test_describe_by_hand():
    """Rejects sums for means, copying measured against the reference, and lengths that count tokens of the prompt.

    Post 1: the reference word for word, ROUGE-L 1. Post 2: of its 3 words and the reference's 2 one is common, 2 / 5;
    and 2 of 3 words in common with the title are less than the 80 % that make a copy.
    """
    facts = dict(who="boss", did="sold", what="bike", ask="sue")
    titles = ("am i wrong", "uncle again !")
    posts = [Post(subreddit="s", title=title, body="", facts=facts, aside={}) for title in titles]
    summaries = [Summary("my boss sold my bike", True, 3.0), Summary("my uncle again", False, -1.0)]
    found = describe(posts, summaries, ["my boss sold my bike", "uncle hid"])
    assert found == pytest.approx(
        dict(gold=1.0, rouge_l=(1 + 2 / 5) / 2, title_copy_rate=0, repetition_rate=0, response_length=4, eos_rate=0.5)
    )
    copied = describe(posts, [Summary("am i wrong", True, 1.0), Summary("uncle again", True, 0.0)], ["boss", "boss"])
    assert copied["title_copy_rate"] == 1.0
    assert copied["rouge_l"] == 0
    said_twice = Summary("my boss sold my boss sold", True, 1.0)
    assert describe(posts, [said_twice, summaries[1]], ["boss", "boss"])["repetition_rate"] == 1 / 2


@pytest.fixture(scope="module")
def policy():
    return pretrain.new_base(WORLD.tokenizer).eval()


def test_judged_samples(policy, tmp_path):
    """Rejects a response with prompt or padding in it, and a gold score that is another row's."""
    posts = WORLD.posts("test", 40)
    summaries = list(write_summaries(small_run(tmp_path), policy, posts, "test", temperature=1.0))
    assert len(summaries) == 40
    for post, summary in zip(posts, summaries, strict=True):
        assert summary.text == summary.text.strip()
        assert "<" not in summary.text.replace("<unk>", "")
        assert summary.gold == WORLD.gold(post, summary.text, finished=summary.finished)
        assert len(WORLD.encode_summaries([summary.text], finished=[summary.finished])[0]) <= 12 or "\n" in summary.text
    assert {summary.finished for summary in summaries} == {True, False} or not any(s.finished for s in summaries)


def test_many_posts_are_written_in_parts(policy, tmp_path):
    """Rejects a part that is dropped, doubled or out of order. Greedy: no randomness depends on the cut."""
    run, posts = small_run(tmp_path), WORLD.posts("test", 7)
    whole = list(write_summaries(run, policy, posts, "test", temperature=0.0))
    in_parts = small_run(tmp_path, "world.sampled_at_once=3")
    assert list(write_summaries(in_parts, policy, posts, "test", temperature=0.0)) == whole


def test_the_prompts_of_ppo():
    """Rejects posts that are met twice, and a judge who looks at the batch before."""
    stream = PromptStream(WORLD, "ppo", batch_size=4, updates=3)
    posts = WORLD.posts("ppo", 12)
    references = [WORLD.reference(post) for post in posts]
    for update, prompts in enumerate(stream.batches()):
        here = slice(4 * update, 4 * update + 4)
        assert torch.equal(prompts.tokens, make_prompts(WORLD, posts[here]).tokens)
        samples = reference_texts(WORLD, posts[here])
        gold = [WORLD.gold(post, text, finished=True) for post, text in zip(posts[here], references[here], strict=True)]
        assert stream.judge(samples).tolist() == gold
        assert [summary.text for summary in judge_samples(WORLD, posts[here], samples)] == references[here]
    assert update == 2
    resumed = next(stream.batches(start=2))
    assert torch.equal(resumed.tokens, prompts.tokens)


def test_several_samples_of_each_prompt():
    """Rejects posts that are left out or met in two updates, other orders, and a judge of the wrong posts."""
    stream = PromptStream(WORLD, "ppo", batch_size=6, samples_per_prompt=3, updates=2)
    posts = WORLD.posts("ppo", 4)
    for (first, second), prompts in zip([posts[:2], posts[2:]], stream.batches(), strict=True):
        repeated = [first] * 3 + [second] * 3
        assert torch.equal(prompts.tokens, make_prompts(WORLD, repeated).tokens)
        gold = [WORLD.gold(post, WORLD.reference(post), finished=True) for post in repeated]
        assert stream.judge(reference_texts(WORLD, repeated)).tolist() == gold


def test_without_a_human_the_reward_model_judges(tmp_path, monkeypatch):
    """Rejects scores of other texts than were written, an offset that is forgotten, and a NaN in the report."""
    monkeypatch.setattr(TinyTLDR, "gold", lambda *_, **__: float("nan"))
    scorer = models.scorer_from_policy(models.load_policy(ASSETS / "sft"), seed=0)
    scorer.config.reward_offset = 0.25
    run = small_run(tmp_path, "evaluation.posts=3")
    for name, model in {"sft": "sft", "policy": "base"}.items():
        run.save(name, models.load_policy(ASSETS / model))
    run.save("reward_model", scorer)
    numbers, rows = compare_policies(run, by_reward_model)
    tokens = WORLD.tokenizer(rows[0]["prompt"] + " " + rows[0]["sft"]["text"]).input_ids
    tokens += [WORLD.tokenizer.eos_token_id] * rows[0]["sft"]["finished"]
    expected = scorer(torch.tensor([tokens])).logits.item() - 0.25
    assert rows[0]["sft"]["score"] == pytest.approx(expected, abs=1e-4)
    assert numbers["sft"]["score"] == pytest.approx(sum(row["sft"]["score"] for row in rows) / 3, abs=1e-6)
    assert "gold" not in numbers["sft"] | numbers["ppo"] | numbers["reference"] | rows[0]["sft"]
    wins = [(row["policy"]["score"] > row["sft"]["score"]) for row in rows]
    assert numbers["ppo"]["win_rate_vs_sft"] == pytest.approx(sum(wins) / 3)
