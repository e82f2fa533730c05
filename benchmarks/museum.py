"""Record every bug of the museum, and healthy runs, over six seeds: what lesson 08 and the doctor look at.

    python -m benchmarks.museum                    # what is missing; some five seconds each on a quiet core, 204 in all
    python -m benchmarks.museum --seeds 0 --only "reward sign" --anew

Runs that are in the file already stay, so that it can be stopped and gone on with; made under other settings, all go.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock
from tqdm.auto import tqdm

from rlhf_lib.algorithms.ppo_config import PPOConfig
from rlhf_lib.course import museum
from rlhf_lib.course.museum.runs import RECORDED, as_curves

DIGITS = 4  # significant


def plan() -> dict[str, tuple[museum.Bug, PPOConfig]]:
    """Every run by name: the bug, and the settings."""
    return museum.HEALTHY_RUNS | {bug.name: (bug, museum.RUN) for bug in museum.BUGS}


def load() -> dict:
    """The file's content, without what was made under other settings."""
    found = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {"config": {}}
    same = PPOConfig(**found["config"]) == museum.RUN  # a setting that PPO learned since then has its default
    return found if same else {"config": asdict(museum.RUN), "runs": {}}


def keep(name: str, seed: int, record: dict) -> None:
    with FileLock(Path(tempfile.gettempdir()) / "museum.json.lock"):
        found = load()
        runs = {known: found["runs"].get(known, {}) for known in plan()}
        runs[name] = dict(sorted({**runs[name], str(seed): record}.items()))
        fresh = RECORDED.with_suffix(".tmp")
        fresh.write_text(json.dumps({**found, "runs": runs}) + "\n", encoding="utf-8", newline="\n")
        fresh.replace(RECORDED)  # whole or not at all: a stop loses nothing


def as_record(run: museum.MuseumRun) -> dict:
    curves = {
        name: [value if isinstance(value, int) else float(f"{value:.{DIGITS}g}") for value in values]
        for name, values in as_curves(run.metrics).items()
    }
    return dict(ended_by=run.ended_by, curves=curves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(museum.SEEDS))
    parser.add_argument("--only", nargs="+", choices=plan(), default=list(plan()), metavar="NAME")
    parser.add_argument("--anew", action="store_true", help="also what is in the file already")
    arguments = parser.parse_args()
    wanted = [(seed, name) for seed in arguments.seeds for name in arguments.only]
    for seed, name in (bar := tqdm(wanted, unit="run", dynamic_ncols=True)):
        if arguments.anew or str(seed) not in load()["runs"].get(name, {}):
            bar.set_postfix_str(f"{name}, seed {seed}")
            bug, config = plan()[name]
            keep(name, seed, as_record(museum.buggy_run(bug, config, seed=seed)))


if __name__ == "__main__":
    main()
