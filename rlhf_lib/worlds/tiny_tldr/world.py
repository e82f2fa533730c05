"""TinyTLDR as the pipeline sees it: posts as token ids, reference summaries, and a judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .posts import Dice, Post, make_posts
from .summaries import judge, reference_summary
from .tokenizer import make_tokenizer

ASSETS = Path(__file__).parent / "assets"


class TinyTLDR:
    """One seed's posts. Splits never overlap, so nothing that is evaluated was trained on.

    repetition  share of the reference summaries that say everything twice
    """

    base_folder: str | Path = ASSETS / "base"
    context = 128  # tokens that the shipped models can read
    longest_prompt = 57  # tokens: every sentence of the grammar at its longest

    def __init__(self, seed: int, *, repetition: float = 0.0):
        self.seed, self.repetition = seed, repetition
        self.tokenizer = make_tokenizer()

    def posts(self, split: str, count: int, *, start: int = 0) -> list[Post]:
        """Posts `start` to `start + count` of a split."""
        return make_posts(self.seed, split, count, start=start)

    def reference(self, post: Post) -> str:
        """What a writer wrote below this post; the same each time."""
        return reference_summary(post, Dice("reference", self.seed, post.prompt), repetition=self.repetition)

    def gold(self, post: Post, summary: str, *, finished: bool) -> float:
        """The score that plays the human: at most 4."""
        return judge(post, summary, finished=finished).score

    def encode_prompts(self, posts: Sequence[Post]) -> list[list[int]]:
        return self.tokenizer([post.prompt for post in posts]).input_ids

    def encode_references(self, posts: Sequence[Post]) -> list[list[int]]:
        return self.encode_summaries([self.reference(post) for post in posts])

    def encode_summaries(self, summaries: Sequence[str], *, finished: Sequence[bool] | None = None) -> list[list[int]]:
        """Token ids with the leading space, and EOS where the summary is finished (everywhere by default)."""
        ends = finished if finished is not None else [True] * len(summaries)
        rows = self.tokenizer([f" {summary}" for summary in summaries]).input_ids
        return [row + [self.tokenizer.eos_token_id] * end for row, end in zip(rows, ends, strict=True)]
