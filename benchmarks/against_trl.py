"""One PPO update of ours against one of TRL 1.12.0 (the last release that has PPO) on the same work, side by side.

    python -m benchmarks.against_trl                         # all three workloads, three rounds, about a quarter hour
    python -m benchmarks.against_trl --work "natural lengths" --rounds 5 --threads 2

Each run is a process of its own and the two systems take turns. A round gives one ratio (ours / TRL's) of the median
seconds an update, the first update left out, and one of peak memory above what the imports take. What is printed is
the median over rounds and the range. CPU seconds are those that the process got, whatever else ran beside it: on a
busy machine they say more than seconds on the wall.

TRL is put into benchmarks/.peers/, beside the environment and not into it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from .work import WORKS

TRL = "trl==1.12.0"
PEERS = Path(__file__).parent / ".peers"
ROOT = Path(__file__).parent.parent
MEASURES = {"seconds": "time", "cpu_seconds": "CPU time", "mib": "memory"}
TARGETS = {
    ("fixed lengths", "seconds"): 0.6,
    ("natural lengths", "seconds"): 0.5,
    ("wide vocabulary", "mib"): 0.4,
}
SAME = "optimizer_steps"  # a comparison of unequal work is refused
DIFFERENCES = """
What is the same: model shapes and weights, prompts, sampling temperature, epochs, micro-batches, optimiser steps, and
that a response ends with its EOS (one token in 4,096 or 49,152 in the random models, hardly ever met).
What differs:
- TRL always writes `response_length` tokens and cuts at the EOS afterwards, and its passes are as wide as that; ours
  stops when all rows have ended, drops rows that have, and cuts each micro-batch to its longest row.
- TRL takes the rollout's log-probabilities from the sampler; ours makes a forward pass of its own for them.
- TRL pads prompts on the left and gives a mask; ours pads on the right and needs none.
- TRL runs the head at every token and logs an entropy at every step; ours runs it at the actions, in blocks.
- Ours runs with `ppo.lean` (off by default): no padding, what rows begin with alike made once, the last layer only in
  states that are read, fewer passes over memory in norms, rotations, gates and attention, the rollout's pass of one
  micro-batch kept for the first epoch, and freed memory kept by the process.
- Sampling: `generate` with multinomial draws against one uniform number and the inverse CDF.
- Ours checks three things before the first update; that update is not counted.
""".strip()


def install_trl() -> Path:
    """The folder that holds TRL; installed there first if need be, whole or not at all."""
    folder = PEERS / TRL.replace("==", "-")
    if not folder.exists():
        print(f"installing {TRL} into {folder.relative_to(ROOT)} (beside the environment, not into it)", flush=True)
        PEERS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=PEERS) as fresh:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", fresh, TRL]
            if subprocess.run(command).returncode:
                sys.exit(f"could not install {TRL}: this comparison needs pip and, once, a package index")
            Path(fresh).rename(folder)
            Path(fresh).mkdir()  # for the context to remove
    return folder


def run_side(system: str, work: str, arguments: argparse.Namespace, trl: Path) -> dict:
    """What `benchmarks.one_side` measured in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(trl)]),
        "OMP_NUM_THREADS": str(arguments.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "benchmarks.one_side", system, "--work", work]
    command += ["--updates", str(arguments.updates), "--seed", str(arguments.seed)]
    done = subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{system} failed on {work}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(work: str, arguments: argparse.Namespace, trl: Path) -> list[dict[str, dict]]:
    """The two systems' numbers for each round; who begins alternates."""
    rounds = []
    for number in range(arguments.rounds):
        order = ("ours", "trl") if number % 2 else ("trl", "ours")
        found = {system: run_side(system, work, arguments, trl) for system in order}
        rounds.append(found)
        print(f"{work}, round {number + 1}: " + "; ".join(describe(found[system]) for system in ("ours", "trl")))
        if found["ours"][SAME] != found["trl"][SAME]:
            sys.exit(f"not the same work: {SAME} differ")
    return rounds


def describe(found: dict) -> str:
    return (
        f"{found['system']} {found['seconds']:.2f} s ({found['cpu_seconds']:.2f} s of CPU), {found['mib']:.0f} MiB, "
        f"{found['optimizer_steps']:.0f} optimiser steps, {found['response_length']:.1f} tokens a response"
    )


def summary(work: str, rounds: list[dict[str, dict]]) -> list[str]:
    """Rows of the table: the median ratio, its range, and the target where there is one."""
    rows = []
    for measure, name in MEASURES.items():
        ratios = [found["ours"][measure] / found["trl"][measure] for found in rounds]
        target = TARGETS.get((work, measure))
        verdict = f"at most {target}: {'met' if statistics.median(ratios) <= target else 'not met'}" if target else ""
        rows.append(
            f"| {work} | {name} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} "
            f"| {verdict} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORKS, action="append", help="may be given more than once; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=4, help="of a run; the first is not counted")
    parser.add_argument("--threads", type=int, default=1, help="for both; more only pays on a quiet machine")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    trl = install_trl()
    rows = [row for work in arguments.work or WORKS for row in summary(work, compare(work, arguments, trl))]
    print(f"\nours / {TRL}, {arguments.rounds} rounds, {arguments.threads} thread(s)\n")
    print("| work | of an update | ratio | range | target |\n| --- | --- | ---: | ---: | --- |")
    print("\n".join(rows))
    print(f"\n{DIFFERENCES}")


if __name__ == "__main__":
    main()
