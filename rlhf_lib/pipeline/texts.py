"""Between posts and tensors: prompts, reference texts, sampled summaries and their gold scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..engine.batching import make_texts, pad_rows
from ..engine.sampling import sample, uniforms
from ..maths.records import Prompts, Samples, Texts
from ..worlds.world import Post, World
from .run import Run


@dataclass(frozen=True)
class Summary:
    """What a policy wrote below a post, whether it came to an end, and what it is worth.

    gold   what the human thinks of it; NaN where there is none
    score  what the reward model says, where it stands in for the human in the evaluation; else NaN
    """

    text: str
    finished: bool
    gold: float = math.nan
    score: float = math.nan

    @property
    def worth(self) -> float:
        return self.score if math.isnan(self.gold) else self.gold


def make_prompts(world: World, posts: Sequence[Post]) -> Prompts:
    """The posts as a batch that a policy can continue."""
    return Prompts(*pad_rows(world.encode_prompts(posts), pad_token_id=world.tokenizer.pad_token_id))


def make_world_texts(world: World, prompts: list[str], summaries: list[str], finished: list[bool]) -> Texts:
    """Prompts with given summaries."""
    tokenizer = world.tokenizer
    return make_texts(
        tokenizer(prompts).input_ids,
        world.encode_summaries(summaries, finished=finished),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def reference_texts(world: World, posts: Sequence[Post]) -> Texts:
    """Each post with the summary that its human writer gave it."""
    tokenizer = world.tokenizer
    return make_texts(
        world.encode_prompts(posts),
        world.encode_references(posts),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def write_summaries(
    run: Run, policy: nn.Module, posts: Sequence[Post], *key: object, temperature: float
) -> Iterator[Summary]:
    """A summary of each post. Under the same key all policies draw with the same randomness."""
    tokenizer, world, steps = run.world.tokenizer, run.world, run.settings.ppo.response_length
    at_once = run.settings.world.sampled_at_once
    for start in range(0, len(posts), at_once):
        here = posts[start : start + at_once]
        prompts = run.placed(make_prompts(world, here))
        randomness = uniforms(run.settings.seed, *key, start, rows=len(here), steps=steps)
        samples = sample(
            policy, prompts.tokens, prompts.lengths, randomness,
            temperature=temperature, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        yield from judge_samples(world, here, samples)


def judge_samples(world: World, posts: Sequence[Post], samples: Samples) -> Iterator[Summary]:
    """The sampled responses as text, each with its gold score."""
    spans = zip(
        samples.tokens.tolist(), samples.prompt_lengths.tolist(), samples.sequence_lengths.tolist(), strict=True
    )
    texts = world.tokenizer.batch_decode([row[start:end] for row, start, end in spans], skip_special_tokens=True)
    for post, text, finished in zip(posts, texts, samples.has_eos.tolist(), strict=True):
        yield Summary(text.strip(), finished, world.gold(post, text, finished=finished))


class PromptStream:
    """A split of the world as batches of prompts, and the judge of what a policy makes of the latest batch."""

    def __init__(self, world: World, split: str, *, batch_size: int, updates: int, samples_per_prompt: int = 1):
        self.world, self.split, self.updates = world, split, updates
        self.posts_per_batch, self.samples_per_prompt = batch_size // samples_per_prompt, samples_per_prompt
        self.posts: Sequence[Post] = ()

    def batches(self, *, start: int = 0) -> Iterator[Prompts]:
        """The prompts of updates `start` to the last; each post is met in one update, `samples_per_prompt` times."""
        count = self.posts_per_batch
        for update in range(start, self.updates):
            posts = self.world.posts(self.split, count, start=update * count)
            self.posts = [post for post in posts for _ in range(self.samples_per_prompt)]
            yield make_prompts(self.world, self.posts)

    def judge(self, samples: Samples) -> Tensor:
        """[B] gold scores."""
        return torch.tensor([summary.gold for summary in judge_samples(self.world, self.posts, samples)])
