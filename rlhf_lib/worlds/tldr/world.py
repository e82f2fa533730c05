"""TL;DR as the pipeline sees it: posts of the data as token ids, again and again, each pass in another order.

Nobody is there to judge a new summary, and the preferences are those that people gave long ago: gold is NaN, and
`preferences` are comparisons as the data have them.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from ...engine.files import DamagedError
from ...engine.loading import load_config, load_tokenizer
from ...engine.sampling import uniforms
from .. import layout
from .cache import cache_folder, load_split
from .encoding import encode_texts
from .rows import PREFERENCES, SFT, Kind
from .tokenised import Tokenised

SPLITS = {"sft": "train", "ppo": "train", "test": "test"}  # of the data, by what the pipeline calls them


@dataclass(frozen=True)
class TokenisedPost:
    """A post and its reference summary as token ids; they become text where somebody asks for it."""

    query: list[int]
    response: list[int]
    decode: Callable[[list[int]], str] = field(compare=False)
    facts: dict[str, str] = field(default_factory=dict)  # nobody wrote down what is true

    @property
    def prompt(self) -> str:
        return self.decode(self.query)

    @property
    def title(self) -> str:
        return layout.title(self.prompt)


class TLDR:
    """The posts of one pair of data sets, in an order that the seed decides. Nothing is read before it is asked for.

    model        a folder or a name on the Hub
    references   posts with summaries: a folder of splits, or a data set on the Hub, optionally with @revision
    preferences  comparisons, likewise
    """

    longest_prompt = SFT.limits.query  # tokens

    def __init__(self, seed: int, *, model: str, references: str, preferences: str, skip_broken: bool = False):
        self.seed, self.base_folder, self.skip_broken = seed, model, skip_broken
        self.places = {SFT: references, PREFERENCES: preferences}
        self._loaded: dict[tuple[Kind, str], Tokenised] = {}

    @cached_property
    def tokenizer(self):
        tokenizer = load_tokenizer(self.base_folder)
        tokenizer.clean_up_tokenization_spaces = False  # what is decoded is what was written
        return tokenizer

    @cached_property
    def context(self) -> int:
        """Tokens that the base model can read.

        raises  DamagedError if the longest comparison does not fit
        """
        context = load_config(self.base_folder).max_position_embeddings
        if context < PREFERENCES.limits.total:
            raise DamagedError(
                f"{self.base_folder} reads {context} tokens, and a post with its summary has up to "
                f"{PREFERENCES.limits.total}: choose another world.model"
            )
        return context

    def load(self, kind: Kind, split: str) -> Tokenised:
        """A split of the data, tokenised once and for all.

        raises  DamagedError naming what cannot be used
        """
        if (kind, split) not in self._loaded:
            place = self.places[kind]
            if Path(place).is_file():
                raise DamagedError(
                    f"{place} is one file, and training needs splits that do not overlap: name a folder with "
                    f"{' and '.join(f'{name}*{Path(place).suffix}' for name in _splits_of(kind))}"
                )
            self._loaded[kind, split] = load_split(
                place, kind, self.tokenizer, split=split, cache=cache_folder(), skip_broken=self.skip_broken
            )
        return self._loaded[kind, split]

    def posts(self, split: str, count: int, *, start: int = 0) -> list[TokenisedPost]:
        """Posts `start` to `start + count` of a split.

        The training posts begin anew, in another order, whenever all were there. Those of "test" do not: there are
        fewer than `count` if the data have fewer.
        """
        rows = self.load(SFT, SPLITS[split])
        end = min(start + count, len(rows)) if split == "test" else start + count
        numbers = (divmod(number, len(rows)) for number in range(start, end))
        places = (order_of_pass(self.seed, split, passes, len(rows))[place] for passes, place in numbers)
        return [TokenisedPost(rows.queries[place], rows.responses["response"][place], self._decode) for place in places]

    def reference(self, post: TokenisedPost) -> str:
        return self._decode(post.response).strip()

    def gold(self, post: TokenisedPost, summary: str, *, finished: bool) -> float:
        """Nobody to ask."""
        return math.nan

    def encode_prompts(self, posts: Sequence[TokenisedPost]) -> list[list[int]]:
        return [post.query for post in posts]

    def encode_references(self, posts: Sequence[TokenisedPost]) -> list[list[int]]:
        """As in the data: one that is too long is cut off, and has no EOS."""
        return [post.response for post in posts]

    def encode_summaries(self, summaries: Sequence[str], *, finished: Sequence[bool] | None = None) -> list[list[int]]:
        """Token ids with the leading space, and EOS where the summary is finished (everywhere by default)."""
        ends = finished if finished is not None else [True] * len(summaries)
        rows = encode_texts([f" {summary}" for summary in summaries], self.tokenizer, add_special_tokens=False)
        return [row + [self.tokenizer.eos_token_id] * end for row, end in zip(rows, ends, strict=True)]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


@lru_cache(maxsize=4)  # a pass at its end and the next one, of two splits
def order_of_pass(seed: int, split: str, passes: int, rows: int) -> array:
    """Which row stands where in a pass over all of them; it depends on nothing but these numbers."""
    return array("q", uniforms(seed, "posts", split, passes, rows=1, steps=rows)[0].argsort().tolist())


def _splits_of(kind: Kind) -> list[str]:
    return sorted(set(SPLITS.values())) if kind is SFT else ["train", "validation"]
