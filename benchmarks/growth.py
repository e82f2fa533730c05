"""How time and memory of one PPO update grow with batch, length and vocabulary: measured, fitted, drawn.

    python -m benchmarks.growth --picture docs/growth.svg

Three sizes of each, the other two held; micro-batches keep their 16 rows. Every run is a process of its own with one
thread. Time is CPU seconds of an update (the quickest of the runs, since whatever else the machine does only adds),
memory is the peak above what the imports take. The exponent is the slope of a straight line through the logarithms:
1 is proportional, below 1 means that a constant part (weights, optimiser, Python) still shows.
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


def size_of(change: dict[str, int]) -> int:
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


def draw(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Each measure relative to the smallest size, one panel for each thing that grows."""
    figure, axes = new_figure(len(SIZES))
    for one, (name, rows) in zip(axes, found.items(), strict=True):
        sizes = [size_of(change) for change in SIZES[name]]
        one.plot(sizes, [size / sizes[0] for size in sizes], color="0.6", linestyle=":", label="proportional")
        for measure, label in MEASURES.items():
            one.plot(sizes, [row[measure] / rows[0][measure] for row in rows], marker="o", label=label)
        one.set(xlabel=name, xscale="log", yscale="log", xticks=sizes, yticks=[1, 2, 4, 8, 16])
        one.set_xticklabels([f"{size:,}" for size in sizes])
        one.set_yticklabels(["1×", "2×", "4×", "8×", "16×"])
        one.minorticks_off()
    axes[0].legend(frameon=False)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=3, help="of a run; the first is not counted")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    found = {name: [measure(change, arguments.updates, arguments.runs) for change in changes]
             for name, changes in SIZES.items()}  # fmt: skip
    print("| what grows | sizes | CPU seconds | exponent | MiB above imports | exponent |")
    print("| --- | --- | --- | ---: | --- | ---: |")
    for name, rows in found.items():
        sizes = [size_of(change) for change in SIZES[name]]
        time, memory = ([row[measure] for row in rows] for measure in MEASURES)
        print(
            f"| {name} | {', '.join(f'{size:,}' for size in sizes)} | {', '.join(f'{x:.2f}' for x in time)} "
            f"| {exponent(sizes, time):.2f} | {', '.join(f'{x:.0f}' for x in memory)} | {exponent(sizes, memory):.2f} |"
        )
    if arguments.picture:
        draw(found, arguments.picture)


if __name__ == "__main__":
    main()
