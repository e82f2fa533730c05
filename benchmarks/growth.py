"""How time and memory of one PPO update grow with batch, length and vocabulary: measured, fitted, drawn.

    python -m benchmarks.growth --picture docs/growth.svg

Three sizes of each, the other two held, with `ppo.lean` and without; micro-batches keep their 16 rows. Every run is a
process of its own with one thread. Time is CPU seconds of an update (the quickest of the runs, since whatever else the
machine does only adds), memory is the peak above what the imports take. The exponent is the slope of a straight line
through the logarithms: 1 is proportional, below 1 means that a constant part (weights, optimiser, Python) still shows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

from .drawing import new_figure, save

ROOT = Path(__file__).parent.parent
ROWS = 16  # of a micro-batch, whatever the batch
BASE = dict(layers=2, batch=ROWS, micro_batches=1)  # of "fixed lengths": 72 tokens, a vocabulary of 4,096
SIZES = {
    "batch, episodes": [dict(batch=n, micro_batches=n // ROWS) for n in (16, 32, 64)],
    "length, tokens": [dict(prompt=2 * n // 3, response=n // 3) for n in (36, 72, 144)],
    "vocabulary, tokens": [dict(vocab=n) for n in (4096, 16384, 65536)],
}
MEASURES = {"cpu_seconds": "time", "mib": "memory"}
VARIANTS = {"default": dict(lean=0), "ppo.lean": dict(lean=1)}
STYLES = {"default": "--", "ppo.lean": "-"}


def size_of(change: dict[str, int]) -> int:
    """What grows, as a number."""
    return change.get("batch") or change.get("vocab") or change["prompt"] + change["response"]


def measure(change: dict[str, int], updates: int, runs: int) -> dict[str, float]:
    """The least of each measure over some runs."""
    command = [sys.executable, "-m", "benchmarks.one_side", "ours", "--updates", str(updates)]
    for name, number in {**BASE, **change}.items():
        command += ["--change", f"{name}={number}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found = []
    for _ in range(runs):
        done = subprocess.run(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: min(one[name] for one in found) for name in MEASURES}


def exponent(sizes: list[int], values: list[float]) -> float:
    """Least-squares slope of log value against log size."""
    x, y = ([math.log(number) for number in numbers] for numbers in (sizes, values))
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y)) / sum((a - middle_x) ** 2 for a in x)


def table(found: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Markdown, a row for each thing that grows, by variant."""
    lines = ["| | what grows | sizes | CPU seconds | exponent | MiB above imports | exponent |"]
    lines += ["| --- | --- | --- | --- | ---: | --- | ---: |"]
    for variant, of_name in found.items():
        for name, rows in of_name.items():
            sizes = [size_of(change) for change in SIZES[name]]
            time, memory = ([row[measure] for row in rows] for measure in MEASURES)
            cells = variant, name, ", ".join(f"{size:,}" for size in sizes)
            cells += ", ".join(f"{x:.2f}" for x in time), f"{exponent(sizes, time):.2f}"
            cells += ", ".join(f"{x:.0f}" for x in memory), f"{exponent(sizes, memory):.2f}"
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: dict[str, dict[str, list[dict[str, float]]]], path: Path) -> None:
    """Each measure relative to the default's at the smallest size, one panel for each thing that grows."""
    figure, axes = new_figure(len(SIZES))
    for panel, (name, changes) in zip(axes, SIZES.items(), strict=True):
        sizes, least = [size_of(change) for change in changes], found["default"][name][0]
        panel.plot(sizes, [size / sizes[0] for size in sizes], color="0.6", linestyle=":", label="proportional")
        for color, (measure, label) in zip(("tab:blue", "tab:orange"), MEASURES.items(), strict=True):
            for variant, of_name in found.items():
                values = [row[measure] / least[measure] for row in of_name[name]]
                panel.plot(sizes, values, STYLES[variant], color=color, marker="o", label=f"{label}, {variant}")
        panel.set(xlabel=name, xscale="log", yscale="log", xticks=sizes, yticks=[1, 2, 4, 8, 16])
        panel.set_xticklabels([f"{size:,}" for size in sizes])
        panel.set_yticklabels(["1×", "2×", "4×", "8×", "16×"])
        panel.minorticks_off()
    axes[0].legend(frameon=False, fontsize=7)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=3, help="of a run; the first is not counted")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    found = {variant: {name: [] for name in SIZES} for variant in VARIANTS}
    for name, changes in SIZES.items():
        for change in changes:
            for variant, lean in VARIANTS.items():  # taking turns: a busier hour meets both
                found[variant][name].append(measure({**change, **lean}, arguments.updates, arguments.runs))
    print(table(found))
    if arguments.picture:
        draw(found, arguments.picture)


if __name__ == "__main__":
    main()
