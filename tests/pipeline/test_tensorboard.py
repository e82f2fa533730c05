"""TensorBoard's events: a copy of metrics.jsonl, through a resume too; and nothing at all where it is not installed."""

from __future__ import annotations

import importlib.util
import math
import shutil
import sys
from pathlib import Path

import pytest

from rlhf_lib.engine.run_folder import RunFolder
from rlhf_lib.engine.tensorboard import mirrored
from rlhf_lib.pipeline.pipeline import run_pipeline
from tests.pipeline.runs import small_run
from tests.pipeline.test_pipeline import MADE_BY, content, metrics

INSTALLED = importlib.util.find_spec("tensorboard") is not None
NEEDS_TENSORBOARD = pytest.mark.skipif(not INSTALLED, reason="TensorBoard is not installed")


def events(out: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every scalar of a stage, in the order in which they are in its files."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((out / "tensorboard" / stage).iterdir()):
        for raw in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(raw)
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def expected(out: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    """The same, from metrics.jsonl."""
    found: dict[str, list[tuple[int, float]]] = {}
    for number, row in enumerate(metrics(out, stage), 1):
        for name, value in row.items():
            if isinstance(value, (int, float)):
                found.setdefault(name, []).append((number, value))
    return found


def assert_a_copy(out: Path, *stages: str) -> None:
    for stage in stages:
        there, wanted = events(out, stage), expected(out, stage)
        assert there.keys() == wanted.keys()
        for name in wanted:
            assert [step for step, _ in there[name]] == [step for step, _ in wanted[name]]
            assert [value for _, value in there[name]] == pytest.approx([value for _, value in wanted[name]], rel=1e-6)


@NEEDS_TENSORBOARD
def test_events_are_the_metrics(finished):
    """Rejects a metric, a step or a stage that is left out, and steps that are off by one."""
    assert_a_copy(finished, "sft", "reward_model", "ppo")


@NEEDS_TENSORBOARD
def test_after_a_resume(finished, tmp_path):
    """Rejects events that are there twice, lost ones of steps before the checkpoint, and old ones of steps after it."""
    changes = ("ppo.updates=3",)
    run_pipeline(small_run(tmp_path, *changes, source=finished, checkpoint_seconds=0), ["ppo"])
    before = content(tmp_path, MADE_BY["ppo"])
    (tmp_path / "results.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "ppo" / "step-000003")
    run_pipeline(small_run(tmp_path, *changes, source=finished, resume=True), ["ppo"])
    assert_a_copy(tmp_path, "ppo")
    assert len(events(tmp_path, "ppo")["gold"]) == 3
    assert content(tmp_path, MADE_BY["ppo"]) == before


@NEEDS_TENSORBOARD
def test_rows_from_before_and_values_that_are_none(tmp_path):
    """Rejects a resume that counts from 0 again, and NaN or text as a scalar."""
    steps = mirrored(
        tmp_path / "tensorboard" / "x", [{"a": 3.0, "b": math.nan, "stage": "x"}], before=[{"a": 1}, {"a": 2}]
    )
    assert list(steps) == [{"a": 3.0, "b": pytest.approx(math.nan, nan_ok=True), "stage": "x"}]
    assert events(tmp_path, "x") == {"a": [(1, 1.0), (2, 2.0), (3, 3.0)]}


def test_without_tensorboard(finished, tmp_path, monkeypatch):
    """Rejects an import that is needed, a folder for nothing, and metrics that depend on what is installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run_pipeline(small_run(tmp_path, source=finished), ["ppo"])
    assert not (tmp_path / "tensorboard").exists()
    assert metrics(tmp_path, "ppo") == metrics(finished, "ppo")


def test_a_broken_installation_is_said_once_and_survived(tmp_path, monkeypatch, capsys):
    """Rejects a run that dies of a TensorBoard whose protobuf does not fit."""
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "__init__.py").write_text("raise TypeError('Descriptors cannot be created')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    folder = RunFolder(tmp_path / "out")
    assert list(mirrored(folder / "tensorboard", [{"a": 1}], before=[])) == [{"a": 1}]
    assert "TensorBoard is installed but does not work (TypeError: Descriptors" in capsys.readouterr().err
