"""Fifty runs, each killed once with SIGKILL and resumed: does every one end like a run that was never disturbed?

    python -m benchmarks.kills                        about ten minutes on one idle core
    python -m benchmarks.kills --kills 5              a quick look
    python -m benchmarks.kills --part 2/10            every tenth of the fifty, from the second: fifty in pieces
    python -m benchmarks.kills --set ppo.updates=30   a longer run to kill

The moments are spread evenly over the time that the undisturbed run computes, from its first file to its end (computing
time, so that a busy machine does not move them); every fifth kill waits from there until a checkpoint is being written.
Compared are the bytes of every file but those that hold times. The exit status is 1 if any run ends otherwise. Each run
is a process of its own, forked from one that has done the imports; needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

CHANGES = (
    "sft.steps=10", "sft.batch_size=8", "preferences.posts=12", "preferences.held_out_posts=8",
    "reward_model.steps=10", "reward_model.posts_per_batch=2", "ppo.updates=6", "ppo.batch_size=8",
    "ppo.response_length=12", "evaluation.posts=24", "evaluation.bootstrap=50",
)  # fmt: skip
HOLD_TIMES = {"timing.jsonl", "results.json", "report.json", "report.html", ".lock"}
TIMELESS = ("seconds", "peak_memory_mib")  # the keys left out of report.json, which is compared without them
IMPORTED_ONCE = ["rlhf_lib.pipeline.command", "transformers.models.llama.modeling_llama"]
EVERY = 5  # every fifth kill hits a checkpoint that is being written


@dataclass(frozen=True)
class Kill:
    """One kill and what became of the run."""

    at: float  # seconds of computing after the run's first file
    where: str
    hit: bool  # False: the run was faster than the undisturbed one and had ended
    while_writing: bool
    differs: list[str]


class Attempt:
    """A run in a process of its own, with a checkpoint after every step."""

    def __init__(self, out: Path, changes: list[str]):
        options = ["--out", str(out), "--resume", "--checkpoint-seconds", "0"]
        options += [word for change in (*CHANGES, *changes) for word in ("--set", change)]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED_ONCE)
        self.log = out.with_suffix(".log")
        self.process = context.Process(target=rlhf, args=(["run", *options], self.log))
        self.process.start()
        self.computed = 0.0
        wait_for(self, lambda: (out / "settings.json").exists())
        self.before = self.computed

    def seconds(self) -> float:
        """Of computing since the run's first file."""
        return self.computed - self.before

    def lives(self) -> bool:
        try:
            self.computed = sum(psutil.Process(self.process.pid).cpu_times()[:2])
        except psutil.NoSuchProcess:
            return False
        return self.process.is_alive()

    def finish(self) -> float:
        """To the end; returns the seconds of computing.

        raises  RuntimeError with what the run said if it fails
        """
        wait_for(self, lambda: False)
        self.process.join()
        if self.process.exitcode:
            raise RuntimeError(f"the run ended with status {self.process.exitcode}:\n{self.log.read_text()}")
        return self.seconds()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def rlhf(arguments: list[str], log: Path) -> None:
    """What each process does: the command line, with all it says in a file."""
    from rlhf_lib import cli

    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["rlhf", *arguments]
    cli.main()


def wait_for(attempt: Attempt, condition: Callable[[], bool]) -> None:
    """Until the condition holds or the process has ended."""
    while attempt.lives() and not condition():
        time.sleep(0.002)


def is_writing(out: Path) -> bool:
    """Whether a checkpoint is half written at this moment."""
    return any((out / "checkpoints").glob("*/.draft"))


def kill_once(out: Path, undisturbed: dict[str, object], at: float, changes: list[str], *, writing: bool) -> Kill:
    """A run that is killed when it has computed for `at` seconds since its first file, resumed, and compared."""
    attempt = Attempt(out, changes)
    wait_for(attempt, lambda: attempt.seconds() >= at)
    if writing:
        wait_for(attempt, lambda: is_writing(out))
    hit = attempt.lives()
    attempt.kill()
    while_writing, where = is_writing(out), place(out)
    Attempt(out, changes).finish()
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
    parser.add_argument("--part", type=part, default=(1, 1), metavar="K/N", help="every Nth kill, from the Kth")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="KEY=VALUE, as `run` takes it")
    arguments = parser.parse_args()
    leaks = "ignore::UserWarning:multiprocessing.resource_tracker"  # what is killed does not tidy up
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", PYTHONWARNINGS=leaks)
    kills = []
    with tempfile.TemporaryDirectory() as folder:
        seconds = Attempt(Path(folder) / "undisturbed", arguments.changes).finish()
        undisturbed = content(Path(folder) / "undisturbed")
        print(f"undisturbed: computes for {seconds:.1f} s from its first file; {len(undisturbed)} files", flush=True)
        first, step = arguments.part
        for number in range(first - 1, arguments.kills, step):
            at = seconds * (number + 0.5) / arguments.kills
            out = Path(folder) / f"killed{number}"
            kills.append(kill_once(out, undisturbed, at, arguments.changes, writing=number % EVERY == 0))
            show(number, kills[-1])
    same = sum(not kill.differs for kill in kills)
    hits, writing = (sum(getattr(kill, name) for kill in kills) for name in ("hit", "while_writing"))
    print(f"{same} of {len(kills)} runs ended like the undisturbed one; {hits} were killed before their end, {writing} "
          "of them while a checkpoint was being written")  # fmt: skip
    sys.exit(same < len(kills))


def part(text: str) -> tuple[int, int]:
    """K and N of "K/N".

    raises  ValueError, which argparse explains, for anything else
    """
    first, step = map(int, text.split("/"))
    if not 1 <= first <= step:
        raise ValueError(text)
    return first, step


def show(number: int, kill: Kill) -> None:
    """One line a kill, as soon as it is known."""
    ended = f"differs in {', '.join(kill.differs)}" if kill.differs else "same"
    moment = ", writing a checkpoint" if kill.while_writing else "" if kill.hit else ", had ended"
    print(f"kill {number + 1:>2} after {kill.at:5.1f} s ({kill.where}{moment}): {ended}", flush=True)


if __name__ == "__main__":
    main()
