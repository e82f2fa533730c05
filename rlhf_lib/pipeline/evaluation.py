"""Before and after: SFT and PPO policies on the same held-out posts, by gold, ROUGE-L, copying and repetition."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from ..algorithms.reward_model import score_texts
from ..engine import models
from ..engine.batching import make_texts
from ..engine.evaluation import bootstrap_interval, is_copy, repeats_itself, rouge_l, wins
from ..worlds.world import Post, World
from .run import Run
from .texts import Summary, write_summaries

Judge = Callable[[Run, Sequence[Post], dict[str, list[Summary]]], dict[str, list[Summary]]]


def compare_policies(run: Run, judge: Judge) -> tuple[dict, list[dict]]:
    """The numbers for the report, and one row a post with what everybody wrote.

    judge  gives a worth to what has none yet
    """
    config, world = run.settings.evaluation, run.world
    posts = world.posts("test", config.posts)
    written = {}
    for name in ("sft", "policy"):
        policy = models.freeze(run.policy(name))
        written[name] = list(write_summaries(run, policy, posts, "test", temperature=config.temperature))
    written["reference"] = list(_references(world, posts))
    references = [summary.text for summary in written["reference"]]
    written = judge(run, posts, written)
    numbers = {
        "sft": describe(posts, written["sft"], references),
        "ppo": {**describe(posts, written["policy"], references), **win_rates(run, written)},
        "reference": describe(posts, written["reference"], references),
    }
    rows = [
        dict(
            prompt=post.prompt,
            title=post.title,
            facts=post.facts,
            **{name: known(one[row]) for name, one in written.items()},
        )
        for row, post in enumerate(posts)
    ]
    return numbers, rows


def _references(world: World, posts: Sequence[Post]) -> Iterator[Summary]:
    """What humans wrote. One that was too long has been cut, and with its end it has lost its EOS."""
    end = world.tokenizer.eos_token_id
    for post, tokens in zip(posts, world.encode_references(posts), strict=True):
        text, finished = world.reference(post), tokens[-1] == end
        yield Summary(text, finished, world.gold(post, text, finished=finished))


def by_gold(run: Run, posts: Sequence[Post], written: dict[str, list[Summary]]) -> dict[str, list[Summary]]:
    """The human has said it all when the summaries were written."""
    return written


def by_reward_model(run: Run, posts: Sequence[Post], written: dict[str, list[Summary]]) -> dict[str, list[Summary]]:
    """Where there is no human, the reward model's scores; what PPO has learned to please, so no proof of quality."""
    scorer = models.freeze(run.scorer("reward_model"))
    return {name: list(_scored(run, scorer, posts, summaries)) for name, summaries in written.items()}


def _scored(run: Run, scorer: nn.Module, posts: Sequence[Post], summaries: list[Summary]) -> Iterator[Summary]:
    world, tokenizer = run.world, run.world.tokenizer
    responses = world.encode_summaries(
        [summary.text for summary in summaries], finished=[summary.finished for summary in summaries]
    )
    texts = make_texts(
        world.encode_prompts(posts), responses,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    scores = score_texts(scorer, run.placed(texts), micro_batch_size=run.settings.ppo.micro_batch_size, parts=run.parts)
    for summary, score in zip(summaries, scores.tolist(), strict=True):
        yield replace(summary, score=score)


def known(summary: Summary) -> dict:
    """The fields of a summary, without the judgement that nobody gave."""
    return {name: value for name, value in asdict(summary).items() if value == value}


def describe(posts: Sequence[Post], summaries: list[Summary], references: list[str]) -> dict[str, float]:
    """Means over the posts; lengths in words, EOS not counted. Gold or score, whichever there is."""
    count = len(posts)
    judged = "score" if math.isnan(summaries[0].gold) else "gold"
    return dict(
        **{judged: sum(summary.worth for summary in summaries) / count},
        rouge_l=sum(rouge_l(summary.text, reference) for summary, reference in zip(summaries, references, strict=True))
        / count,
        title_copy_rate=sum(is_copy(summary.text, post.title) for summary, post in zip(summaries, posts, strict=True))
        / count,
        repetition_rate=sum(repeats_itself(summary.text) for summary in summaries) / count,
        response_length=sum(len(summary.text.split()) for summary in summaries) / count,
        eos_rate=sum(summary.finished for summary in summaries) / count,
    )


def win_rates(run: Run, written: dict[str, list[Summary]]) -> dict[str, object]:
    """By gold, or by the reward model's score where there is none; ties count half.

    Matched length: only posts where the two differ by few words.
    """
    config, seed = run.settings.evaluation, run.settings.seed
    against_sft = wins(_worth(written["policy"]), _worth(written["sft"]))
    difference = (_lengths(written["policy"]) - _lengths(written["sft"])).abs()
    matched = against_sft[difference <= config.matched_length]
    return dict(
        win_rate_vs_sft=float(against_sft.mean()),
        win_rate_vs_sft_interval=list(bootstrap_interval(against_sft, resamples=config.bootstrap, seed=seed)),
        win_rate_vs_sft_length_matched=float(matched.mean()) if len(matched) else None,
        length_matched_posts=len(matched),
        win_rate_vs_reference=float(wins(_worth(written["policy"]), _worth(written["reference"])).mean()),
    )


def _worth(summaries: list[Summary]) -> Tensor:
    return torch.tensor([summary.worth for summary in summaries])


def _lengths(summaries: list[Summary]) -> Tensor:
    return torch.tensor([len(summary.text.split()) for summary in summaries])
