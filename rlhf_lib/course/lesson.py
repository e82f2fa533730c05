"""What lessons are made with: the page of the algorithm with today's line lit, folded source, a real rollout."""

from __future__ import annotations

import html
import inspect
import json
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ..algorithms.ppo_config import PPOConfig
from ..engine.sampling import sample, uniforms
from ..maths.records import Rollout
from ..pipeline.texts import Summary, judge_samples, make_prompts
from ..worlds.tiny_tldr.posts import Post
from ..worlds.tiny_tldr.world import TinyTLDR


def setup() -> None:
    """The same numbers and the same look in every lesson."""
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    torch.set_printoptions(precision=3, sci_mode=False, linewidth=110)
    plt.rcParams.update({
        "figure.figsize": (8, 3), "figure.dpi": 80, "figure.facecolor": "white", "figure.constrained_layout.use": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "svg.hashsalt": "course",
    })  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """Source of the library, as it is: lessons show it and never re-type it."""

    title: str
    text: str
    lit: tuple[str, ...] = ()
    folded: bool = False

    def __repr__(self) -> str:
        if self.folded:
            return f"{self.title} (folded)"
        return "\n".join(f"{'>' if self._is_lit(line) else ' '} {line}" for line in self.text.splitlines())

    def _repr_html_(self) -> str:
        mark = "background:#ffd54f;color:#000;font-weight:bold"
        lines = [
            f"<span style='{mark}'>&gt; {html.escape(line)}</span>" if self._is_lit(line) else f"  {html.escape(line)}"
            for line in self.text.splitlines()
        ]
        look = "line-height:1.35;font-family:monospace;font-size:12px;white-space:pre;overflow-x:auto"
        code = f"<pre style='{look}'>{chr(10).join(lines)}</pre>"
        summary = f"<summary>{html.escape(self.title)}</summary>"
        return f"<details{'' if self.folded else ' open'}>{summary}{code}</details>"

    def _is_lit(self, line: str) -> bool:
        return any(word in line for word in self.lit)


@dataclass(frozen=True)
class Table:
    """Rows under headings, as text and as HTML; numbers are rounded to `decimals` and stand on the right."""

    headings: tuple[str, ...]
    rows: tuple[tuple, ...]
    decimals: int = 2

    def __repr__(self) -> str:
        columns = []
        for cells in zip(self.headings, *map(self._cells, self.rows), strict=True):
            side, width = ">" if _reads_as_numbers(cells[1:]) else "<", max(map(len, cells))
            columns.append([f"{cell:{side}{width}}" for cell in cells])
        return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))

    def _repr_html_(self) -> str:
        rows = [self._cells(row) for row in self.rows]
        sides = ["right" if _reads_as_numbers(cells) else "left" for cells in zip(*rows, strict=True)]
        head = _html_row("th", self.headings, sides or ["left"] * len(self.headings))
        return f"<table>{head}{''.join(_html_row('td', row, sides) for row in rows)}</table>"

    def _cells(self, row: tuple) -> tuple[str, ...]:
        return tuple(f"{cell:.{self.decimals}f}" if isinstance(cell, float) else str(cell) for cell in row)


def _reads_as_numbers(cells: Iterable[str]) -> bool:
    return all(cell.lstrip("+-−±.≈<>~ ")[:1].isdigit() for cell in cells if cell)


def _html_row(tag: str, cells: Iterable[str], sides: Iterable[str]) -> str:
    pairs = zip(cells, sides, strict=True)
    made = (f"<{tag} style='text-align:{side}'>{html.escape(cell)}</{tag}>" for cell, side in pairs)
    return f"<tr>{''.join(made)}</tr>"


def table(*headings: str, rows: Iterable[Iterable], decimals: int = 2) -> Table:
    """A table to end a cell with."""
    return Table(headings, tuple(map(tuple, rows)), decimals)


def page(*lit: str) -> Listing:
    """`train_ppo`, with the lines lit that hold any of these words."""
    from ..algorithms.ppo import train_ppo

    return Listing("rlhf_lib.algorithms.ppo.train_ppo", _body(train_ppo), lit)


def source(function: Callable, *lit: str) -> Listing:
    """The library's own function, folded: open it once your own has passed, or when you want to."""
    return Listing(f"{function.__module__}.{function.__qualname__}", _body(function), lit, folded=True)


@dataclass(frozen=True)
class TinyLesson:
    """The tiny world as lessons use it: 64 posts, and the recorded rollout of the shipped SFT model on them."""

    world: TinyTLDR
    rollout: Rollout

    @property
    def tokenizer(self):
        return self.world.tokenizer

    @cached_property
    def posts(self) -> list[Post]:
        """Post b is the one of row b of the rollout."""
        return self.world.posts("rollout", len(self.rollout.tokens))

    def words(self, row: int) -> list[str]:
        """The tokens of a row as text, padding included."""
        return [self.tokenizer.decode([token]) for token in self.rollout.tokens[row].tolist()]

    def response(self, row: int) -> str:
        """What the policy wrote in a row, its EOS included."""
        start, end = int(self.rollout.prompt_lengths[row]), int(self.rollout.sequence_lengths[row])
        return self.tokenizer.decode(self.rollout.tokens[row, start:end])

    def write(self, policy, posts: list[Post]) -> list[Summary]:
        """What a policy writes below posts, judged; every policy draws with the same randomness."""
        prompts = make_prompts(self.world, posts)
        randomness = uniforms("lesson", rows=len(posts), steps=PPOConfig.response_length)
        samples = sample(
            policy, prompts.tokens, prompts.lengths, randomness, temperature=PPOConfig.temperature,
            eos_token_id=self.tokenizer.eos_token_id, pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        return list(judge_samples(self.world, posts, samples))


def tiny() -> TinyLesson:
    """The world and the rollout that ship with the course."""
    from ..pipeline.assets import load_rollout

    return TinyLesson(TinyTLDR(0), load_rollout())


def recorded(name: str) -> dict:
    """A run that takes too long for a lesson, as it was recorded; benchmarks/README.md has the command."""
    return json.loads((Path(__file__).parent / "recorded" / f"{name}.json").read_text(encoding="utf-8"))


def base_model():
    """The shipped base model, which SFT starts from."""
    return _load("load_policy", "base")


def sft_model():
    """The shipped SFT policy."""
    return _load("load_policy", "sft")


def reward_model():
    """The shipped reward model."""
    return _load("load_scorer", "reward_model")


def _load(loader: str, name: str):
    from ..engine import models
    from ..worlds.tiny_tldr.world import ASSETS
    from .short_runs import hide_loading_bars

    hide_loading_bars()
    return getattr(models, loader)(ASSETS / name)


def _body(function: Callable) -> str:
    return textwrap.dedent(inspect.getsource(function)).rstrip()
