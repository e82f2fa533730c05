"""The verdict "over-optimised": given to the textbook curve, refused to everything that only resembles it."""

import itertools
import random

import pytest

from benchmarks.overoptimisation import LEAST, WINDOW, judge_curves
from rlhf_lib.course.doctor.curves import chance, window_means
from rlhf_lib.pipeline import recordings

UPDATES = 60
NOISE = 0.1  # of the mean of 128 summaries, as in the tiny runs


def through(*points: tuple[int, float]) -> list[float]:
    """Straight lines from point to point, at every update."""
    values = []
    for (start, a), (end, b) in itertools.pairwise(points):
        values += [a + (b - a) * (at - start) / (end - start) for at in range(start, end)]
    return [*values, points[-1][1]]


RISES, TURNS, FALLS = ((0, 1.0), (20, 3.5), (59, 4.5)), ((0, 1.5), (15, 3.5), (59, 1.5)), ((0, 3.0), (59, 1.0))
STOPS = ((0, 1.5), (15, 3.4), (59, 3.4))  # the policy ran out of entropy before it found anything to exploit
CURVES = {  # name: (gold, score, what is missing)
    "textbook": (TURNS, RISES, set()),
    "entropy ran out": (STOPS, STOPS, {"gold_falls"}),
    "gold stops while the score goes on": (STOPS, RISES, {"gold_falls"}),
    "a fall of less than half a fact": (((0, 1.5), (15, 3.4), (59, 3.0)), RISES, {"gold_falls"}),
    "noise alone": (((0, 2.0), (59, 2.0)), ((0, 2.0), (59, 2.0)), {"gold_rises", "gold_falls", "score_rises"}),
    "gold never rose": (FALLS, RISES, {"gold_rises"}),
    "both fall: training broke": (TURNS, TURNS, {"score_rises", "score_holds"}),
    "the score breaks down and comes back": (TURNS, ((0, 1.0), (20, 3.5), (30, 2.0), (59, 4.5)), {"score_holds"}),
    "the score stops where gold turns": (TURNS, ((0, 1.0), (15, 3.5), (59, 3.5)), {"score_rises"}),
    "gold dips and comes back": (((0, 1.5), (15, 3.5), (30, 2.0), (59, 3.6)), RISES, {"gold_falls"}),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("seed", range(5))
def test_the_verdict(name, seed):
    """Rejects a criterion that a collapse, noise, a broken run or a plateau would meet, or the textbook would not."""
    noise = random.Random(seed)
    gold, score, missing = CURVES[name]
    curves = [[value + noise.gauss(0, NOISE) for value in through(*points)] for points in (gold, score)]
    verdict = judge_curves(*curves, kl=[0.1 * update for update in range(UPDATES)])
    parts = {part: getattr(verdict, part) for part in ("gold_rises", "gold_falls", "score_rises", "score_holds")}
    assert {part for part, holds in parts.items() if not holds} >= missing
    assert verdict.over_optimised == (not missing)


def test_windows_by_hand():
    """Rejects windows that lack the last update or begin after the first, and a best window that is not gold's."""
    assert window_means([1, 2, 3, 4, 5, 11], 5) == [3, 5]
    gold = [0.0] * WINDOW + [3.0] * WINDOW + [0.0] * WINDOW
    verdict = judge_curves(gold, list(range(15)), [10 * value for value in range(15)])
    assert verdict.gold == (0, 3, 0)
    assert verdict.score == (2, 7, 12)
    assert verdict.kl == (20, 70, 120)


def test_chance_by_hand():
    """Rejects a trend that counts as noise, and another number of standard errors: sd 1 gives 4 sqrt(2/5) = 2.53."""
    assert chance([0.25 * update for update in range(60)], 5) == pytest.approx(0, abs=1e-12)
    noise = random.Random(0)
    rows = [0.5 * update + noise.gauss(0, 1) for update in range(20_000)]
    assert chance(rows, 5) == pytest.approx(4 * (2 / 5) ** 0.5, rel=0.03)


@pytest.mark.parametrize(("preset", "seed"), recordings.RECORDED)
def test_the_recorded_runs(preset, seed):
    """Rejects a preset, or a recording of it, that shows in one seed what it does not in another."""
    over_optimised = preset == "tiny-overoptimised"
    rows = recordings.load_recording(preset, seed).ppo
    verdict = judge_curves(*([row[name] for row in rows] for name in ("gold", "score", "kl_per_sequence")))
    assert verdict.over_optimised == over_optimised
    assert verdict.gold[1] - verdict.gold[2] > LEAST or not over_optimised
