"""A loss or a gradient that is not finite, provoked for real: what the run says, leaves behind, and leaves alone."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from rlhf_lib import cli
from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.engine import checkpoint, dump, models
from rlhf_lib.engine.files import DamagedError
from rlhf_lib.maths.alignment import action_mask_from_lengths
from rlhf_lib.maths.losses import log_ratio, policy_loss
from rlhf_lib.maths.masking import masked_mean
from rlhf_lib.pipeline.errors import TrainingError
from rlhf_lib.pipeline.pipeline import run_pipeline
from tests.pipeline.runs import small_run
from tests.pipeline.test_bad_input import CHANGES, files
from tests.pipeline.test_pipeline import content


def overflowing_policy_loss(log_probs, old_log_probs, advantages, action_mask, *, clip):
    """A planted bug: nats taken for thousands of nats. Nothing shows while the ratio is 1; then exp overflows."""
    ratio = (1000 * log_ratio(log_probs, old_log_probs, action_mask)).exp()
    return torch.where(action_mask, -advantages * ratio, 0)


def steep_sft_loss(log_probs, action_mask):
    """Finite everywhere, with an infinite slope: the square root at 0."""
    return torch.where(action_mask, (log_probs - log_probs.detach()).abs().sqrt() - log_probs, 0)


def failure(run, stage: str) -> str:
    with pytest.raises(TrainingError) as error:
        run_pipeline(run, [stage])
    return str(error.value)


@pytest.fixture
def overflown(finished, tmp_path):
    """A PPO run whose policy loss overflows in its second optimiser step, and what it said."""
    parts = replace(Parts(), policy_loss=overflowing_policy_loss)
    run = small_run(tmp_path / "run", "ppo.learning_rate=1e-2", source=finished, parts=parts)
    return tmp_path / "run", failure(run, "ppo")


def test_the_message_says_what_and_where(overflown):
    """Rejects a message that leaves out the step, the tensor, what is kept, or how to look at it; and a second line."""
    out, said = overflown
    assert said.startswith("stage ppo failed after step 0: the PPO loss is not finite: ")
    assert "namely policy_loss, loss;" in said
    assert f"python -m rlhf_lib.engine.dump {out / 'dump'}" in said
    assert "no checkpoint of this stage had been made" in said
    assert "\n" not in said


def test_the_dump_holds_the_micro_batch(overflown, finished):
    """Rejects tensors of another micro-batch, of another moment, or too few to compute the loss again."""
    out, _ = overflown
    found = dump.read(out / "dump").tensors
    texts = {name: found[name] for name in ("tokens", "prompt_lengths", "sequence_lengths", "action_mask")}
    mask = action_mask_from_lengths(texts["prompt_lengths"], texts["sequence_lengths"], texts["tokens"].shape[1])
    assert torch.equal(mask, texts["action_mask"])
    old, _ = models.score_actions(models.load_policy(finished / "sft"), found["tokens"], mask, temperature=0.7)
    torch.testing.assert_close(found["old_log_probs"], old, rtol=0, atol=1e-5)
    terms = overflowing_policy_loss(found["new_log_probs"], old, found["advantages"], mask, clip=0.2)
    assert not torch.isfinite(masked_mean(terms, mask)) and not torch.isfinite(found["policy_loss"])
    honest = policy_loss(found["new_log_probs"], old, found["advantages"], mask, clip=0.2)
    assert torch.isfinite(honest).all()  # so it is the loss that is wrong, not what it was given
    assert {"values", "new_values", "returns", "scores", "ref_log_probs", "value_loss", "entropy"} <= found.keys()


def test_the_dump_names_the_rest(overflown):
    """Rejects facts without the settings, the replaced part, or a line about each weight."""
    out, _ = overflown
    found = dump.read(out / "dump")
    assert (found.facts["stage"], found.facts["steps_done"], found.facts["checkpoint"]) == ("ppo", 0, None)
    assert found.facts["settings"]["ppo"]["learning_rate"] == 1e-2
    assert "overflowing_policy_loss" in found.facts["parts"]["policy_loss"]
    weights = found.facts["weights"]
    assert {name.split("/")[0] for name in weights} == {"policy", "critic"}
    assert all(0 < about["largest"] < 100 and not about["not_finite"] for about in weights.values())
    assert set(found.not_finite()) == {"policy_loss", "loss"}
    json.loads((out / "dump" / dump.FACTS).read_text(), parse_constant=pytest.fail)  # no NaN: that is not JSON


def test_the_command_shows_it(overflown):
    """Rejects a command that the message names and that does not exist, or shows something else."""
    out, _ = overflown
    shown = subprocess.run(
        [sys.executable, "-m", "rlhf_lib.engine.dump", str(out / "dump")], capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0, shown.stderr
    assert "stage ppo, after step 0: the PPO loss is not finite" in shown.stdout
    lines = {line.split()[0]: line for line in shown.stdout.splitlines() if line.startswith("  ")}
    assert "infinite of 1" in shown.stdout and "int64" in lines["tokens"] and "where finite" in lines["advantages"]


def test_a_gradient_is_named_by_its_weight(finished, tmp_path):
    """Rejects "a gradient": the loss is fine here, and only weights that lead to log-probabilities have a slope."""
    run = small_run(tmp_path, source=finished, parts=replace(Parts(), sft_loss=steep_sft_loss))
    said = failure(run, "sft")
    assert "stage sft failed after step 0: the gradient of the SFT loss is not finite" in said
    assert "namely the gradient of policy/model.embed_tokens.weight, " in said
    found = dump.read(tmp_path / "dump")
    assert torch.isfinite(found.tensors["loss"])
    broken = found.not_finite()
    assert broken and all(name.startswith("gradients: policy/") for name in broken)
    assert "NaN" in broken["gradients: policy/model.embed_tokens.weight"]


def test_the_last_good_checkpoint_stays(finished, tmp_path):
    """Rejects weights that are not finite in the place of good ones: the second step throws them out of range."""
    changes = ("sft.steps=4", "sft.learning_rate=1e-3")
    good = small_run(tmp_path, *changes, source=finished, checkpoint_seconds=0)

    def poisoned(stage, steps, total, done=0):
        for number, step in enumerate(steps, done + 1):
            if number == 2:
                embedding = good_model[0].get_input_embeddings().weight
                embedding.data[3, 4] = math.inf
            yield step

    good_model = []
    loading = models.load_policy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            models, "load_policy", lambda *how, **more: good_model.append(loading(*how, **more)) or good_model[-1]
        )
        said = failure(replace(good, progress=poisoned), "sft")
    assert "stage sft failed after step 2: the weights are not finite after this step" in said
    assert "namely policy/model.embed_tokens.weight;" in said
    assert "the checkpoint of step 1 is kept" in said
    saved = checkpoint.latest(tmp_path / "checkpoints" / "sft")
    assert saved.step == 1 and all(torch.isfinite(tensor).all() for tensor in saved.tensors.values())
    assert dump.read(tmp_path / "dump").facts["checkpoint"] == str(saved.path)
    assert not (tmp_path / "sft").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("ppo.value_coef=1e300", "namely loss;"),
        ("ppo.value_coef=1e38", "namely the gradient of critic/"),
        ("ppo.learning_rate=1e30", "namely new_values, value_loss, loss;"),
    ],
)
def test_from_the_command_line(monkeypatch, capsys, finished, tmp_path, change, says):
    """Rejects a traceback, a status that scripts take for success, and a policy folder made from nonsense."""
    before = files(finished)
    arguments = ["run", "--out", tmp_path, "--from", finished, "--stage", "ppo", *CHANGES, "--set", change]
    monkeypatch.setattr(sys, "argv", ["rlhf", *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    line = capsys.readouterr().err.splitlines()[-1]
    assert leaving.value.code == 1
    assert line.startswith("error: stage ppo failed after step 0: ") and "not finite" in line and says in line
    assert dump.read(tmp_path / "dump").not_finite()
    assert not (tmp_path / "policy").exists() and files(finished) == before


def test_the_same_again_gives_the_same_dump(overflown, finished):
    """Rejects a second failure that leaves the first one's dump, half of each, or another one."""
    out, said = overflown
    before = content(out / "dump", [dump.TENSORS])
    (out / "dump" / dump.TENSORS).unlink()
    parts = replace(Parts(), policy_loss=overflowing_policy_loss)
    assert failure(small_run(out, "ppo.learning_rate=1e-2", source=finished, parts=parts, resume=True), "ppo") == said
    assert content(out / "dump", [dump.TENSORS]) == before


@pytest.mark.parametrize("damage", ["no folder", "no tensors", "cut"])
def test_no_dump(tmp_path, damage):
    """Rejects half a dump taken for a whole one."""
    if damage != "no folder":
        (tmp_path / dump.FACTS).write_text("{}")
    if damage == "cut":
        (tmp_path / dump.TENSORS).write_bytes(b"abc")
    with pytest.raises(DamagedError, match="holds no dump of a run, or not a whole one"):
        dump.read(tmp_path / "nowhere" if damage == "no folder" else tmp_path)
