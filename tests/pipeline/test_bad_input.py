"""Everything that can be wrong with what a run is given: each really provoked, each refused in one line.

The line says what, where and what to do; the status is 2; there is no traceback; and what was there stays as it was.
One row of a table is one case. What it rejects is a traceback, a silent go-ahead, or an overwritten file in that case.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlhf_lib import cli
from rlhf_lib.engine import checkpoint, distributed
from rlhf_lib.engine.files import digest, naming
from rlhf_lib.pipeline.errors import SettingsError
from rlhf_lib.pipeline.machine import refuse_impossible, refuse_other_launch
from rlhf_lib.pipeline.settings import load_settings
from rlhf_lib.worlds.tiny_tldr.world import ASSETS, TinyTLDR
from tests.pipeline.runs import SMALL
from tests.pipeline.test_pipeline import MADE_BY, content, metrics

PATIENCE = 120  # seconds for one process
CHANGES = [*chain.from_iterable(("--set", change) for change in SMALL)]


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; the lock is no content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def refused(monkeypatch, capsys, *arguments: str | Path) -> str:
    """The line in which the entry point says no."""
    monkeypatch.setattr(sys, "argv", ["rlhf", *map(str, arguments)])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return the_line(leaving.value.code, capsys.readouterr().err)


def the_line(status: int, complaint: str) -> str:
    """The complaint's last line; before it there may be progress bars, and nothing else."""
    assert status == 2, complaint
    assert "Traceback" not in complaint
    *before, line = complaint.splitlines()
    assert line.startswith("error: ")
    assert not [other for other in before if "error" in other.lower()]
    return line


# ------------------------------------------------------------------------------------------------- what is asked for

REQUESTS = {
    "negative": ("--set ppo.clip=-1", "ppo.clip=-1: clip must be a number above 0"),
    "zero": ("--set sft.steps=0", "steps must be a whole number, at least 1"),
    "not a number": ("--set ppo.learning_rate=nan", "ppo.learning_rate=nan"),
    "infinite": ("--set ppo.value_coef=inf", "ppo.value_coef=inf"),
    "misspelt": ("--set ppo.kl_coeff=1", "did you mean 'ppo.kl_coef'"),
    "no value": ("--set ppo.kl_coef", "should read key=value"),
    "preset": ("--preset tinny", "did you mean 'tiny'"),
    "stage": ("--stage pop", "the stages are sft,"),
    "negative seed": ("--seed -1", "seed=-1"),
    "seed in words": ("--seed one", "--seed"),
    "option": ("--batch 3", "--batch"),
    "no folder": ("--from misspelt", "misspelt"),
    "batch that does not divide": (
        "--set ppo.batch_size=10 --set ppo.minibatches=3",
        "batch_size=10 does not divide by minibatches=3",
    ),
    "prompts that do not divide a batch": (
        "--set ppo.batch_size=10 --set ppo.samples_per_prompt=4",
        "batch_size=10 does not divide by samples_per_prompt=4",
    ),
    "two that exclude each other": (
        "--set ppo.lean=true --set ppo.skip_unread=true",
        "skip_unread and lean do not go together",
    ),
    "no such device": ("--set engine.device=gpu", "engine.device=gpu: device must be auto, cpu or cuda"),
    "no such precision": ("--set engine.precision=int8", "precision must be float32, bfloat16 or float16"),
    "no such attention": ("--set engine.attention=fast", "attention must be sdpa, eager or flash_attention_2"),
    "a GPU where there is none": ("--set engine.device=cuda", "sees no GPU here: leave it at auto"),
    "a kernel for GPUs": ("--set engine.device=cpu --set engine.attention=flash_attention_2", "runs on a GPU alone"),
    **{
        f"lean and {change}": (f"--set ppo.lean=true --set engine.{change}", "ppo.lean=true")
        for change in [f"{name}=true" for name in ("gradient_checkpointing", "compile")]
        + ["precision=bfloat16", "attention=eager", "sharding=fsdp2"]
    },
    **{
        f"skip_unread and {change}": (f"--set ppo.skip_unread=true --set engine.{change}=true", f"engine.{change}=true")
        for change in ("gradient_checkpointing", "compile")
    },
    "parts of what is shared": (
        "--set world.trainable_layers=1 --set engine.sharding=fsdp2",
        "world.trainable_layers does not go with engine.sharding=fsdp2",
    ),
    "no such sharding": ("--set engine.sharding=zero1", "sharding must be none, fsdp2, zero2 or zero3"),
    **{
        f"{sharding} and {change}": (f"--set engine.sharding={sharding} --set {change}", f"engine.sharding={sharding}")
        for sharding in ("zero2", "zero3")
        for change in ("engine.precision=float16", "engine.compile=true", "world.trainable_layers=1", "ppo.lean=true")
    },
    "longer than the context": ("--set ppo.response_length=72", "ppo.response_length=72 is too long"),
    "too few pairs": ("--set preferences.posts=3 --set reward_model.posts_per_batch=4", "preferences.posts=3 gives"),
    "a model for the world that brings its own": (
        "--set world.model=gpt2",
        "world.model=gpt2 has no effect in the world tiny, only in smollm2 and tldr",
    ),
    "data for the world that makes its own": (
        "--set data.references=here",
        "data.references=here has no effect in the world tiny, only in tldr",
    ),
    "writers where people wrote": (
        "--preset tldr-t4 --set writers.repetition=0.1",
        "writers.repetition=0.1 has no effect in the world tldr, only in tiny and smollm2",
    ),
    "more layers than there are": (
        "--set world.trainable_layers=5",
        f"world.trainable_layers=5 is more than {ASSETS / 'base'} has: choose from 1 to 4",
    ),
    "never a checkpoint": ("--checkpoint-seconds nan", "--checkpoint-seconds nan"),
    "checkpoints in the past": ("--checkpoint-seconds -1", "--checkpoint-seconds -1"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_that_cannot_be_met(monkeypatch, capsys, tmp_path, case):
    """Refused before anything is written or trained."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments, says = REQUESTS[case]
    line = refused(monkeypatch, capsys, "run", "--out", tmp_path / "out", *arguments.split())
    assert says in line
    assert files(tmp_path) == {}


LAUNCHES = {
    "bf16": ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "asks for bfloat16, but engine.precision=float32"),
    "fp16": ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "asks for float16, but engine.precision=float32"),
    "compiler": ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "asks for torch.compile (inductor)"),
    "FSDP": ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP, but engine.sharding=none"),
    "DeepSpeed": ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed, but engine.sharding=none"),
    "Megatron": ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "asks for Megatron-LM"),
}


@pytest.mark.parametrize("case", LAUNCHES)
def test_a_launcher_that_was_told_something_else(monkeypatch, capsys, tmp_path, case):
    """Not ignored: what `accelerate launch` was told and the run would not do is named before anything is written."""
    environment, says = LAUNCHES[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert says in refused(monkeypatch, capsys, "run", "--out", tmp_path / "out")
    assert files(tmp_path) == {}


def test_a_launcher_that_agrees(monkeypatch):
    """Rejects a refusal of what the settings say as well, and of the defaults that `accelerate launch` always sets."""
    defaults = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_FSDP": "false"}
    for precision, launch in (("float32", "no"), ("bfloat16", "no"), ("bfloat16", "bf16"), ("float16", "fp16")):
        for name, value in {**defaults, "ACCELERATE_MIXED_PRECISION": launch}.items():
            monkeypatch.setenv(name, value)
        refuse_other_launch(load_settings("tiny", [f"engine.precision={precision}"]))


def test_a_launcher_that_knows_the_parts(monkeypatch):
    """Rejects a configs/accelerate/fsdp2.yaml that a run refuses, and one value of it that a run would ignore."""
    text = Path("configs/accelerate/fsdp2.yaml").read_text(encoding="utf-8")
    asked = {name.upper(): str(value).lower() for name, value in yaml.safe_load(text)["fsdp_config"].items()}
    settings = load_settings("tiny", ["engine.sharding=fsdp2"])
    for name, value in {**asked, "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    refuse_other_launch(settings)
    asked.pop("FSDP_SYNC_MODULE_STATES")  # of FSDP1 alone
    for name in asked:
        with monkeypatch.context() as other:
            other.setenv(name, "another")
            with pytest.raises(SettingsError, match=f"{name.lower()}=another"):
                refuse_other_launch(settings)


LAUNCHED_AS = {  # by `accelerate launch`, where its variable is not the entry of the file
    "zero_stage": "DEEPSPEED_ZERO_STAGE",
    "offload_optimizer_device": "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "offload_param_device": "DEEPSPEED_OFFLOAD_PARAM_DEVICE",
    "zero3_init_flag": "DEEPSPEED_ZERO3_INIT",
}


@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_a_launcher_that_knows_deepspeed(monkeypatch, sharding):
    """Rejects a configs/accelerate/deepspeed_*.yaml that a run refuses, and one value of it that a run would ignore."""
    file = yaml.safe_load(Path(f"configs/accelerate/deepspeed_{sharding}.yaml").read_text(encoding="utf-8"))
    from_file = {f"ACCELERATE_{LAUNCHED_AS.get(name, name.upper())}": str(value).lower()
                 for name, value in file["deepspeed_config"].items()}  # fmt: skip
    asked = {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "none", **from_file}
    settings = load_settings("tiny", [f"engine.sharding={sharding}"])
    for name, value in {**asked, "ACCELERATE_USE_DEEPSPEED": "true"}.items():
        monkeypatch.setenv(name, value)
    refuse_other_launch(settings)
    for name in asked:
        with monkeypatch.context() as other:
            other.setenv(name, "another")
            with pytest.raises(SettingsError, match=f"{name.lower()}=another.*deepspeed_{sharding}.yaml"):
                refuse_other_launch(settings)


@pytest.mark.parametrize(("found", "says"), [(None, "not installed: pip install"), ("0.18.3", "0.18.3 is too old")])
def test_no_deepspeed_here(monkeypatch, found, says):
    """Rejects an ImportError in the middle of a run, a version that ends steps by a count of its own, and one process
    that needs a package for a setting that does nothing in it.
    """

    def version(name):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    settings = load_settings("tiny", ["engine.sharding=zero2"])
    refuse_impossible(settings)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(SettingsError, match=says):
        refuse_impossible(settings)


@pytest.mark.parametrize("change", ["sft.batch_size=3", "reward_model.posts_per_batch=3", "ppo.minibatches=64"])
def test_more_processes_than_rows(monkeypatch, change):
    """Rejects a run in parts that would wait for ever for a process without a row; ppo.batch_size is 128."""
    monkeypatch.setattr(distributed, "size", lambda: 4)
    refuse_impossible(load_settings("tiny", [change]))
    with pytest.raises(SettingsError, match="too few for 4 processes"):
        refuse_impossible(load_settings("tiny", [change, "engine.sharding=fsdp2"]))


def test_more_layers_than_a_model_that_nobody_has_counted(monkeypatch, capsys, tmp_path):
    """Rejects 5 top layers of 4, of which 1 would train in silence, where no memory budget looks at the model."""
    model = shutil.copytree(ASSETS / "base", tmp_path / "model")
    set_json(model / "config.json", model_type="mistral", architectures=["MistralForCausalLM"])
    settings = ["--preset", "smollm2", "--set", f"world.model={model}", "--set", "world.trainable_layers=5"]
    line = refused(monkeypatch, capsys, "run", "--out", tmp_path / "out", "--set", "ppo.lean=false", *settings)
    assert f"world.trainable_layers=5 is more than {model} has: choose from 1 to 4" in line
    assert files(tmp_path / "out") == {}


# --------------------------------------------------------------------------------------------- the folder to write to


def set_json(path: Path, **entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


FOLDERS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "finished, no --resume": ("", lambda out: None, "add --resume"),
    "another seed": ("--resume --seed 1", lambda out: None, "holds a run with seed=0, not 1"),
    "another precision": (
        "--resume --set engine.precision=bfloat16",
        lambda out: None,
        "precision=float32, not bfloat16",
    ),
    "another micro-batch, no --resume": (
        "--set ppo.micro_batch_size=4",
        lambda out: None,
        "holds a run with ppo.micro_batch_size=32, not 4: add --resume to go on with it",
    ),
    "more than a micro-batch": (
        "--resume --set sft.micro_batch_size=4 --set ppo.epochs=1",
        lambda out: None,
        "holds a run with ppo.epochs=2, not 1: give again the settings that it was started with",
    ),
    "another setting": ("--resume --set ppo.clip=0.3", lambda out: None, "holds a run with ppo.clip=0.2, not 0.3"),
    "another preset": (
        "--resume",
        lambda out: set_json(out / "settings.json", preset="large"),
        "holds a run with preset=large, not tiny",
    ),
    "settings of another version": (
        "--resume",
        lambda out: set_json(out / "settings.json", colour="blue"),
        "settings.json cannot be read as settings of this version",
    ),
    "settings cut short": ("--resume", lambda out: (out / "settings.json").write_text("{"), "settings.json cannot be"),
    "results cut short": ("--resume", lambda out: (out / "results.json").write_text('{"sft": '), "results.json is dam"),
    "broken metrics": (
        "--resume --stage sft",
        lambda out: (forget(out, "sft", "checkpoints/sft"), break_line(out / "metrics.jsonl", 2)),
        "metrics.jsonl, line 2: not JSON",
    ),
    "metrics of no stage": (
        "--resume",
        lambda out: (forget(out, "ppo"), break_line(out / "metrics.jsonl", 3, b'{"loss": 1.0}')),
        "metrics.jsonl, line 3: it has no 'stage'; mend that line",
    ),
    "times of no stage": (
        "--resume",
        lambda out: (forget(out, "ppo"), break_line(out / "timing.jsonl", 1, b'{"seconds": 1.0}')),
        "timing.jsonl, line 1: it has no 'stage'",
    ),
}


def forget(out: Path, stage: str, *names: str) -> None:
    """As if the stage had been cut off at its end, and these files had not been written."""
    results = json.loads((out / "results.json").read_text())
    (out / "results.json").write_text(json.dumps({name: results[name] for name in results if name != stage}))
    for name in names:
        shutil.rmtree(out / name)


def break_line(path: Path, number: int, by: bytes = b'{"stage": "sf') -> None:
    lines = path.read_bytes().splitlines()
    lines[number - 1] = by
    path.write_bytes(b"\n".join(lines) + b"\n")


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_belongs_to_something_else(monkeypatch, capsys, copy, case):
    """Refused, and not a byte in it has changed."""
    arguments, damage, says = FOLDERS[case]
    damage(copy)
    before = files(copy)
    assert says in refused(monkeypatch, capsys, "run", "--out", copy, *CHANGES, *arguments.split())
    assert files(copy) == before


def test_a_folder_that_another_run_writes_to(monkeypatch, capsys, copy):
    """Refused while the other run lives."""
    before = files(copy)
    with FileLock(copy / ".lock"):
        line = refused(monkeypatch, capsys, "run", "--out", copy, "--resume", *CHANGES)
    assert "another run is writing to" in line and "wait for it" in line
    assert files(copy) == before


def test_a_folder_that_is_a_file(monkeypatch, capsys, tmp_path):
    """Refused; the file stays."""
    (tmp_path / "out").write_text("mine")
    assert "out" in refused(monkeypatch, capsys, "run", "--out", tmp_path / "out")
    assert files(tmp_path) == {"out": b"mine"}


# ------------------------------------------------------------------------------------------------------ checkpoints


def newest(out: Path) -> Path:
    return sorted((out / "checkpoints" / "ppo").iterdir())[-1]


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], dict]) -> None:
    """Sound as a file, but with other tensors."""
    save_file(change(load_file(path / checkpoint.TENSORS)), path / checkpoint.TENSORS)
    set_json(path / checkpoint.FACTS, sha256=digest(path / checkpoint.TENSORS))


def of_another_optimiser(tensors: dict) -> dict:
    return {name.replace("exp_avg_sq", "variance"): tensor for name, tensor in tensors.items()}


def of_a_wider_model(tensors: dict) -> dict:
    return {n: torch.cat([t, t]) if n.endswith("embed_tokens.weight") else t for n, t in tensors.items()}


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another format": (lambda path: set_json(path / checkpoint.FACTS, format=99), "has format 99, this version of the"),
    "another optimiser": (lambda path: rewrite(path, of_another_optimiser), "does not fit these models and their opti"),
    "another model": (lambda path: rewrite(path, of_a_wider_model), "embed_tokens.weight"),
    "all damaged": (
        lambda path: [(one / checkpoint.TENSORS).write_bytes(b"") for one in path.parent.iterdir()],
        "none of the 1 checkpoints in",
    ),
    "metrics lost": (
        lambda path: (path.parents[2] / "metrics.jsonl").write_bytes(b""),
        "metrics.jsonl is shorter than it was (0 of ",
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_resumed(monkeypatch, capsys, copy, case):
    """Refused: hours of work are not begun anew in silence. The line says what to delete if that is wanted."""
    forget(copy, "ppo")
    with open(copy / "metrics.jsonl", "a") as file:
        file.write('{"stage": "ppo", "update": 2}\n')  # made after the checkpoint: to be cut only once it is accepted
    damage, says = CHECKPOINTS[case]
    damage(newest(copy))
    before = files(copy)
    line = refused(monkeypatch, capsys, "run", "--out", copy, "--resume", *CHANGES)
    assert says in line
    assert ("choose another" if case == "metrics lost" else f"delete {copy / 'checkpoints' / 'ppo'}") in line
    assert files(copy) == before


# -------------------------------------------------------------------------------------------- what earlier stages left


def edit(**entries: object) -> Callable[[Path], None]:
    """Change entries of the second row."""

    def change(path: Path) -> None:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[1].update(entries)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return change


def keep(rows: int) -> Callable[[Path], object]:
    return lambda path: path.write_text("".join(path.read_text().splitlines(keepends=True)[:rows]))


LONG = "SUBREDDIT: r/pets\n\nTITLE: my\n\nPOST:" + " my" * 130 + "\n\nTL;DR:"
PREFERENCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty prompt": (edit(prompt=""), "line 2: the prompt is empty"),
    "blank prompt": (edit(prompt=" \n"), "line 2: the prompt is empty"),
    "prompt longer than the context": (edit(prompt=LONG), "and the models read 128"),
    "empty response": (edit(summaries=["my dog", "", "my cat"]), "line 2: a summary is empty"),
    "one response": (edit(summaries=["my dog"], finished=[True], appeal=[1.0]), "or there are fewer than two"),
    "response that is a number": (edit(summaries=["my dog", 3, "my cat"]), "line 2: a summary is empty or no text"),
    "finished for some": (edit(finished=[True, True]), "line 2: finished must be true or false for each of the 3"),
    "appeal without a number": (edit(appeal=[1.0, None, 2.0]), "line 2: appeal must be a finite number"),
    "no pairs": (edit(pairs=[]), "line 2: pairs must be"),
    "pair beyond the summaries": (edit(pairs=[[0, 3]]), "two different places from 0 to 2"),
    "pair from behind": (edit(pairs=[[-1, 0]]), "line 2: pairs must be"),
    "pair with itself": (edit(pairs=[[1, 1]]), "line 2: pairs must be"),
    "missing entry": (lambda path: break_line(path, 2, b'{"prompt": "my dog"}'), "line 2: a summary is empty or no"),
    "not JSON": (lambda path: break_line(path, 2), "line 2: not JSON"),
    "not an object": (lambda path: break_line(path, 2, b"[1, 2]"), "line 2: not a JSON object"),
    "not UTF-8": (lambda path: break_line(path, 2, b'{"prompt": "\xff"}'), "line 2: 'utf-8' codec"),
    "no rows": (lambda path: path.write_text(""), "has too few rows: 0"),
    "fewer rows than a batch": (keep(1), "has too few rows: 1, fewer than reward_model.posts_per_batch=2"),
}  # fmt: skip


def run_stage_from(monkeypatch, capsys, source: Path, out: Path, stage: str) -> str:
    """The refusal, once it is known that the source is as it was, and that the stage has left nothing."""
    before = files(source)
    line = refused(monkeypatch, capsys, "run", "--out", out, "--from", source, "--stage", stage, *CHANGES)
    assert files(source) == before
    assert not files(out).keys() - {"settings.json"}
    return line


@pytest.mark.parametrize("case", PREFERENCES)
def test_preferences_that_cannot_be_used(monkeypatch, capsys, copy, tmp_path, case):
    """Named by file and line. Too few rows would loop forever or compare a post with itself."""
    damage, says = PREFERENCES[case]
    damage(copy / "preferences.jsonl")
    line = run_stage_from(monkeypatch, capsys, copy, tmp_path / "out", "reward_model")
    assert str(copy / "preferences.jsonl") in line and says in line


def test_held_out_preferences_are_looked_at_before_training(monkeypatch, capsys, copy, tmp_path):
    """Not after an hour of training on the others."""
    (copy / "held_out_preferences.jsonl").write_text("")
    line = run_stage_from(monkeypatch, capsys, copy, tmp_path / "out", "reward_model")
    assert "held_out_preferences.jsonl has too few rows: 0" in line
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_a_run_without_preferences(monkeypatch, capsys, copy, tmp_path):
    """Says which stage to run first."""
    (copy / "preferences.jsonl").unlink()
    line = run_stage_from(monkeypatch, capsys, copy, tmp_path / "out", "reward_model")
    assert "preferences.jsonl does not exist: run the stage that makes it first" in line


def with_a_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_a_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_words(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    words = data["model"]["vocab"]
    words[" my"], words[" i"] = words[" i"], words[" my"]
    (folder / "tokenizer.json").write_text(json.dumps(data))


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "damaged tokenizer": (lambda folder: half(folder / "tokenizer.json"), "is damaged"),
    "another vocabulary": (other_words, "has another vocabulary"),
    "weights cut short": (lambda folder: half(folder / "model.safetensors"), "cannot be loaded (SafetensorError"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded (OSError"),
    "weights missing": (without_a_layer, "it lacks the weights model.layers.1.mlp"),
    "weights not finite": (with_a_nan, "numbers are not finite in the weights model.norm.weight"),
    "damaged config": (lambda folder: half(folder / "config.json"), "cannot be loaded (OSError"),
    "config of a wider model": (lambda folder: set_json(folder / "config.json", hidden_size=64), "cannot be loaded"),
    "config of nothing known": (lambda folder: set_json(folder / "config.json", model_type="x"), "cannot be loaded"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_used(monkeypatch, capsys, copy, tmp_path, case):
    """Named by its folder. Transformers would fill missing weights with random ones, and warn at most."""
    damage, says = MODELS[case]
    damage(copy / "sft")
    line = run_stage_from(monkeypatch, capsys, copy, tmp_path / "out", "preferences")
    assert str(copy / "sft") in line and says in line


def test_a_policy_in_the_place_of_a_reward_model(monkeypatch, capsys, copy, tmp_path):
    """Not scored by a head of noise."""
    shutil.rmtree(copy / "reward_model")
    shutil.copytree(copy / "sft", copy / "reward_model")
    line = run_stage_from(monkeypatch, capsys, copy, tmp_path / "out", "ppo")
    assert "reward_model cannot be used: it lacks the weights score.weight" in line


def test_no_network_where_one_is_needed(monkeypatch, capsys, tmp_path):
    """A world whose base is a name on the Hub: the line says so, not that some URL could not be resolved."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(TinyTLDR, "base_folder", "nobody/no-such-model")
    line = refused(monkeypatch, capsys, "run", "--out", tmp_path, "--stage", "sft", *CHANGES)
    assert "nobody/no-such-model is no folder here" in line and "connect to the network" in line


# --------------------------------------------------------------------------------------------------------- the disk


def rlhf(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "rlhf_lib", *map(str, arguments)]


def process(command: list[str], **options: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment, **options)


def in_a_namespace(script: str) -> list[str]:
    """A shell that may mount, for itself alone; its $0 is the folder, $@ the command."""
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script]


def may_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    return process(in_a_namespace("mount -t tmpfs none /mnt")).returncode == 0


NEEDS_MOUNTS = pytest.mark.skipif(not may_mount(), reason="mounting is not allowed here")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on file sizes")
def test_a_disk_that_fills_up_in_the_middle(finished, tmp_path):
    """The limit lets metrics through but no checkpoint. With room again, --resume ends as if nothing had been."""

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, resource.RLIM_INFINITY))

    command = rlhf("run", "--out", tmp_path, "--resume", "--checkpoint-seconds", 0, "--stage", "sft", *CHANGES)
    done = process(command, preexec_fn=limit)
    line = the_line(done.returncode, done.stderr)
    assert f"File too large: {tmp_path / 'checkpoints' / 'sft' / 'step-000001'}" in line
    assert "make room, then the same command with --resume" in line
    assert process(command).returncode == 0
    assert content(tmp_path, MADE_BY["sft"]) == content(finished, MADE_BY["sft"])
    assert metrics(tmp_path, "sft") == metrics(finished, "sft")


@pytest.mark.parametrize("words", ["I/O error: full (os error 28)", "IoError(Os { code: 28, kind: StorageFull })"])
def test_both_wordings_of_safetensors(words):
    """Rejects an error of the disk that goes by unnamed where safetensors is older, or newer."""
    with pytest.raises(OSError, match="No space left on device: 'here'"), naming(Path("here")):
        raise SafetensorError(f"Error while serializing: {words}")


@NEEDS_MOUNTS
def test_a_full_disk(tmp_path):
    """A disk of one megabyte, really full, while the first model is saved."""
    script = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    command = rlhf("run", "--out", tmp_path, "--stage", "sft", *CHANGES)
    done = process([*in_a_namespace(script), str(tmp_path), *command])
    line = the_line(done.returncode, done.stderr)
    assert f"No space left on device: {tmp_path}" in line and "make room" in line


@NEEDS_MOUNTS
def test_a_read_only_folder(copy):
    """Not even root may write there."""
    before = files(copy)
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    done = process([*in_a_namespace(script), str(copy), *rlhf("run", "--out", copy, "--resume", *CHANGES)])
    line = the_line(done.returncode, done.stderr)
    assert f"Read-only file system: {copy}" in line and "choose an --out where you may write" in line
    assert files(copy) == before
