"""Does gold turn down while the score keeps rising (Gao et al. 2022)? A verdict on finished runs, a table, a picture.

    python -m rlhf_lib run --preset tiny-overoptimised --seed 0 --out runs/over0      (and 1, 2)
    python -m benchmarks.overoptimisation runs/over0 runs/over1 runs/over2 --picture docs/overoptimised.svg

Without folders it looks at the recorded runs that are shipped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from rlhf_lib.course.doctor.curves import chance, window_means
from rlhf_lib.engine.run_folder import read_lines
from rlhf_lib.pipeline import recordings

from .drawing import new_figure, save

WINDOW = 5  # updates averaged: 640 summaries
LEAST = 0.5  # gold points, half a fact: what gold must at least rise first and fall afterwards


@dataclass(frozen=True)
class Verdict:
    """Means over the first window, the one where gold is best, and the last; and what can be said of them.

    gold_rises    from the first window to the best one, by `LEAST` and beyond noise
    gold_falls    from the best window to the last one, likewise
    score_rises   from gold's best window to the last one, beyond noise
    score_holds   nowhere below an earlier window, but for noise
    """

    gold: tuple[float, float, float]
    score: tuple[float, float, float]
    kl: tuple[float, float, float]
    gold_rises: bool
    gold_falls: bool
    score_rises: bool
    score_holds: bool

    @property
    def over_optimised(self) -> bool:
        return self.gold_rises and self.gold_falls and self.score_rises and self.score_holds


def judge_curves(gold: list[float], score: list[float], kl: list[float]) -> Verdict:
    """The verdict on what a run logged at each update; at least two windows of them."""
    golds, scores = window_means(gold, WINDOW), window_means(score, WINDOW)
    best = max(range(len(golds)), key=golds.__getitem__)
    ends = (0, best, len(golds) - 1)
    gold_margin, score_margin = max(LEAST, chance(gold, WINDOW)), chance(score, WINDOW)
    return Verdict(
        *(tuple(values[at] for at in ends) for values in (golds, scores, window_means(kl, WINDOW))),
        gold_rises=golds[best] - golds[0] > gold_margin,
        gold_falls=golds[best] - golds[-1] > gold_margin,
        score_rises=scores[-1] - scores[best] > score_margin,
        score_holds=all(max(scores[:at]) - scores[at] < score_margin for at in range(1, len(scores))),
    )


def judge_run(metrics: list[dict]) -> Verdict:
    """The verdict on the PPO rows of metrics.jsonl."""
    rows = [row for row in metrics if row["stage"] == "ppo"]
    return judge_curves(*([row[name] for row in rows] for name in ("gold", "score", "kl_per_sequence")))


def describe(metrics: list[dict], report: dict) -> dict[str, str]:
    """What one run shows, by the name of a row of the table."""
    verdict, sft, ppo = judge_run(metrics), report["sft"], report["ppo"]

    def path(values: tuple[float, float, float]) -> str:
        return "{:.2f} → {:.2f} → {:.2f}".format(*values)

    return {
        "gold score: first, best, last five updates": path(verdict.gold),
        "reward model's score at the same time": path(verdict.score),
        "KL(policy, SFT), nats a summary": path(verdict.kl),
        "summaries that say it twice, SFT → PPO": f"{sft['repetition_rate']:.1%} → {ppo['repetition_rate']:.1%}",
        "words, SFT → PPO": f"{sft['response_length']:.1f} → {ppo['response_length']:.1f}",
        "over-optimised": "yes" if verdict.over_optimised else "no",
    }


def draw(runs: dict[str, list[dict]], path: Path) -> None:
    """Score and gold score against the square root of the KL, one line a run."""
    figure, axes = new_figure(2)
    titles = {"score": "what is optimised: the score", "gold": "what is wanted: the gold score"}
    for one, (name, title) in zip(axes, titles.items(), strict=True):
        for label, metrics in runs.items():
            rows = [row for row in metrics if row["stage"] == "ppo"]
            one.plot([row["kl_per_sequence"] ** 0.5 for row in rows], [row[name] for row in rows], label=label)
        one.set(title=title, xlabel="√KL from SFT, √nats")
    axes[1].legend(frameon=False)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of finished runs; default: the recorded ones")
    parser.add_argument("--picture", type=Path, help="also draw score and gold against the KL into this SVG file")
    arguments = parser.parse_args()
    recorded = [recordings.folder_of("tiny-overoptimised", seed) for seed in recordings.SEEDS["tiny-overoptimised"]]
    folders = arguments.runs or recorded
    metrics = {folder.name: read_lines(folder / "metrics.jsonl") for folder in folders}
    reports = [json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in folders]
    found = [describe(rows, report) for rows, report in zip(metrics.values(), reports, strict=True)]
    print("| | " + " | ".join(metrics) + " |")
    print("| --- |" + " ---: |" * len(found))
    for name in found[0]:
        print(f"| {name} | " + " | ".join(one[name] for one in found) + " |")
    if arguments.picture:
        draw(metrics, arguments.picture)


if __name__ == "__main__":
    main()
