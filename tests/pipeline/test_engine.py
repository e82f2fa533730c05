"""Whole runs under other settings of the engine: what they must not change, and what they may change only a little."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from rlhf_lib.engine import hardware, loss_scaling, optimiser
from rlhf_lib.engine.run_folder import read_lines
from rlhf_lib.pipeline import machine
from rlhf_lib.pipeline.errors import SettingsError
from rlhf_lib.pipeline.pipeline import run_pipeline
from rlhf_lib.pipeline.settings import load_settings
from tests.pipeline.runs import small_run
from tests.pipeline.test_pipeline import OUTPUTS, content, metrics

HALVES = ("bfloat16", "float16")
LEARNING = ("sft.steps=4", "reward_model.steps=4")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs of all five stages by their changes, each made once; every step has left a checkpoint."""
    made: dict[tuple[str, ...], Path] = {}

    def run(*changes: str) -> Path:
        if changes not in made:
            made[changes] = tmp_path_factory.mktemp("run")
            run_pipeline(small_run(made[changes], *LEARNING, *changes, checkpoint_seconds=0))
        return made[changes]

    return run


def losses(folder: Path, stage: str) -> list[float]:
    return [row["loss"] for row in metrics(folder, stage)]


@pytest.mark.parametrize("precision", HALVES)
def test_a_run_with_fewer_bits_learns_the_same(whole, precision):
    """Rejects a precision that is set and not used, and one under which nothing is learnt.

    The reward model learns from other summaries: one token that falls out differently changes all that follow.
    """
    plain, out = whole(), whole(f"engine.precision={precision}")
    exact, found = losses(plain, "sft"), losses(out, "sft")
    assert found != exact and found == pytest.approx(exact, rel=0.01)
    assert all(found[-1] < found[0] for found in (losses(out, stage) for stage in ("sft", "reward_model")))
    first, last = metrics(out, "ppo")
    assert first["kl_before_first_update"] == first["ratio_error_before_first_update"] == 0
    gap = first["sampler_forward_gap"]  # about 1e-6 in float32; what is rounded to fewer bits can also be the same
    assert gap == 0 or 1e-5 < gap < 0.05
    assert 0 < last["kl_per_sequence"] < 1
    assert ("loss_scale" in last) is (precision == "float16")
    assert json.loads((out / "report.json").read_text())["ppo"]["win_rate_vs_sft"] > 0


def test_float16_leaves_out_a_step(whole):
    """Rejects a test of float16 in which nothing ever overflows: the first step of the reward model does."""
    rows = metrics(whole("engine.precision=float16"), "reward_model")
    assert [row["steps_left_out"] for row in rows] == [1, 0, 0, 0]
    assert rows[0]["grad_norm_body"] is None
    assert {row["loss_scale"] for row in rows} == {2.0**15}


def without_the_last_step(whole: Path, out: Path, stage: str) -> Path:
    """A copy of a run as it was when only the last step of the stage was left to do."""
    shutil.copytree(whole, out)
    results = json.loads((out / "results.json").read_text())
    kept = list(results)[: list(results).index(stage)]
    (out / "results.json").write_text(json.dumps({name: results[name] for name in kept}))
    shutil.rmtree(sorted((out / "checkpoints" / stage).iterdir())[-1])
    return out


@pytest.mark.parametrize("stage", ["reward_model", "ppo"])
@pytest.mark.parametrize("precision", HALVES)
def test_resume_bit_for_bit(whole, tmp_path, precision, stage):
    """Rejects a checkpoint without the scale of the losses, and weights that were rounded on the way."""
    change = f"engine.precision={precision}"
    out = without_the_last_step(whole(change), tmp_path / "run", stage)
    run_pipeline(small_run(out, *LEARNING, change, resume=True))
    assert content(out, OUTPUTS) == content(whole(change), OUTPUTS)


def test_a_scale_that_is_not_in_the_checkpoint(whole, tmp_path, monkeypatch):
    """The bug that the test above is for: it is seen."""
    change = "engine.precision=float16"
    out = without_the_last_step(whole(change), tmp_path / "run", "reward_model")
    monkeypatch.setattr(loss_scaling, "restore", lambda optimizer, state: None)
    run_pipeline(small_run(out, *LEARNING, change, resume=True))
    assert content(out, ["metrics.jsonl"]) != content(whole(change), ["metrics.jsonl"])


def test_checkpointed_layers_change_nothing(whole):
    """Rejects layers that run again with other numbers, in a run of which every byte is compared."""
    assert content(whole("engine.gradient_checkpointing=true"), OUTPUTS) == content(whole(), OUTPUTS)


def test_layers_do_run_again(whole, tmp_path, monkeypatch):
    """Rejects a setting that does nothing."""
    again = []
    checkpoint = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr("rlhf_lib.engine.models.checkpoint", lambda *a, **k: again.append(1) or checkpoint(*a, **k))
    run_pipeline(small_run(tmp_path, "sft.steps=1", "engine.gradient_checkpointing=true"), ["sft"])
    assert len(again) == 4  # layers


def test_written_out_attention(whole):
    """Rejects a kernel that is set and not used (not one bit differs), and one that computes something else."""
    eager, plain = metrics(whole("engine.attention=eager"), "sft"), metrics(whole(), "sft")
    assert eager != plain
    for found, exact in zip(eager, plain, strict=True):
        assert found.pop("stage") == exact.pop("stage")
        assert found == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("precision", HALVES)
def test_together_with_a_frozen_trunk(tmp_path, precision):
    """Rejects a trunk whose states depend on who asked for them first, and layers wrapped anew by every model."""
    changes = [f"engine.precision={precision}", "engine.gradient_checkpointing=true", "world.trainable_layers=2"]
    run = small_run(tmp_path, *changes)
    run_pipeline(run)
    layer, depth = run.trunk.body.layers[0].forward, 0
    while hasattr(layer, "args"):
        layer, depth = layer.args[-1], depth + 1
    assert depth == 2
    assert 0 < abs(metrics(tmp_path, "ppo")[-1]["kl_per_sequence"]) < 1  # k1 of eight texts: of either sign


def compiler_or_skip() -> None:
    try:
        hardware.refuse_to_compile(hardware.CPU)
    except ValueError as error:
        pytest.skip(str(error))


def test_compiled_layers(whole, tmp_path):
    """Rejects compiled layers that compute something else, and copies of a model that run the layers of another."""
    compiler_or_skip()
    changes = ["sft.steps=2", "reward_model.steps=2", "ppo.updates=2", "evaluation.posts=4"]
    run_pipeline(small_run(tmp_path / "plain", *changes))
    run_pipeline(small_run(tmp_path / "compiled", *changes, "engine.compile=true"))
    plain, compiled = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("plain", "compiled"))
    assert compiled != plain
    for found, exact in zip(compiled, plain, strict=True):
        assert found.pop("stage") == exact.pop("stage")
        assert found == pytest.approx(exact, rel=2e-3, abs=2e-5)


def test_no_compiler_is_one_line(monkeypatch):
    """Rejects a run that fails in its first step, or that goes on without being compiled."""

    def broken(*_, **__):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(SettingsError, match=r"engine.compile=true: torch.compile does not work here \(Invalid.*g\+\+"):
        machine.refuse_impossible(load_settings("tiny", ["engine.device=cpu", "engine.compile=true"]))


def test_gradients_that_stay_scaled_are_seen(whole, tmp_path, monkeypatch):
    """The deliberate bug: clipping and norms of gradients that are 65536 times too large."""
    monkeypatch.setattr(optimiser.loss_scaling, "unscale", lambda optimizer: None)
    run_pipeline(small_run(tmp_path, *LEARNING, "engine.precision=float16"), ["sft"])
    assert metrics(tmp_path, "sft")[0]["grad_norm"] > 1000 * metrics(whole(), "sft")[0]["grad_norm"]
