"""Everything about one GPU in one command: a whole run, updates of real shapes, writing, TRL beside it, a T4's limits.

    python -m benchmarks.on_gpu --record              # 25 minutes; writes docs/gpu.md, which says what the rows mean
    python -m benchmarks.on_gpu --small               # every part on small shapes: for a CPU, in about two minutes
    python -m benchmarks.on_gpu --only T4 --only TRL  # the parts with this in their names
    python -m benchmarks.on_gpu --minutes 9 --go-on   # in pieces: what OUT holds already is not run again

Each part is a process of its own, so that peaks of memory do not mix. A part that fails, that does not fit or that
misses something is reported, and the rest goes on. TRL must be there before (the part says how). The numbers stand in
OUT/results.json, as a page in OUT/results.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from . import page
from .parts import PARTS, PATIENCE, Part

ROOT = Path(__file__).parents[2]
PEER = ROOT / "benchmarks" / ".peers" / "trl-1.12.0"
RECORD = ROOT / "docs" / "gpu.json"
TICK = 0.5  # seconds between two looks at a part


def run_part(name: str, *, smaller: bool, seconds: float, tick: Callable[[], None]) -> dict:
    """What the part's process found, or why there is nothing; stopped after so many seconds."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([str(PEER)] if PEER.is_dir() else [])])
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log.txt"
        command = [sys.executable, "-m", "benchmarks.on_gpu.one", name, str(answer), *(["--small"] if smaller else [])]
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and time.monotonic() < started + seconds:
                time.sleep(TICK)
                tick()
        finally:
            process.kill()
            process.wait()
        found = read(answer, log, stopped=time.monotonic() >= started + seconds)
    return found | {"took": time.monotonic() - started}


def read(answer: Path, log: Path, *, stopped: bool) -> dict:
    if answer.exists():
        return json.loads(answer.read_text(encoding="utf-8"))
    if stopped:
        return {"state": "failed", "why": "it took too long and was stopped"}
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it ended without a word"]
    return {"state": "failed", "why": lines[-1][:300]}


def run_all(names: list[str], *, smaller: bool, minutes: float, keep: Callable[[str, dict], None]) -> None:
    """One part after the other, with a bar; those for which no time is left are not begun."""
    end = time.monotonic() + 60 * minutes
    with Bar([PARTS[name] for name in names]) as bar:
        for name in names:
            part = PARTS[name]
            bar.begin(name)
            if smaller or time.monotonic() + part.seconds <= end:
                allowed = PATIENCE * part.seconds if smaller else min(PATIENCE * part.seconds, end - time.monotonic())
                keep(name, run_part(name, smaller=smaller, seconds=allowed, tick=bar.tick))
            else:
                keep(name, {"state": "left out", "why": "no time was left; --go-on runs it another time"})
            bar.end(part)


class Bar:
    """How far it is, in seconds that the parts were guessed to take, and how many minutes are left."""

    def __init__(self, parts: list[Part]):
        from rich.progress import BarColumn, Progress, TextColumn

        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("about {task.fields[left]} min left")
        self.progress = Progress(*columns)
        self.total, self.done = sum(part.seconds for part in parts), 0
        self.task = self.progress.add_task("", total=self.total, left="?")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, name: str) -> None:
        self.began, self.expected = time.monotonic(), PARTS[name].seconds
        self.progress.update(self.task, description=name)
        self.tick()

    def tick(self) -> None:
        here = self.done + min(time.monotonic() - self.began, self.expected)
        left = max(1, round((self.total - here) / 60))
        self.progress.update(self.task, completed=here, left=left)

    def end(self, part: Part) -> None:
        self.done += part.seconds
        self.tick()


def chosen(wanted: list[str], there: dict[str, dict]) -> list[str]:
    """The parts whose names hold one of the words, but those that have run."""
    words = [word.lower() for word in wanted]
    fits = [name for name in PARTS if not words or any(word in name.lower() for word in words)]
    return [name for name in fits if there.get(name, {}).get("state") != "ran"]


def load(path: Path) -> dict[str, dict[str, dict]]:
    """Results by where they were run, cpu or gpu, and by part."""
    empty = {"gpu": {}, "cpu": {}}
    return empty | (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})


def save(results: dict, file: Path) -> None:
    """The numbers, and the page that is made of them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8", newline="\n")
    file.with_suffix(".md").write_text(page.write(results), encoding="utf-8", newline="\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.on_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="small shapes, also on a CPU")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="of a part's name; repeatable")
    parser.add_argument("--out", type=Path, default=Path("runs/on_gpu"))
    parser.add_argument("--minutes", type=float, default=25, help="after which no part is begun (default: 25)")
    parser.add_argument("--go-on", action="store_true", help="keep what OUT holds, and run what is missing in it")
    parser.add_argument("--record", action="store_true", help=f"and put it into {RECORD.relative_to(ROOT)} and .md")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    where = "gpu" if _gpu() else "cpu"
    if where == "cpu" and not arguments.small:
        print("PyTorch sees no GPU here; --small runs every part on small shapes on the CPU", file=sys.stderr)
        return 2
    where = "cpu" if arguments.small else where  # small shapes on a GPU say nothing about it
    file = arguments.out / "results.json"
    results = load(file) if arguments.go_on else load(Path("nothing"))
    typed = shlex.join(["python", "-m", "benchmarks.on_gpu", *sys.argv[1:]])
    facts = {"date": f"{datetime.date.today()}", "command": typed}

    def keep(name: str, found: dict) -> None:
        results[where][name] = found | facts
        save(results, file)
        print(f"{found['state']}: {name}{': ' + found['why'] if 'why' in found else ''}", flush=True)

    names = chosen(arguments.only, results[where])
    run_all(names, smaller=arguments.small, minutes=arguments.minutes, keep=keep)
    if arguments.record:
        record = load(RECORD)
        record[where] |= results[where]
        save(record, RECORD)
    print(f"{file} and {file.with_suffix('.md')}")
    return int(any(results[where][name]["state"] == "failed" for name in names))


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    raise SystemExit(main())
