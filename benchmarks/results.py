"""The README's results table and picture, from finished runs (one seed each).

python -m rlhf_lib run --preset tiny --seed 0 --out runs/seed0      (and 1, 2)
python -m benchmarks.results runs/seed0 runs/seed1 runs/seed2 --picture docs/tiny_run.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rlhf_lib.engine.run_folder import read_lines

from .drawing import new_figure, save

ROWS = {
    "gold score of SFT, at most 4": lambda r: f"{r['sft']['gold']:.2f}",
    "gold score of PPO": lambda r: f"{r['ppo']['gold']:.2f}",
    "PPO wins against SFT, 95 % interval": lambda r: "{:.3f} [{:.3f}, {:.3f}]".format(
        r["ppo"]["win_rate_vs_sft"], *r["ppo"]["win_rate_vs_sft_interval"]
    ),
    "... where lengths differ by at most one word": lambda r: f"{r['ppo']['win_rate_vs_sft_length_matched']:.3f}",
    "PPO wins against the human references": lambda r: f"{r['ppo']['win_rate_vs_reference']:.3f}",
    "summaries that copy the title, SFT → PPO": lambda r: "{:.1%} → {:.1%}".format(
        r["sft"]["title_copy_rate"], r["ppo"]["title_copy_rate"]
    ),
    "words, SFT → PPO": lambda r: f"{r['sft']['response_length']:.1f} → {r['ppo']['response_length']:.1f}",
    "KL(policy, SFT) at the end, nats a summary": lambda r: f"{r['ppo']['kl_per_sequence']:.2f}",
    "reward model's agreement with readers": lambda r: f"{r['reward_model']['accuracy']:.3f}",
    "... and the most that is possible": lambda r: f"{r['reward_model']['accuracy_ceiling']:.3f}",
    "before training: KL, nats a token": lambda r: f"{r['ppo']['kl_before_first_update']:.1e}",
    "before training: largest error of a ratio": lambda r: f"{r['ppo']['ratio_error_before_first_update']:.1e}",
    "before training: sampler against forward pass, nats": lambda r: f"{r['ppo']['sampler_forward_gap']:.1e}",
    "minutes on two cores": lambda r: f"{r['seconds']['total'] / 60:.1f}",
    "peak memory, MiB": lambda r: f"{r['peak_memory_mib']:.0f}",
}


def table(reports: list[dict]) -> str:
    """Markdown, one column a run."""
    head = ["", *(f"seed {report['seed']}" for report in reports)]
    lines = [head, ["---", *["---:"] * len(reports)]]
    lines += [[name, *(read(report) for report in reports)] for name, read in ROWS.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(folders: list[Path], reports: list[dict], path: Path) -> None:
    """Gold score over updates, one line a seed, between the human references and the best possible."""
    figure, (axes,) = new_figure()
    for folder, report in zip(folders, reports, strict=True):
        rows = [row for row in read_lines(folder / "metrics.jsonl") if row["stage"] == "ppo"]
        axes.plot([row["update"] for row in rows], [row["gold"] for row in rows], label=f"PPO, seed {report['seed']}")
    references = sum(report["reference"]["gold"] for report in reports) / len(reports)
    axes.axhline(references, color="0.45", linestyle="--", linewidth=1)
    axes.axhline(4, color="0.45", linestyle=":", linewidth=1)
    axes.text(0, references - 0.06, "the human references", color="0.35", va="top")
    axes.text(0, 4.05, "every fact right, nothing made up", color="0.35", va="bottom")
    axes.set(xlabel="PPO update (128 summaries each)", ylabel="gold score", ylim=(references - 0.5, 4.45))
    axes.legend(frameon=False, loc="center right")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--picture", type=Path, help="also draw the gold score over updates into this SVG file")
    arguments = parser.parse_args()
    reports = [json.loads((run / "report.json").read_text()) for run in arguments.runs]
    print(table(reports))
    if arguments.picture:
        draw(arguments.runs, reports, arguments.picture)


if __name__ == "__main__":
    main()
