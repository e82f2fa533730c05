"""Preference data: written by the SFT policy, labelled by a noisy reader, kept as JSON lines.

A row is {"prompt", "summaries", "finished", "gold", "appeal", "pairs"}; "pairs" lists [chosen, rejected] places among
the summaries. The reader prefers a to b with probability sigmoid(appeal a - appeal b) (Bradley and Terry). The appeal
of a summary is label_scale times its gold score and, for readers with a weakness, title_bias times its agreement with
the title or length_bias times its words: what they like need not be what is good.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ..algorithms.reward_model import Comparisons, RewardModelConfig, score_texts
from ..engine import models
from ..engine.sampling import uniforms
from ..worlds.tiny_tldr.posts import Dice, Post
from ..worlds.tiny_tldr.summaries import title_agreement
from ..worlds.world import World
from .inputs import read_comparisons
from .run import Run
from .settings import PreferencesConfig
from .texts import Summary, make_world_texts, write_summaries


class Preferences(Protocol):
    """Comparisons to train a reward model on, and others to measure it by."""

    pairs: int  # to train on

    def batches(self, config: RewardModelConfig, *, seed: int, start: int = 0) -> Iterator[Comparisons]:
        """Batches `start` to `config.steps`, each of `config.posts_per_batch` posts with all their pairs."""

    def accuracy(self, model: nn.Module) -> dict[str, float]:
        """How often readers agree with the model about pairs that it was not trained on."""


def collect(run: Run) -> None:
    """Let the SFT policy write several summaries of each post, and the noisy reader choose in every pair."""
    config = run.settings.preferences
    policy = models.freeze(run.policy("sft"))
    for split, posts in {"preferences": config.posts, "held_out_preferences": config.held_out_posts}.items():
        rows = run.progress(split, label(run, policy, split, posts), posts)
        run.out.write_lines(f"{split}.jsonl", rows)


def load(run: Run) -> Preferences:
    """What `collect` wrote, here or in the run that this one builds on."""
    least = run.settings.reward_model.posts_per_batch
    why = f"fewer than reward_model.posts_per_batch={least}"
    rows = read_comparisons(run.world, run.input("preferences.jsonl"), at_least=least, why=why)
    held_out = read_comparisons(run.world, run.input("held_out_preferences.jsonl"), at_least=1, why="and one is needed")
    return Collected(run, rows, held_out)


@dataclass(frozen=True)
class Collected:
    """`Preferences` that a run has collected itself."""

    run: Run
    rows: list[dict]
    held_out: list[dict]

    @property
    def pairs(self) -> int:
        return sum(len(row["pairs"]) for row in self.rows)

    def batches(self, config: RewardModelConfig, *, seed: int, start: int = 0) -> Iterator[Comparisons]:
        return batches(self.run.world, self.rows, config, seed=seed, start=start)

    def accuracy(self, model: nn.Module) -> dict[str, float]:
        return accuracy(self.run, model, self.held_out)


def label(run: Run, policy: nn.Module, split: str, posts: int) -> Iterator[dict]:
    """Rows for `posts` posts of a split: several summaries of each, and the reader's choice in every pair.

    A summary without a word is left out, and with it a post that has fewer than two others: there is nothing to read.
    """
    config = run.settings.preferences
    of_split = run.world.posts(split, posts)
    repeated = [post for post in of_split for _ in range(config.samples_per_post)]
    written = write_summaries(run, policy, repeated, split, temperature=config.temperature)
    for post in of_split:
        summaries = [summary for summary in itertools.islice(written, config.samples_per_post) if summary.text]
        if len(summaries) < 2:
            continue
        yield dict(
            prompt=post.prompt,
            summaries=[summary.text for summary in summaries],
            finished=[summary.finished for summary in summaries],
            gold=[summary.gold for summary in summaries],
            appeal=(appeals := [appeal(post, summary, config) for summary in summaries]),
            pairs=list(_choices(appeals, Dice("reader", run.settings.seed, post.prompt))),
        )


def appeal(post: Post, summary: Summary, config: PreferencesConfig) -> float:
    """How much readers like a summary, in log-odds."""
    biases = config.title_bias * title_agreement(post, summary.text) + config.length_bias * len(summary.text.split())
    return config.label_scale * summary.gold + biases


def preference(appeal_a: float, appeal_b: float) -> float:
    """P(the reader prefers a to b): the sigmoid, written so that no large difference overflows."""
    return (1 + math.tanh((appeal_a - appeal_b) / 2)) / 2


def batches(
    world: World, rows: list[dict], config: RewardModelConfig, *, seed: int, start: int = 0
) -> Iterator[Comparisons]:
    """Batches `start` to `config.steps` of whole rows, in a new order at every pass."""
    for places in itertools.islice(batches_of_places(len(rows), config.posts_per_batch, seed), start, config.steps):
        yield compare(world, [rows[place] for place in places])


def compare(world: World, rows: list[dict]) -> Comparisons:
    """All summaries of the rows, each once, and the pairs as places among them."""
    prompts = [row["prompt"] for row in rows for _ in row["summaries"]]
    summaries = [text for row in rows for text in row["summaries"]]
    finished = [ended for row in rows for ended in row["finished"]]
    starts = itertools.accumulate((len(row["summaries"]) for row in rows), initial=0)
    pairs = [[a + start, b + start] for row, start in zip(rows, starts, strict=False) for a, b in row["pairs"]]
    chosen, rejected = torch.tensor(pairs).T
    return Comparisons(make_world_texts(world, prompts, summaries, finished), chosen, rejected)


def accuracy(run: Run, model: nn.Module, rows: list[dict]) -> dict[str, float]:
    """How often the reader agrees with the model, and the most that any model could reach, in expectation over readers.

    accuracy          mean probability that the reader prefers the summary with the higher score
    accuracy_ceiling  mean of max(p, 1 - p): the noise of the reader leaves no more
    """
    everything = compare(run.world, rows)
    texts, at_once = run.placed(everything.texts), run.settings.ppo.micro_batch_size
    scores = score_texts(model, texts, micro_batch_size=at_once, parts=run.parts).cpu()
    appeals = torch.tensor([value for row in rows for value in row["appeal"]], dtype=torch.float64)
    prefers = torch.sigmoid(appeals[everything.chosen] - appeals[everything.rejected])
    margin = scores[everything.chosen] - scores[everything.rejected]
    agreement = torch.where(margin > 0, prefers, torch.where(margin < 0, 1 - prefers, 0.5))
    return dict(
        accuracy=float(agreement.mean()),
        accuracy_ceiling=float(torch.maximum(prefers, 1 - prefers).mean()),
        held_out_pairs=len(prefers),
    )


def batches_of_places(rows: int, size: int, seed: int) -> Iterator[list[int]]:
    """Pass after pass over all rows, without end; a last batch that is not full waits for the next pass."""
    waiting: list[int] = []
    for passes in itertools.count():
        waiting += uniforms(seed, "comparisons", passes, rows=1, steps=rows)[0].argsort().tolist()
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]


def _choices(appeals: list[float], reader: Dice) -> Iterator[list[int]]:
    """[chosen, rejected] for every pair of summaries."""
    for a, b in itertools.combinations(range(len(appeals)), 2):
        yield [a, b] if reader.chance(preference(appeals[a], appeals[b])) else [b, a]
