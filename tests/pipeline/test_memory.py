"""The `memory` command: a budget before anything runs."""

import json
import re
from dataclasses import replace

import pytest

from rlhf_lib.engine import frozen_trunk
from rlhf_lib.engine.memory_budget import GIB, ModelShape, estimate, remedies
from rlhf_lib.pipeline.memory import NOT_OF_LEAN, bytes_of, longest_prompt, plan_of, shape_of, verdict
from rlhf_lib.pipeline.settings import load_settings
from rlhf_lib.worlds.tiny_tldr.world import ASSETS
from tests.pipeline.test_cli import invoke, refused

PLAN = plan_of(load_settings("tiny"), shape_of(ASSETS / "sft"), prompt=55)


def test_the_budget_of_a_preset():
    """Rejects settings that are not passed on, and a prompt that no post has."""
    asked = invoke("memory", "--set", "ppo.micro_batch_size=8", "--set", "ppo.updates=3")
    settings = load_settings("tiny", ["ppo.micro_batch_size=8", "ppo.updates=3"])
    plan = plan_of(settings, shape_of(ASSETS / "sft"), prompt=longest_prompt(settings))
    assert asked.exit_code == 0
    assert asked.output.strip() == str(estimate(plan))
    assert 40 < longest_prompt(settings) < 60


def test_a_lean_run_is_told_that_the_budget_is_of_another_pass():
    """Rejects a budget that is silent about it, and the remark where it does not belong."""
    lean, plain = (invoke("memory", "--set", f"ppo.lean={lean}").output for lean in ("true", "false"))
    assert NOT_OF_LEAN in lean and lean.replace(NOT_OF_LEAN, "").strip() == plain.strip()


def test_a_preset_s_frozen_trunk():
    """Rejects a budget of whole models where a preset trains the top alone, and one that nothing can overrule."""
    shape = shape_of(ASSETS / "sft")
    settings = load_settings("tiny", ["world.trainable_layers=1"])
    plan = plan_of(settings, shape, prompt=55)
    assert (plan.trainable_layers, plan.shared_trunk) == (1, True)
    assert estimate(replace(plan, remembered=0)).peak < estimate(PLAN).peak
    assert plan_of(settings, shape, prompt=55, trainable_layers=2).trainable_layers == 2


def test_what_a_frozen_trunk_remembers(monkeypatch):
    """Rejects a budget without it, one that counts the top layers' keys, and one above what the trunk may hold.

    The four layers have states, keys and values of 128 numbers. 1 prompt of 20 tokens has states and the keys and
    values of 3 layers, and 2 responses of 4 tokens have states.
    """
    shape = shape_of(ASSETS / "sft")
    changes = ["world.trainable_layers=1", "ppo.batch_size=2", "ppo.updates=1", "ppo.response_length=4",
               "ppo.samples_per_prompt=2"]  # fmt: skip
    plan = plan_of(load_settings("tiny", changes), shape, prompt=20)
    assert plan.remembered == 4 * 128 * ((20 + 2 * 4) + 20 * 2 * 3)
    assert dict(estimate(plan).phases[0].rows)["remembered states"] == plan.remembered
    monkeypatch.setattr(frozen_trunk, "STATES_BYTES", 1000)
    monkeypatch.setattr(frozen_trunk, "PROMPTS_BYTES", 300)
    assert plan_of(load_settings("tiny", changes), shape, prompt=20).remembered == 1300
    assert PLAN.remembered == 0


def test_settings_of_the_engine():
    """Rejects a budget in float32 of a run in bfloat16, or one that leaves out what the run does to need less."""
    shape = shape_of(ASSETS / "sft")
    changes = ["precision=bfloat16", "gradient_checkpointing=true", "attention=eager"]
    plan = plan_of(load_settings("tiny", [f"engine.{change}" for change in changes]), shape, prompt=55)
    assert (plan.dtype, plan.autocast, plan.gradient_checkpointing) == ("float32", "bfloat16", True)
    assert (PLAN.autocast, PLAN.gradient_checkpointing, PLAN.fused_attention) == (None, False, True)
    assert not plan.fused_attention
    as_options = invoke("memory", "--autocast", "bfloat16", "--gradient-checkpointing").output
    assert invoke("memory", *(f"--set=engine.{change}" for change in changes[:2])).output == as_options


def test_too_little_memory_is_status_one_and_says_what_helps():
    """Rejects a verdict the wrong way round, and remedies that do not help, or not in order."""
    assert invoke("memory", "--gpu", "15GiB").exit_code == 0
    asked = invoke("memory", "--gpu", "0.1GiB")
    assert asked.exit_code == 1
    needs = [float(number) for number in re.findall(r"^ +([\d.]+) GiB with", asked.output, re.MULTILINE)]
    assert len(needs) >= 4 and needs == sorted(needs)
    assert all(budget.peak < estimate(PLAN).peak for _, budget in remedies(PLAN))


def test_a_budget_just_fits():
    """Rejects a limit that is off by a byte."""
    budget = estimate(PLAN)
    assert verdict(budget, budget.peak)[0].startswith("fits")
    assert verdict(budget, budget.peak - 1)[0].startswith("does not fit")


def test_another_model(tmp_path):
    """Rejects the preset's model where another was named."""
    config = json.loads((ASSETS / "sft" / "config.json").read_text(encoding="utf-8")) | {"num_hidden_layers": 7}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert shape_of(tmp_path) == ModelShape(
        layers=7, width=128, heads=4, feed_forward=256, vocabulary=169, tied=True, head_width=32
    )
    assert invoke("memory", "--model", str(tmp_path)).output != invoke("memory").output


@pytest.mark.parametrize(
    ("text", "amount"), [("15GiB", 15 * GIB), ("16 GB", 16 * 10**9), ("24564mib", 24564 * 2**20), ("0.5gib", GIB // 2)]
)
def test_amounts(text, amount):
    """Rejects a GB that is a GiB."""
    assert bytes_of(text) == amount


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--gpu", "plenty"), "plenty"),
        (("--gpu", "15"), "15"),
        (("--gpu", "1.2.3GiB"), "1.2.3GiB"),
        (("--dtype", "float8"), "float8"),
        (("--autocast", "int8"), "int8"),
        (("--trainable-layers", "9"), "9"),
        (("--set", "ppo.batch=9"), "ppo.batch_size"),
        (("--model", str(ASSETS)), "config.json"),
        (("--preset", "tldr-t4", "--set", "world.model=some/model"), "some/model is no folder here, and was not"),
    ],
)
def test_what_cannot_be_is_one_line(monkeypatch, capsys, arguments, named):
    """Rejects a traceback, and a line that does not name what was wrong."""
    assert named in refused(monkeypatch, capsys, "memory", *arguments)
