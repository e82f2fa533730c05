"""Does the gold score turn down while the score keeps rising? What runs without a KL penalty show (Gao et al. 2022).

    python -m rlhf_lib run --seed 0 --out runs/over0 --set preferences.title_bias=9 --set ppo.kl_coef=0 \\
        --set ppo.updates=60 --set ppo.learning_rate=2e-4                             (and seeds 1, 2)
    python -m benchmarks.overoptimisation runs/over0 runs/over1 runs/over2 --picture over.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rlhf_lib.engine.run_folder import read_lines
from rlhf_lib.worlds.tiny_tldr.summaries import SLOT_OF

from .drawing import new_figure, save

SMOOTHED = 5  # updates averaged to find the peak


def describe(folder: Path) -> dict[str, str]:
    """What one run shows, by the name of a row of the table."""
    rows, samples = ppo_rows(folder), read_lines(folder / "samples.jsonl")
    report = json.loads((folder / "report.json").read_text())
    gold, score, kl = ([row[name] for row in rows] for name in ("gold", "score", "kl_per_sequence"))
    means = [sum(gold[at : at + SMOOTHED]) / SMOOTHED for at in range(len(gold) - SMOOTHED + 1)]
    peak = max(range(len(means)), key=means.__getitem__)

    def then_and_last(values: list[float]) -> str:
        mean = [
            sum(part) / SMOOTHED for part in (values[:SMOOTHED], values[peak : peak + SMOOTHED], values[-SMOOTHED:])
        ]
        return "{:.2f} → {:.2f} → {:.2f}".format(*mean)

    return {
        "gold score: first, best, last 5 updates": then_and_last(gold),
        "reward model's score at the same time": then_and_last(score),
        "KL(policy, SFT), nats a summary": then_and_last(kl),
        "a wrong title's claim repeated: SFT, PPO": "{:.0%}, {:.0%}".format(
            *(misled(samples, by) for by in ("sft", "policy"))
        ),
        "wins against SFT at the end": f"{report['ppo']['win_rate_vs_sft']:.3f}",
    }


def misled(samples: list[dict], by: str) -> float:
    """Of the posts whose title claims something wrong: the share whose summary repeats it."""
    repeated = []
    for row in samples:
        wrong = {word for word in row["title"].split() if word in SLOT_OF} - set(row["facts"].values())
        if wrong:
            repeated.append(bool(wrong & set(row[by]["text"].split())))
    return sum(repeated) / len(repeated)


def ppo_rows(folder: Path) -> list[dict]:
    return [row for row in read_lines(folder / "metrics.jsonl") if row["stage"] == "ppo"]


def draw(folders: list[Path], path: Path) -> None:
    """Score and gold score against the square root of the KL (Gao et al. 2022), one line a run."""
    figure, axes = new_figure(2)
    named = zip(
        axes, ("score", "gold"), ("what is optimised: the score", "what is wanted: the gold score"), strict=True
    )
    for one, name, title in named:
        for number, folder in enumerate(folders):
            rows = ppo_rows(folder)
            one.plot(
                [row["kl_per_sequence"] ** 0.5 for row in rows], [row[name] for row in rows], label=f"seed {number}"
            )
        one.set(title=title, xlabel="√KL from SFT, √nats")
    axes[1].legend(frameon=False)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--picture", type=Path, help="also draw score and gold against the KL into this SVG file")
    arguments = parser.parse_args()
    found = [describe(run) for run in arguments.runs]
    print("| | " + " | ".join(run.name for run in arguments.runs) + " |")
    print("| --- |" + " ---: |" * len(found))
    for name in found[0]:
        print(f"| {name} | " + " | ".join(one[name] for one in found) + " |")
    if arguments.picture:
        draw(arguments.runs, arguments.picture)


if __name__ == "__main__":
    main()
