"""The GPU benchmark without a GPU: parts run on small shapes, what fails stops nothing, the page is its record."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.on_gpu import __main__ as command
from benchmarks.on_gpu import decoding, machine, page, updates
from benchmarks.on_gpu.work import LLAMA_1B, SMOLLM2, Work, small

ROOT = Path(__file__).parent.parent
ON_A_TRUNK = "as on a T4, Pythia-410M, top 8 layers"


@pytest.mark.parametrize("name", ["1B Llama, batch 64", ON_A_TRUNK])
def test_an_update_is_measured_as_its_budget_says(name):
    """Rejects phases that overlap or leave time out, peaks of another phase, and a budget told of other settings."""
    found = command.run_part(name, smaller=True, seconds=120, tick=lambda: None)
    assert found["state"] == "ran", found
    spent = dict(found["seconds"])
    assert sum(spent.values()) == pytest.approx(2 * spent.pop("update")) and min(spent.values()) > 0
    assert max(found["peaks"].values()) == pytest.approx(max(found["predicted"].values()), rel=0.1)


def test_all_ways_of_writing_write_the_same(monkeypatch):
    """Rejects a way that samples, stops early or leaves out the first token."""
    monkeypatch.setattr(decoding, "compiling", lambda prompts: {"disable_compile": True})  # half a minute
    work = replace(small(Work(shape=SMOLLM2)), precision="float32")
    found = decoding.measure(work)["ways"]
    assert {way: numbers["equal_tokens"] for way, numbers in found.items()} == dict.fromkeys(found, 1.0)
    assert len(found) == 5


def test_a_way_that_cannot_be_had_leaves_the_others(monkeypatch):
    """Rejects a missing compiler that takes all numbers with it."""
    monkeypatch.setattr(decoding, "compiling", lambda prompts: {"compile_config": "no such thing"})
    found = decoding.measure(small(Work(shape=SMOLLM2)))["ways"]
    assert [way for way, numbers in found.items() if "failed" in numbers] == ["generate, static cache, compiled"]


def test_the_micro_batch_is_the_largest_that_fits():
    """Rejects one that is halved once too often, or not often enough."""
    from rlhf_lib.engine.memory_budget import GIB, estimate

    plan = updates.plan_of(Work(shape=LLAMA_1B), torch.device("cuda"))
    memory = 70 * GIB
    fitting = updates.plan_that_fits(plan, memory)
    assert estimate(fitting).peak <= memory < estimate(replace(fitting, micro_batch=2 * fitting.micro_batch)).peak
    with pytest.raises(machine.LeftOut, match="does not fit: its budget is 5"):
        updates.plan_that_fits(plan, 15 * GIB)


def test_what_fails_is_reported_and_the_rest_goes_on(monkeypatch):
    """Rejects a run that ends with its first failure, and one that begins a part for which there is no time."""
    found = {}
    monkeypatch.setattr(command, "run_part", lambda name, **_: {"state": "failed", "why": "out of memory"})
    names = ["1B Llama, batch 64", "1B Llama, batch 512"]
    command.run_all(names, smaller=False, minutes=2, keep=found.__setitem__)
    assert [found[name]["state"] for name in names] == ["failed", "left out"]


def test_the_command_writes_what_it_found(tmp_path):
    """Rejects an answer that is lost between the processes, and a page of other numbers."""
    typed = [sys.executable, "-m", "benchmarks.on_gpu", "--small", "--only", "T4, SmolLM2", "--out", str(tmp_path)]
    done = subprocess.run(typed, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    (found,) = results["cpu"].values()
    assert found["state"] == "ran" and found["work"]["precision"] == "float16" and not results["gpu"]
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == page.write(results)


def test_the_last_words_of_a_part_are_reported(tmp_path):
    """Rejects a reason that only a log knows, which is gone."""
    (tmp_path / "log").write_text("much\ntorch.OutOfMemoryError: CUDA out of memory.\n", encoding="utf-8")
    failed = command.read(tmp_path / "no answer", tmp_path / "log", stopped=False)
    assert failed == {"state": "failed", "why": "torch.OutOfMemoryError: CUDA out of memory."}


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    """Rejects full sizes on a CPU, which would take days."""
    monkeypatch.setattr(sys, "argv", ["on_gpu"])
    assert command.main() == 2
    assert "--small" in capsys.readouterr().err


def test_the_page_is_made_from_the_record():
    """Rejects numbers that somebody typed."""
    record = command.load(command.RECORD)
    assert command.RECORD.with_suffix(".md").read_text(encoding="utf-8") == page.write(record)


def test_the_page_says_what_was_never_run_and_how_far_a_budget_was_off():
    """Rejects a row without numbers that looks like one with, and an error with the wrong sign."""
    ran = {
        "state": "ran", "date": "2026-01-01", "command": "c", "device": "d", "versions": {}, "float32_products": "f",
        "work": {"micro_batch": 8}, "seconds": {"sampling": 1.0, "scoring": 2.0, "training": 3.0, "update": 6.5},
        "tokens_per_second": {"written": 10, "of an update": 20}, "fraction_of_rate": {"update": 0.25},
        "matrix_rate": 4e14, "predicted": {"backward": 2**30}, "peaks": {"backward": 2**31}, "reserved": 2**31,
    }  # fmt: skip
    text = page.write({"gpu": {"1B Llama, batch 64": ran}, "cpu": {}})
    assert "Of 14 parts, 1 were run on a GPU." in text
    (row,) = [line for line in text.splitlines() if line.startswith("| 1B Llama, batch 64 |") and "GPU" not in line][:1]
    assert "| 6.50 |" in row and "| 25% of 400 TFLOP/s |" in row and "| -50.0% |" in row
    assert "| 1B Llama, batch 512 | **never run on a GPU** |" in text
