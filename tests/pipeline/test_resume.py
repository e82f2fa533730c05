"""Runs that are killed, stopped, damaged or doubled: nothing is lost, and the end is that of a run left in peace."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from rlhf_lib.engine import checkpoint
from rlhf_lib.engine.run_folder import read_lines
from rlhf_lib.pipeline.errors import StoppedError
from rlhf_lib.pipeline.pace import Pace
from rlhf_lib.pipeline.pipeline import run_pipeline
from tests.pipeline.runs import SMALL, small_run
from tests.pipeline.test_pipeline import MADE_BY, OUTPUTS, content

LONGER = ("sft.steps=12", "reward_model.steps=12", "ppo.updates=6")
KILLS = 10
PATIENCE = 240  # seconds for one process, on a machine that is busy with other things


def command(out: Path) -> list[str]:
    changes = [word for change in (*SMALL, *LONGER) for word in ("--set", change)]
    rest = ["--out", str(out), "--resume", "--checkpoint-seconds", "0"]
    return [sys.executable, "-m", "rlhf_lib", "run", *rest, *changes]


def start(out: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_until(process: subprocess.Popen, condition) -> bool:
    """True once the condition holds; False if the process ended before."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    raise TimeoutError(process.communicate())


def steps_done(out: Path) -> int:
    return (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").exists() else 0


def moments(out: Path):
    """Ten moments: right after certain steps of each stage, in the middle of writing a checkpoint, between stages."""
    drafts = {stage: out / "checkpoints" / stage / ".draft" for stage in ("sft", "reward_model", "ppo")}
    yield lambda: steps_done(out) >= 1
    yield drafts["sft"].exists
    yield lambda: steps_done(out) >= 7
    yield (out / "sft" / "config.json").exists
    yield (out / "preferences.jsonl").exists
    yield drafts["reward_model"].exists
    yield lambda: steps_done(out) >= 20
    yield (out / "reward_model" / "config.json").exists
    yield drafts["ppo"].exists
    yield lambda: steps_done(out) >= 28


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    process = start(out)
    assert process.wait(PATIENCE) == 0, process.stderr.read()
    return out


def test_killed_ten_times(undisturbed, tmp_path):
    """Rejects a resume that repeats or skips a step, forgets optimiser state, or trusts what was half written."""
    kills = 0
    for moment in moments(tmp_path):
        process = start(tmp_path)
        assert wait_until(process, moment), process.communicate()
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        kills += 1
    assert kills == KILLS
    process = start(tmp_path)
    assert process.wait(PATIENCE) == 0, process.stderr.read()
    assert content(tmp_path, OUTPUTS) == content(undisturbed, OUTPUTS)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_ctrl_c(undisturbed, tmp_path):
    """Rejects a Ctrl-C that loses work, shows a traceback, or does not say how to go on."""
    process = start(tmp_path)
    assert wait_until(process, lambda: steps_done(tmp_path) >= 3)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in complaint
    assert "stopped in stage sft after step" in complaint.splitlines()[-1]
    assert "--resume" in complaint
    assert checkpoint.latest(tmp_path / "checkpoints" / "sft").step == steps_done(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no facts", "facts cut"])
def test_a_damaged_checkpoint(undisturbed, tmp_path, damage, capsys):
    """Rejects weights taken from a damaged file: it is named, the one before is used, and the end is the same."""
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    results = json.loads((out / "results.json").read_text())
    (out / "results.json").write_text(
        json.dumps({name: results[name] for name in ("sft", "preferences", "reward_model")})
    )
    newest = sorted((out / "checkpoints" / "ppo").iterdir())[-1]
    tensors, facts = newest / checkpoint.TENSORS, newest / checkpoint.FACTS
    content_before = tensors.read_bytes()
    if damage == "cut":
        tensors.write_bytes(content_before[: len(content_before) // 2])
    if damage == "flipped":
        middle = len(content_before) // 2
        tensors.write_bytes(
            content_before[:middle] + bytes([content_before[middle] ^ 1]) + content_before[middle + 1 :]
        )
    if damage == "no facts":
        facts.unlink()
    if damage == "facts cut":
        facts.write_text(facts.read_text()[:40])
    run_pipeline(small_run(out, *LONGER, resume=True))
    assert f"checkpoint {newest}" in capsys.readouterr().err
    assert content(out, OUTPUTS) == content(undisturbed, OUTPUTS)


def test_a_clock_that_jumps(undisturbed, tmp_path, monkeypatch):
    """Rejects a run that reads the time of day: a laptop wakes up days later, or its clock is set back, and goes on.

    The monotonic clock may stand still or run on while the machine sleeps; it decides only when a checkpoint is due.
    """
    days = itertools.cycle([0.0, 3e5, -7e5])
    real, steady = time.time, time.monotonic
    monkeypatch.setattr(time, "time", lambda: real() + next(days))
    monkeypatch.setattr(time, "monotonic", lambda hours=itertools.count(): steady() + 3600 * next(hours))
    run_pipeline(small_run(tmp_path, *LONGER, checkpoint_seconds=5000))
    assert content(tmp_path, OUTPUTS) == content(undisturbed, OUTPUTS)
    kept = sorted(path.name for path in (tmp_path / "checkpoints" / "ppo").iterdir())
    assert kept == ["step-000004", "step-000006"]  # every second step, by the monotonic clock


def test_saving_costs_a_twentieth_at_most(tmp_path, monkeypatch):
    """Rejects a checkpoint after each ten seconds of work however long it takes to write: here two, so that the next
    one has to wait for forty. The first is not expected to be cheap, and the last step is always saved.
    """
    clock, saved, save = [0.0], [], checkpoint.save

    def slow_disk(folder, step, *rest):
        save(folder, step, *rest)
        saved.append(step)
        clock[0] += 2

    def ten_seconds_each(stage, steps, total, done=0):
        for step in steps:
            clock[0] += 10
            yield step

    run = replace(small_run(tmp_path, *LONGER), progress=ten_seconds_each)  # by default: every ten seconds
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: clock[0])
        patch.setattr(time, "perf_counter", lambda: clock[0])
        patch.setattr(checkpoint, "save", slow_disk)
        run_pipeline(run, ["sft"])
    assert saved == [1, 5, 9, 12]


def test_a_laptop_that_sleeps_while_it_saves(monkeypatch):
    """Rejects a pace that takes the night for the price of a checkpoint, and then saves none for a week."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    pace = Pace(10)
    with pace.saving():
        clock[0] += 30_000
    clock[0] += 3599
    assert not pace.due()
    clock[0] += 1
    assert pace.due()


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_ctrl_c_in_the_last_step_of_a_stage(finished, tmp_path, stage):
    """Rejects a Ctrl-C that is forgotten because the stage is over anyway: the next one would begin. The same command
    with --resume then has no step left to make, and goes on behind it.
    """

    def at_the_end(name, steps, total, done=0):
        for number, step in enumerate(steps, done + 1):
            if name == stage and number == total:
                signal.raise_signal(signal.SIGINT)
            yield step

    run = small_run(tmp_path)
    with pytest.raises(StoppedError, match=rf"stopped in stage {stage} after step 2 of 2.*--resume"):
        run_pipeline(replace(run, progress=at_the_end))
    assert not (tmp_path / ("preferences.jsonl" if stage == "sft" else "samples.jsonl")).exists()
    run_pipeline(replace(run, resume=True))
    assert content(tmp_path, OUTPUTS) == content(finished, OUTPUTS)


def test_a_time_that_was_cut_short(undisturbed, tmp_path):
    """Rejects a resume that appends to half a line of timing.jsonl: the next stage would stumble over it."""
    out = shutil.copytree(undisturbed, tmp_path / "run")
    results = json.loads((out / "results.json").read_text())
    (out / "results.json").write_text(json.dumps({"sft": results["sft"], "preferences": results["preferences"]}))
    newest = sorted((out / "checkpoints" / "reward_model").iterdir())[-1]
    shutil.rmtree(newest)  # one step is left to do
    with open(out / "timing.jsonl", "a") as file:
        file.write('{"stage": "ppo", "st')
    run_pipeline(small_run(out, *LONGER, resume=True))
    assert content(out, OUTPUTS) == content(undisturbed, OUTPUTS)
    assert {row["stage"] for row in read_lines(out / "timing.jsonl")} == {"sft", "reward_model", "ppo"}


def test_no_half_a_model(tmp_path, finished, monkeypatch):
    """Rejects a model written into its own folder: after a kill in the middle, the one before is still whole."""
    out = shutil.copytree(finished, tmp_path / "run")
    run, before = small_run(out), content(out, MADE_BY["sft"])
    policy = run.policy("sft")

    def killed(folder, **_):
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(policy, "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        run.save("sft", policy)
    assert content(out, MADE_BY["sft"]) == before


def test_two_runs_in_one_folder(tmp_path):
    """Rejects a second process that writes into the folder of the first."""
    with FileLock(tmp_path / ".lock"):
        process = start(tmp_path)
        _, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "another run is writing to" in complaint
    assert not (tmp_path / "settings.json").exists()


def test_a_finished_run_is_shown_again(undisturbed):
    """Rejects a resume that trains once more what is finished."""
    before = content(undisturbed, OUTPUTS)
    seconds = (undisturbed / "timing.jsonl").read_bytes()
    process = start(undisturbed)
    shown, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "wins against SFT" in shown
    assert content(undisturbed, OUTPUTS) == before
    assert (undisturbed / "timing.jsonl").read_bytes() == seconds


def test_what_follows_a_stage_made_anew_is_made_anew(undisturbed, tmp_path):
    """Rejects a resume that keeps the policy of another SFT: stages finished before one that is run do not count."""
    models, out = tmp_path / "models", tmp_path / "run"
    for name in ("sft", "reward_model"):  # models alone, without the results of a run
        shutil.copytree(undisturbed / name, models / name)
    run_pipeline(small_run(out, source=models), ["ppo"])
    before = (out / "policy" / "model.safetensors").read_bytes()
    report = run_pipeline(small_run(out, source=models, resume=True))
    assert (out / "policy" / "model.safetensors").read_bytes() != before
    assert "kl_per_sequence" in report["ppo"] and "win_rate_vs_sft" in report["ppo"]
