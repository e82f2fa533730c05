"""What a run asks of the world it takes place in: whose posts, in which tokens, from which model it starts.

A world need not have a judge or preferences of its own. How the pipeline fills that gap stands in pipeline/scales.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Post(Protocol):
    """A post: the query that a policy continues, its title, which is tempting to copy, and what is known to be true."""

    facts: dict[str, str]  # may be empty

    @property
    def prompt(self) -> str: ...

    @property
    def title(self) -> str: ...


class World(Protocol):
    """Posts, their reference summaries, and both as token ids.

    context         tokens that the base model can read
    longest_prompt  tokens that a post may take
    base_folder     the model that SFT starts from: a folder, a .gguf file or a name on the Hub
    """

    tokenizer: Any
    context: int
    longest_prompt: int
    base_folder: str | Path

    def posts(self, split: str, count: int, *, start: int = 0) -> Sequence[Any]:
        """Posts `start` to `start + count` of a split; those of "test" and "sft" never overlap."""

    def reference(self, post: Any) -> str:
        """What a human wrote below the post."""

    def gold(self, post: Any, summary: str, *, finished: bool) -> float:
        """What the human thinks of a summary; NaN where there is no human to ask."""

    def encode_prompts(self, posts: Sequence[Any]) -> list[list[int]]:
        """Token ids of the queries."""

    def encode_references(self, posts: Sequence[Any]) -> list[list[int]]:
        """Token ids of the reference summaries, each with the space before it and its EOS."""

    def encode_summaries(
        self, summaries: Sequence[str], *, finished: Sequence[bool] | None = None
    ) -> list[list[int]]: ...
