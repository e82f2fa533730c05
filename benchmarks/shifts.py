"""What a shift by one slot does to PPO: every mistake of lesson 02 in a short run, over several seeds.

    python -m benchmarks.shifts --seeds 0 1 2

Writes the recorded run that the lesson shows, run by run: about half a minute each on a quiet machine, 39 in all. Other
seeds in the file stay, so that seeds can be recorded one after the other, or side by side.
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


def keep(shift: str, seed: int, record: dict) -> None:
    """Put one run into the file, beside what is there under the same settings."""
    config = asdict(EIGHT_UPDATES)
    found = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
    runs = found["runs"] if found.get("config") == config else {}
    runs = {one.name: runs.get(one.name, {}) for one in SHIFTS}
    runs[shift] = dict(sorted({**runs[shift], str(seed): record}.items()))
    RECORDED.parent.mkdir(exist_ok=True)
    RECORDED.write_text(json.dumps(dict(config=config, runs=runs)) + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for seed in parser.parse_args().seeds:
        for shift in SHIFTS:
            record = as_record(shifted_run(shift, seed=seed))
            keep(shift.name, seed, record)
            print(f"seed {seed}, {shift.name}: gold {record['gold']} {record['refused']}", flush=True)


if __name__ == "__main__":
    main()
