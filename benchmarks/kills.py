"""Fifty runs, each killed once with SIGKILL and resumed: does every one end like a run that was never disturbed?

    python -m benchmarks.kills                        about twenty minutes on one core
    python -m benchmarks.kills --kills 5              a quick look
    python -m benchmarks.kills --set ppo.updates=30   a longer run to kill

The moments are spread evenly over the time that the undisturbed run takes from its first file to its last; every fifth
kill waits from there until a checkpoint is being written. Compared are the bytes of every file but those that hold
times. The exit status is 1 if any run ends otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHANGES = (
    "sft.steps=10", "sft.batch_size=8", "preferences.posts=12", "preferences.held_out_posts=8",
    "reward_model.steps=10", "reward_model.posts_per_batch=2", "ppo.updates=6", "ppo.batch_size=8",
    "ppo.response_length=12", "evaluation.posts=24", "evaluation.bootstrap=50",
)  # fmt: skip
HOLD_TIMES = {"timing.jsonl", "results.json", "report.json", "report.html", ".lock"}
TIMELESS = ("seconds", "peak_memory_mib")  # the keys left out of report.json, which is compared without them
EVERY = 5  # every fifth kill hits a checkpoint that is being written


@dataclass(frozen=True)
class Kill:
    """One kill and what became of the run."""

    at: float  # seconds after the run's first file
    where: str
    hit: bool  # False: the run was faster than the undisturbed one and had ended
    while_writing: bool
    differs: list[str]


def start(out: Path, changes: list[str]) -> subprocess.Popen:
    """The run as a process of its own, with a checkpoint after every step."""
    options = ["--out", str(out), "--resume", "--checkpoint-seconds", "0"]
    options += [word for change in (*CHANGES, *changes) for word in ("--set", change)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "rlhf_lib", "run", *options],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def finish(out: Path, changes: list[str]) -> float:
    """Run to the end; returns the seconds from its first file on."""
    process = start(out, changes)
    wait_for(process, lambda: (out / "settings.json").exists())
    started = time.monotonic()
    _, complaint = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the run ended with status {process.returncode}:\n{complaint}")
    return time.monotonic() - started


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Until the condition holds or the process has ended."""
    while not condition() and process.poll() is None:
        time.sleep(0.0005)


def is_writing(out: Path) -> bool:
    """Whether a checkpoint is half written at this moment."""
    return any((out / "checkpoints").glob("*/.draft"))


def kill_once(out: Path, undisturbed: dict[str, object], at: float, changes: list[str], *, writing: bool) -> Kill:
    """A run that is killed `at` seconds after its first file, resumed, and compared."""
    process = start(out, changes)
    wait_for(process, lambda: (out / "settings.json").exists())
    time.sleep(at)
    if writing:
        wait_for(process, lambda: is_writing(out))
    hit = process.poll() is None
    process.kill()
    process.communicate()
    while_writing, where = is_writing(out), place(out)
    finish(out, changes)
    resumed = content(out)
    names = sorted(resumed.keys() | undisturbed.keys())
    differs = [name for name in names if resumed.get(name) != undisturbed.get(name)]
    return Kill(at, where, hit, while_writing, differs)


def place(out: Path) -> str:
    """How far a run has come: its last logged step, or the latest file of a stage that logs none."""
    for name in ("report.html", "report.json", "samples.jsonl", "policy"):
        if (out / name).exists():
            return f"after {name}"
    path = out / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    if not lines:
        return "before the first step"
    stages = [json.loads(line)["stage"] for line in lines]
    return f"{stages[-1]}, step {stages.count(stages[-1])}"


def content(out: Path) -> dict[str, object]:
    """Every file's bytes by name, times left out; checkpoints and TensorBoard's events are no result."""
    found: dict[str, object] = {}
    for path in out.rglob("*"):
        name = path.relative_to(out).as_posix()
        if path.is_file() and name not in HOLD_TIMES and not name.startswith(("checkpoints/", "tensorboard/")):
            found[name] = path.read_bytes()
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    found["report.json"] = {key: value for key, value in report.items() if key not in TIMELESS}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many runs are killed (default 50)")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="KEY=VALUE, as `run` takes it")
    arguments = parser.parse_args()
    kills = []
    with tempfile.TemporaryDirectory() as folder:
        seconds = finish(Path(folder) / "undisturbed", arguments.changes)
        undisturbed = content(Path(folder) / "undisturbed")
        print(f"undisturbed: {seconds:.1f} s from its first file, {len(undisturbed)} files compared", flush=True)
        for number in range(arguments.kills):
            at = seconds * (number + 0.5) / arguments.kills
            out = Path(folder) / f"killed{number}"
            kills.append(kill_once(out, undisturbed, at, arguments.changes, writing=number % EVERY == 0))
            show(number, kills[-1])
    same = sum(not kill.differs for kill in kills)
    hits, writing = (sum(getattr(kill, name) for kill in kills) for name in ("hit", "while_writing"))
    print(f"{same} of {len(kills)} runs ended like the undisturbed one; {hits} were killed before their end, {writing} "
          "of them while a checkpoint was being written")  # fmt: skip
    sys.exit(same < len(kills))


def show(number: int, kill: Kill) -> None:
    """One line a kill, as soon as it is known."""
    ended = f"differs in {', '.join(kill.differs)}" if kill.differs else "same"
    moment = ", writing a checkpoint" if kill.while_writing else "" if kill.hit else ", had ended"
    print(f"kill {number + 1:>2} after {kill.at:5.1f} s ({kill.where}{moment}): {ended}", flush=True)


if __name__ == "__main__":
    main()
