"""The folder of a run."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rlhf_lib.engine.run_folder import RunFolder, read_lines, stopwatch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "some" / "run")


def failing_rows():
    yield {"row": 1}
    raise RuntimeError("the model died")


@pytest.mark.parametrize("failure", [{"x": object()}, "rows"])
def test_the_old_file_stays_if_writing_fails(folder, failure):
    """Rejects writing into the file itself: half a results.json is worse than an old one."""
    folder.write_json("a.json", {"old": 1})
    folder.write_lines("a.jsonl", [{"old": 1}])
    with pytest.raises((TypeError, RuntimeError)):
        folder.write_lines("a.jsonl", failing_rows() if failure == "rows" else [{"row": 1}, failure])
    with pytest.raises(TypeError):
        folder.write_json("a.json", {"new": 2, "bad": object()})
    assert folder.read_json("a.json") == {"old": 1}
    assert read_lines(folder / "a.jsonl") == [{"old": 1}]


def test_a_kill_while_writing_leaves_the_old_file(folder, monkeypatch):
    """Rejects a draft that is moved before it is complete: the disk is full in the middle of the text."""
    folder.write_json("a.json", {"old": 1})

    def half(path, text, encoding):
        path.write_bytes(text[: len(text) // 2].encode(encoding))
        raise OSError("no space left")

    monkeypatch.setattr(type(folder.path), "write_text", half)
    with pytest.raises(OSError, match="no space"):
        folder.write_json("a.json", {"new": 2})
    with pytest.raises(OSError, match="no space"):
        folder.write_lines("a.json", [{"new": 2}])
    assert folder.read_json("a.json") == {"old": 1}


def test_what_is_written_is_read(folder):
    """Rejects a lost row, another encoding, and a default that hides a file that is there."""
    rows = [{"text": "naïve\n“line”", "score": 0.1}, {"score": 1e-300}]
    folder.write_lines("rows.jsonl", rows)
    assert read_lines(folder / "rows.jsonl") == rows
    folder.write_json("x.json", rows[0])
    assert folder.read_json("x.json", {}) == rows[0]
    assert folder.read_json("missing.json", {}) == {}
    with pytest.raises(FileNotFoundError):
        folder.read_json("missing.json")
    assert sorted(path.name for path in folder.path.iterdir()) == ["rows.jsonl", "x.json"]


def test_a_broken_row_is_named(folder):
    """Rejects an error that leaves open which of many lines is broken, and a count from 0."""
    (folder / "rows.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"a": \n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3"):
        read_lines(folder / "rows.jsonl")


def test_a_stage_forgets_only_itself(folder):
    """Rejects a restart that wipes the whole log, and one that leaves the times of the old run."""
    list(folder.log("sft", [{"step": 1}, {"step": 2}]))
    list(folder.log("ppo", [{"update": 0}]))
    folder.restart_stage("sft")
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert [row["stage"] for row in read_lines(folder / name)] == ["ppo"]
    list(folder.log("sft", [{"step": 3}]))
    assert [row.get("step") for row in read_lines(folder / "metrics.jsonl")] == [None, 3]
    RunFolder(folder.path / "new").restart_stage("sft")  # nothing to forget


def test_log_passes_steps_through_one_by_one(folder):
    """Rejects a log that waits for the end: a run that is killed keeps what it had."""
    made = []

    def steps():
        for number in range(3):
            made.append(number)
            yield {"loss": number / 2}

    logged = folder.log("sft", steps())
    assert made == []
    assert next(logged) == {"loss": 0.0}
    assert made == [0]
    assert read_lines(folder / "metrics.jsonl") == [{"stage": "sft", "loss": 0.0}]
    assert [row["step"] for row in read_lines(folder / "timing.jsonl")] == [0]
    assert len(list(logged)) == 2
    assert len(read_lines(folder / "metrics.jsonl")) == 3


def test_equal_runs_have_equal_metrics(tmp_path):
    """Rejects time or memory in the metrics; and a step's time must be its own, not the time since the start."""
    files = []
    for pause in (0.0, 0.03):
        folder = RunFolder(tmp_path / str(pause))
        started = time.perf_counter()
        for _ in folder.log("sft", ({"step": step, "x": time.sleep(pause)} for step in range(3))):
            pass
        elapsed = time.perf_counter() - started
        files.append((folder / "metrics.jsonl").read_bytes())
        spent = [row["seconds"] for row in read_lines(folder / "timing.jsonl")]
        assert all(seconds >= pause for seconds in spent) and sum(spent) <= elapsed
    assert files[0] == files[1]
    assert set(json.loads(files[0].splitlines()[0])) == {"stage", "step", "x"}


def test_stopwatch_adds_up_and_survives_errors():
    """Rejects a time that overwrites the one before, and one that is lost when the block fails."""
    seconds = {"ppo": 100.0}
    with pytest.raises(KeyError), stopwatch(seconds, "ppo"):
        raise KeyError
    assert 100 < seconds["ppo"] < 101


def test_memory_of_a_gpu_stands_beside_that_of_the_process(tmp_path, monkeypatch):
    """Rejects the process's memory alone where tensors are on a GPU, and a column where none is in use."""
    out = RunFolder(tmp_path)
    assert [*out.log("ppo", [{}])] == [{}]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    assert [*out.log("ppo", [{}], start=1)] == [{}]
    without, with_one = read_lines(tmp_path / "timing.jsonl")
    assert with_one["peak_gpu_mib"] == 3072 and with_one.keys() - without.keys() == {"peak_gpu_mib"}


def test_peak_memory_is_in_mib():
    """Rejects bytes or KiB taken for MiB, and memory now instead of the most so far: 64 MiB come and go."""
    program = """if True:
        from rlhf_lib.engine.run_folder import peak_memory_mib
        before = peak_memory_mib()
        block = bytearray(b"x") * (64 * 2**20)
        del block
        print(before, peak_memory_mib())
    """
    before, after = map(float, subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT).split())
    assert 5 < before < 60
    assert 56 < after - before < 72
