"""Lessons beside a GPU: what they show is made on the CPU, where it is the same for everybody."""

from __future__ import annotations

import pytest
import torch

from rlhf_lib.algorithms.ppo_config import PPOConfig
from rlhf_lib.course import fine_tuning
from rlhf_lib.course.live_run import LiveRun
from rlhf_lib.course.short_runs import short_run

ONE_UPDATE = PPOConfig(updates=1, batch_size=4, epochs=1, response_length=4)


@pytest.fixture(autouse=True)
def a_gpu_that_refuses(monkeypatch):
    """PyTorch says that there is one; whoever puts a tensor on it gets an error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    # Each step of an optimiser asks whether it is being captured; in a build with CUDA a missing driver has to answer.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1).to("cuda")


def test_short_runs_leave_a_gpu_alone():
    """Rejects prompts that go where a GPU is while the models stay, or the other way round."""
    assert len(list(short_run(config=ONE_UPDATE))) == 1


def test_so_does_the_run_of_the_dashboard():
    """Rejects the same in the thread's own way of making its batches."""
    run = LiveRun(ONE_UPDATE)
    run.start()
    run.wait()
    assert len(run.metrics) == 1


def test_so_does_fine_tuning():
    """Rejects settings whose device is "auto", in what lesson 06 borrows from the pipeline."""
    rows = fine_tuning.preferences("held_out_preferences", 2)
    scorer = fine_tuning.models.load_scorer(fine_tuning.ASSETS / "reward_model")
    assert 0 <= fine_tuning.accuracy(scorer, rows) <= 1
