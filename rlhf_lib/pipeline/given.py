"""Preferences that people gave long ago, and what there is to know of data before they are trained on (TL;DR).

Nothing is written or labelled here. Before anything long starts, the data are tokenised (once: there is a cache), their
lengths held against those of N+, and what differs is said with the class of bug that it hints at.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from ..algorithms.reward_model import Comparisons, RewardModelConfig, score_texts
from ..engine import distributed, models
from ..worlds.tldr import PREFERENCES, SFT, Finding, Kind, Tokenised, compare, flat, token_statistics
from ..worlds.tldr.world import order_of_pass
from .comparisons import Preferences, batches_of_places
from .errors import InputError
from .run import Run

REFERENCES, PAIRS, HELD_OUT = (SFT, "train"), (PREFERENCES, "train"), (PREFERENCES, "validation")
NEEDS: dict[str, tuple[tuple[Kind, str], ...]] = {
    "sft": (REFERENCES,),
    "preferences": (PAIRS, HELD_OUT),
    "reward_model": (REFERENCES, PAIRS, HELD_OUT),
    "ppo": (REFERENCES,),
    "evaluation": ((SFT, "test"),),
}
IN_THE_LEDGER = {SFT: "sft_data", PREFERENCES: "preference_data"}
SCORED_AT_ONCE = 1024  # pairs whose texts are in memory together


def look_at_data(run: Run, stages: Sequence[str]) -> dict:
    """Read and tokenise every split that these stages need; print its statistics beside those of N+, and return both.

    The model that SFT starts from is loaded first: the data may take minutes, and nothing is worth them without it.
    raises  DamagedError naming the model, or the file and row, that cannot be used
    """
    if "sft" in stages:
        models.load_policy(run.world.base_folder)
    wanted = dict.fromkeys(itertools.chain.from_iterable(NEEDS[stage] for stage in stages))
    numbers = {}
    for kind, split in wanted:
        numbers |= flat(f"{IN_THE_LEDGER[kind]}.{split}", token_statistics(run.world.load(kind, split)))
    findings = compare(numbers, tokenizer=str(run.world.base_folder))
    if distributed.is_main():
        print("\n".join(summary(findings)), file=sys.stderr)
    return numbers


def hold_against(run: Run, report: dict) -> dict:
    """The statistics of the data, and the results as far as there are any, beside the numbers of N+."""
    tokenizer = str(run.world.base_folder)
    findings = compare({**run.out.read_json("data.json", {}), **results_of(report, tokenizer)}, tokenizer=tokenizer)
    return {"n_plus": [{**asdict(finding), "agrees": finding.agrees} for finding in findings]}


def results_of(report: dict, model: str) -> dict[str, float]:
    """The results that the ledger knows, under its names; none for a model that N+ did not train.

    A win rate is not among them: theirs is that of another judge.
    """
    size = re.search(r"pythia-(1b|2\.8b|6\.9b)", model.lower())
    found = {
        "sft.{}.rouge_l": (report["sft"] or {}).get("rouge_l"),
        "reward_model.{}.accuracy": report["reward_model"].get("accuracy"),
        "ppo.{}.kl_per_sequence": report["ppo"].get("kl_per_sequence"),
        "ppo.{}.score": report["ppo"].get("score"),
    }
    return {f"results.{name.format(size[1])}": n for name, n in found.items() if n is not None} if size else {}


def summary(findings: Sequence[Finding]) -> list[str]:
    """Every number that differs, and how many there are of each kind."""
    comparable = [finding for finding in findings if finding.comparable]
    differ = [finding for finding in comparable if not finding.agrees]
    shown = {"sft_data.train.rows", "preference_data.train.rows", "sft_data.train.response.mean"}
    lines = [finding.line for finding in findings if finding in differ or finding.quantity in shown]
    others = len(findings) - len(comparable)
    agreeing = f"{len(comparable) - len(differ)} of {len(comparable)} statistics of the data are those of N+"
    return [*lines, agreeing + (f"; {others} more are for the tokens of another model" if others else "")]


def say_where_from(run: Run) -> None:
    """preferences.json: the data they are from and their statistics; the pairs themselves stay where they are."""
    found = {}
    for kind, split in NEEDS["preferences"]:
        rows = run.world.load(kind, split)
        found[split] = {"from": run.world.places[kind], **token_statistics(rows)}
    run.out.write_json("preferences.json", found)


def load(run: Run) -> Preferences:
    """raises InputError if there are too few pairs for a batch"""
    config, seed = run.settings.preferences, run.settings.seed
    training = Pairs.draw(run.world.load(*PAIRS), config.posts, seed, "pairs")
    held_out = Pairs.draw(run.world.load(*HELD_OUT), config.held_out_posts, seed, "held-out pairs")
    if training.count < (least := run.settings.reward_model.posts_per_batch):
        raise InputError(
            f"{run.world.places[PREFERENCES]} has too few pairs: {training.count}, fewer than "
            f"reward_model.posts_per_batch={least}"
        )
    return Given(run, training, held_out)


@dataclass(frozen=True)
class Pairs:
    """Some of the comparisons of a split."""

    rows: Tokenised
    places: Sequence[int]

    @classmethod
    def draw(cls, rows: Tokenised, count: int, seed: int, key: str) -> Pairs:
        """At most `count` of them: which ones, the seed decides."""
        return cls(rows, order_of_pass(seed, key, 0, len(rows))[:count])

    @property
    def count(self) -> int:
        return len(self.places)

    def batch(self, numbers: Sequence[int]) -> Comparisons:
        return Comparisons(*self.rows.pairs([self.places[number] for number in numbers]))


@dataclass(frozen=True)
class Given:
    """`Preferences` of the data."""

    run: Run
    training: Pairs
    held_out: Pairs

    @property
    def pairs(self) -> int:
        return self.training.count

    def batches(self, config: RewardModelConfig, *, seed: int, start: int = 0) -> Iterator[Comparisons]:
        places = batches_of_places(self.pairs, config.posts_per_batch, seed)
        return map(self.training.batch, itertools.islice(places, start, config.steps))

    def accuracy(self, model: nn.Module) -> dict[str, float]:
        """Share of the held-out pairs in which the chosen summary has the higher score; a tie counts half."""
        agreement = torch.cat([self._agreement(model, numbers) for numbers in _blocks(self.held_out.count)])
        return dict(accuracy=float(agreement.mean()), held_out_pairs=len(agreement))

    def _agreement(self, model: nn.Module, numbers: Sequence[int]) -> torch.Tensor:
        found = self.run.placed(self.held_out.batch(numbers))
        at_once = self.run.settings.ppo.micro_batch_size
        scores = score_texts(model, found.texts, micro_batch_size=at_once, parts=self.run.parts)
        return ((scores[found.chosen] - scores[found.rejected]).sign().double().cpu() + 1) / 2


def _blocks(count: int) -> Iterator[range]:
    for start in range(0, count, SCORED_AT_ONCE):
        yield range(start, min(start + SCORED_AT_ONCE, count))
