"""What a shift by one slot does to PPO: every mistake of lesson 02 in a short run, over several seeds.

    python -m benchmarks.shifts --seeds 0 1 2

Writes the recorded run that the lesson shows, about a minute a run on two cores.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rlhf_lib.course.shifts import EIGHT_UPDATES, SHIFTS, ShiftedRun, shifted_run

RECORDED = Path(__file__).parent.parent / "rlhf_lib" / "course" / "recorded" / "02_shifts.json"
KEPT = ("gold", "score", "kl_per_sequence", "explained_variance", "response_length", "eos_rate", "value_loss")


def as_record(run: ShiftedRun) -> dict:
    """The curves that the lesson draws, rounded: a JSON of a few kilobytes."""
    curves = {name: [round(step[name], 4) for step in run.metrics] for name in KEPT}
    return dict(refused=run.refused, **curves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    runs: dict[str, dict] = {shift.name: {} for shift in SHIFTS}
    for seed in arguments.seeds:
        for shift in SHIFTS:
            runs[shift.name][str(seed)] = record = as_record(shifted_run(shift, seed=seed))
            print(f"seed {seed}, {shift.name}: gold {record['gold']} {record['refused']}", flush=True)
    RECORDED.parent.mkdir(exist_ok=True)
    text = json.dumps(dict(config=asdict(EIGHT_UPDATES), runs=runs), indent=1)
    RECORDED.write_text(text + "\n", encoding="utf-8", newline="\n")
    print(f"wrote {RECORDED.name}")


if __name__ == "__main__":
    main()
