"""A run of two processes: the files of one, and what happens when one of the two is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from rlhf_lib.engine import dump
from rlhf_lib.engine.run_folder import read_lines
from tests.helpers import IN_PARTS

SMALL = [
    f"--set={change}"
    for change in (
        "sft.steps=2", "preferences.posts=16", "preferences.held_out_posts=4", "reward_model.steps=2", "ppo.updates=4",
        "ppo.batch_size=8", "evaluation.posts=8", "evaluation.bootstrap=20",
    )
]  # fmt: skip
TOLERANCE = 1e-4  # of metrics after four updates: rounding grows from update to update
PATIENCE = 120  # seconds for a process to say that it has lost the other


def start(out: Path, processes: int, *more: str) -> list[subprocess.Popen]:
    """As `torchrun` would, but for the guard that ends all when one does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = dict(WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "rlhf_lib", "run", "--out", str(out), "--checkpoint-seconds", "0", *SMALL, *more]
    return [
        subprocess.Popen(
            command, env=os.environ | group | dict(RANK=str(rank), LOCAL_RANK=str(rank)), text=True, encoding="utf-8",
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for rank in range(processes)
    ]  # fmt: skip


def finish(out: Path, processes: int, *more: str) -> None:
    started = start(out, processes, *more)
    complaints = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, complaints


def texts(folder: Path) -> list:
    return [read_lines(folder / name) for name in ("preferences.jsonl", "samples.jsonl")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    finish(out, 1)
    return out


def numbers(folder: Path) -> list[dict]:
    return [
        {name: value for name, value in row.items() if name != "stage"} for row in read_lines(folder / "metrics.jsonl")
    ]


def last_lines(started: list[subprocess.Popen]) -> list[str]:
    """The last thing that each process said; none of them said it in a traceback."""
    complaints = [process.communicate(timeout=PATIENCE)[1] for process in started]
    assert not [complaint for complaint in complaints if "Traceback" in complaint], complaints
    return [complaint.strip().splitlines()[-1] for complaint in complaints]


def test_what_one_process_refuses(tmp_path):
    """Rejects a traceback of the group's in those that wait for it: only the first sees that the folder is locked."""
    with FileLock(tmp_path / ".lock"):
        started = start(tmp_path, 2)
        first, second = last_lines(started)
    assert [process.returncode for process in started] == [2, 1]
    assert "another run is writing to" in first
    assert "process 1 of 2 has lost the others" in second and "failed and says why above" in second


def test_what_all_of_them_find_at_once(tmp_path):
    """Rejects two processes that write one dump and take it from each other: after the first step all weights are
    enormous, and each process finds out by itself.
    """
    started = start(tmp_path, 2, "--stage=sft", "--set=sft.learning_rate=1e30")
    lines = last_lines(started)
    assert [process.returncode for process in started] == [1, 1]
    for line, name in zip(lines, ("dump", "dump-1"), strict=True):
        assert "the SFT loss is not finite" in line
        assert f"python -m rlhf_lib.engine.dump {tmp_path / name} (" in line
        assert dump.read(tmp_path / name).not_finite()


@pytest.mark.parametrize(
    ("sharding", "then"),
    [("none", 2), *(pytest.param(name, 1 if name == "fsdp2" else 2, marks=mark) for name, mark in IN_PARTS.items())],
)
def test_a_killed_process_and_a_run_that_goes_on(alone, tmp_path, sharding, then):
    """Rejects a process that waits for ever for one that is gone, and a run of two that is another run.

    The one that is left says what to do, in one line; after that `then` processes go on from the checkpoint and end
    with the texts of a single process, and with its metrics up to the order of sums. Sharded, this rejects a checkpoint
    of parts that one process alone cannot put together.
    """
    sharded = f"--set=engine.sharding={sharding}"
    first, second = start(tmp_path, 2, sharded)
    deadline = time.monotonic() + PATIENCE
    checkpoints = tmp_path / "checkpoints" / "ppo"
    while not (checkpoints.exists() and any(checkpoints.glob("step-*"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    complaint = first.communicate(timeout=PATIENCE)[1]
    second.communicate()
    assert first.returncode == 1, complaint
    last = complaint.strip().splitlines()[-1]
    assert "has lost the others" in last and "--resume" in last and str(tmp_path) in last, complaint
    finish(tmp_path, then, sharded, "--resume")
    assert texts(tmp_path) == texts(alone)
    assert len(numbers(tmp_path)) == len(numbers(alone))
    for found, expected in zip(numbers(tmp_path), numbers(alone), strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
