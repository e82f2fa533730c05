"""Before and after: SFT and PPO policies on the same held-out posts, judged by gold, ROUGE-L and copying."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from ..engine import models
from ..engine.evaluation import bootstrap_interval, is_copy, rouge_l, wins
from ..worlds.tiny_tldr.posts import Post
from .run import Run
from .texts import Summary, write_summaries


def compare_policies(run: Run) -> tuple[dict, list[dict]]:
    """The numbers for the report, and one row a post with what everybody wrote."""
    config, world = run.settings.evaluation, run.world
    posts = world.posts("test", config.posts)
    written = {}
    for name in ("sft", "policy"):
        policy = models.freeze(run.policy(name))
        written[name] = list(write_summaries(run, policy, posts, "test", temperature=config.temperature))
    references = [world.reference(post) for post in posts]
    written["reference"] = [
        Summary(text, True, world.gold(post, text, finished=True)) for post, text in zip(posts, references, strict=True)
    ]
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
            **{name: asdict(one[row]) for name, one in written.items()},
        )
        for row, post in enumerate(posts)
    ]
    return numbers, rows


def describe(posts: list[Post], summaries: list[Summary], references: list[str]) -> dict[str, float]:
    """Means over the posts; lengths in words, EOS not counted."""
    count = len(posts)
    return dict(
        gold=sum(summary.gold for summary in summaries) / count,
        rouge_l=sum(rouge_l(summary.text, reference) for summary, reference in zip(summaries, references, strict=True))
        / count,
        title_copy_rate=sum(is_copy(summary.text, post.title) for summary, post in zip(summaries, posts, strict=True))
        / count,
        response_length=sum(len(summary.text.split()) for summary in summaries) / count,
        eos_rate=sum(summary.finished for summary in summaries) / count,
    )


def win_rates(run: Run, written: dict[str, list[Summary]]) -> dict[str, object]:
    """By gold score, ties count half. Matched length: only posts where the two differ by few words."""
    config, seed = run.settings.evaluation, run.settings.seed
    against_sft = wins(_gold(written["policy"]), _gold(written["sft"]))
    difference = (_lengths(written["policy"]) - _lengths(written["sft"])).abs()
    matched = against_sft[difference <= config.matched_length]
    return dict(
        win_rate_vs_sft=float(against_sft.mean()),
        win_rate_vs_sft_interval=list(bootstrap_interval(against_sft, resamples=config.bootstrap, seed=seed)),
        win_rate_vs_sft_length_matched=float(matched.mean()) if len(matched) else None,
        length_matched_posts=len(matched),
        win_rate_vs_reference=float(wins(_gold(written["policy"]), _gold(written["reference"])).mean()),
    )


def _gold(summaries: list[Summary]) -> Tensor:
    return torch.tensor([summary.gold for summary in summaries])


def _lengths(summaries: list[Summary]) -> Tensor:
    return torch.tensor([len(summary.text.split()) for summary in summaries])
