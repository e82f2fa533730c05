"""Memory that runs out in a stage: one line that says what to lower, and a run that goes on with it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.engine.run_folder import read_lines
from rlhf_lib.maths import losses
from rlhf_lib.pipeline.errors import TrainingError
from rlhf_lib.pipeline.pipeline import run_pipeline
from rlhf_lib.pipeline.settings import from_json
from tests.pipeline.runs import small_run
from tests.pipeline.test_bad_input import CHANGES, process, rlhf
from tests.pipeline.test_pipeline import metrics

CARD = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.58 GiB of which 8 MiB is free"
TOLERANCE = 1e-4  # of metrics after two updates whose sums were taken in another order


def on_a_small_card(loss):
    """The loss, where at most four rows fit."""

    def fitting(log_probs, *rest, **hyper):
        if len(log_probs) > 4:
            raise torch.OutOfMemoryError(CARD)
        return loss(log_probs, *rest, **hyper)

    return fitting


SMALL_CARD = Parts(
    sft_loss=on_a_small_card(losses.sft_loss), policy_loss=on_a_small_card(losses.policy_loss),
    preference_loss=on_a_small_card(losses.preference_loss),
)  # fmt: skip
SAID = {
    "sft": "lower sft.micro_batch_size (it is 32) or set engine.gradient_checkpointing=true;",
    "reward_model": "lower reward_model.micro_batch_size (it is 128) or lower ppo.micro_batch_size (it is 32) or set ",
    "ppo": "lower ppo.micro_batch_size (it is 32) or lower world.sampled_at_once (it is 512) or set engine.gradient_c",
}


def failure(run, stage: str) -> str:
    with pytest.raises(TrainingError) as error:
        run_pipeline(run, [stage])
    return str(error.value)


@pytest.mark.parametrize("stage", SAID)
def test_the_line_names_what_to_lower(finished, tmp_path, stage):
    """Rejects a traceback, the settings of another stage, and a line that does not say how to go on."""
    said = failure(small_run(tmp_path, source=finished, parts=SMALL_CARD), stage)
    assert said.startswith(f"stage {stage} ran out of memory (it tried to allocate 2.00 GiB): {SAID[stage]}")
    assert said.endswith("; with that and --resume the same command goes on from what was saved")


@pytest.mark.parametrize("change", ["ppo.lean=true", "ppo.skip_unread=true", "engine.gradient_checkpointing=true"])
def test_no_advice_that_would_be_refused(finished, tmp_path, change):
    """Rejects a hint at checkpointed layers where a run refuses them, or has them already."""
    said = failure(small_run(tmp_path, change, source=finished, parts=SMALL_CARD), "ppo")
    assert "lower ppo.micro_batch_size" in said and "gradient_checkpointing" not in said


def test_nothing_left_to_lower(finished, tmp_path):
    """Rejects the advice to make micro-batches of less than a row."""

    def nothing_fits(*_, **__):
        raise torch.OutOfMemoryError(CARD)

    changes = ["sft.micro_batch_size=1", "engine.gradient_checkpointing=true"]
    said = failure(small_run(tmp_path, *changes, source=finished, parts=Parts(sft_loss=nothing_fits)), "sft")
    assert "there is nothing left to lower; choose a smaller world.model" in said


def test_the_cpu_s_own_words(finished, tmp_path):
    """Rejects a traceback where the memory of the machine itself is out, for which PyTorch has no error of its own."""

    def greedy(log_probs, action_mask):
        return torch.empty(2**46)

    said = failure(small_run(tmp_path, source=finished, parts=Parts(sft_loss=greedy)), "sft")
    assert said.startswith(
        "stage sft ran out of memory (it tried to allocate 281474976710656 bytes): lower sft.micro_b"
    )


def test_other_errors_stay_what_they_are(finished, tmp_path):
    """Rejects a mistake in a part that is explained away as a lack of memory."""

    def broken(log_probs, action_mask):
        return log_probs @ log_probs.T @ log_probs[0, :1]

    with pytest.raises(RuntimeError, match="size"):
        run_pipeline(small_run(tmp_path, source=finished, parts=Parts(sft_loss=broken)), ["sft"])


@pytest.fixture
def cut_off(finished, tmp_path):
    """A run whose PPO did not fit, and the command that began it."""
    failure(small_run(tmp_path / "run", source=finished, parts=SMALL_CARD), "ppo")
    stages = ("--stage", "ppo", "--stage", "evaluation")
    return rlhf("run", "--out", tmp_path / "run", "--from", finished, *stages, *CHANGES)


def test_it_goes_on_with_what_was_advised(finished, cut_off, tmp_path):
    """Rejects a resume that refuses the remedy, numbers other than up to rounding, settings.json with what no longer
    holds, and a change that nobody hears of or that is written down nowhere.
    """
    out = tmp_path / "run"
    done = process([*cut_off, "--resume", "--set", "ppo.micro_batch_size=4"])
    assert done.returncode == 0, done.stderr
    words = "stage ppo goes on with ppo.micro_batch_size=4 (it was 32): this changes results by rounding only\n"
    assert words in done.stderr
    for found, expected in zip(metrics(out, "ppo"), metrics(finished, "ppo"), strict=True):
        assert found.pop("stage") == expected.pop("stage")
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    assert from_json((out / "settings.json").read_text()).ppo.micro_batch_size == 4
    changes = [{"stage": "ppo", "steps_done": 0, "changed": {"ppo.micro_batch_size": [32, 4]}}]
    assert read_lines(out / "changes.jsonl") == changes
    assert json.loads((out / "report.json").read_text())["changes"] == changes


def test_what_is_finished_was_not_made_with_a_later_change(finished, tmp_path):
    """Rejects settings.json that claims of a finished run what no stage of it was run with."""
    out = tmp_path / "run"
    run_pipeline(small_run(out, source=finished), ["sft"])
    before = (out / "settings.json").read_bytes()
    run_pipeline(small_run(out, "engine.device=auto", source=finished, resume=True), ["sft"])
    assert (out / "settings.json").read_bytes() == before and not (out / "changes.jsonl").exists()


def test_changes_one_after_the_other(finished, tmp_path, capsys):
    """Rejects a second resume that compares with how the run began, and one that forgets the first change; and silence
    about texts that are drawn otherwise.
    """
    out = tmp_path / "run"
    run_pipeline(small_run(out, source=finished), ["sft"])
    run_pipeline(small_run(out, "world.sampled_at_once=5", source=finished, resume=True), ["sft", "preferences"])
    assert "world.sampled_at_once=5 (it was 512): this changes results by rounding only; texts in preferences are" in (
        capsys.readouterr().err
    )
    later = small_run(out, "world.sampled_at_once=5", "ppo.micro_batch_size=4", source=finished, resume=True)
    run_pipeline(later, ["sft", "preferences", "reward_model"])
    said = capsys.readouterr().err
    assert "stage reward_model goes on with ppo.micro_batch_size=4 (it was 32): this changes" in said
    assert "sampled_at_once" not in said
    assert read_lines(out / "changes.jsonl") == [
        {"stage": "preferences", "steps_done": 0, "changed": {"world.sampled_at_once": [512, 5]}},
        {"stage": "reward_model", "steps_done": 0, "changed": {"ppo.micro_batch_size": [32, 4]}},
    ]


def test_a_change_in_the_middle_of_a_stage_says_after_which_step(finished, tmp_path):
    """Rejects the stage alone, in which steps were made with either value, the step of another stage, and that of the
    log's last row, which is made again.
    """

    def until_the_third(stage, steps, total, done=0):
        for number, step in enumerate(steps, done + 1):
            if stage == "sft" and number == 4:
                raise KeyboardInterrupt
            yield step

    run = small_run(tmp_path, "sft.steps=5", checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(replace(run, progress=until_the_third), ["sft"])
    run_pipeline(small_run(tmp_path, "sft.steps=5", "sft.micro_batch_size=4", resume=True), ["sft"])
    changed = {"sft.micro_batch_size": [32, 4]}
    assert read_lines(tmp_path / "changes.jsonl") == [{"stage": "sft", "steps_done": 3, "changed": changed}]
