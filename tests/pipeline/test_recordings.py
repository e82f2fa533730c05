"""Recorded runs: small, complete, and of the settings that their preset has now."""

from dataclasses import replace

import pytest

from rlhf_lib.engine.run_folder import RunFolder, read_lines
from rlhf_lib.pipeline import recordings
from rlhf_lib.pipeline.scales import world_of
from rlhf_lib.pipeline.settings import EngineConfig, load_settings

ALL = recordings.RECORDED
LARGEST = 300_000  # bytes a recording


@pytest.mark.parametrize(("preset", "seed"), ALL)
def test_a_recording_is_of_its_preset(preset, seed):
    """Rejects a recording from before its preset was changed, of another seed, or cut short."""
    recording = recordings.load_recording(preset, seed)
    assert replace(recording.settings, engine=EngineConfig()) == load_settings(preset, seed=seed)
    rows = {stage: [row for row in recording.metrics if row["stage"] == stage] for stage in ("sft", "reward_model")}
    assert len(rows["sft"]) == recording.settings.sft.steps
    assert len(rows["reward_model"]) == recording.settings.reward_model.steps
    assert [row["update"] for row in recording.ppo] == list(range(recording.settings.ppo.updates))
    assert (recording.report["preset"], recording.report["seed"]) == (preset, seed)
    assert recording.report["ppo"]["kl_per_sequence"] == recording.ppo[-1]["kl_per_sequence"]


@pytest.mark.parametrize(("preset", "seed"), ALL)
def test_samples_are_of_the_runs_world(preset, seed):
    """Rejects samples of other posts, in another order, or with a gold score that the judge does not give."""
    recording = recordings.load_recording(preset, seed)
    world = world_of(recording.settings)
    posts = world.posts("test", recordings.SAMPLES)
    assert [row["prompt"] for row in recording.samples] == [post.prompt for post in posts]
    for post, row in zip(posts, recording.samples, strict=True):
        assert row["reference"]["text"] == world.reference(post)
        for writer in ("sft", "policy", "reference"):
            summary = row[writer]
            assert summary["gold"] == world.gold(post, summary["text"], finished=summary["finished"])


def test_recordings_are_small():
    """Rejects models, checkpoints and all samples in the package."""
    sizes = {path: path.stat().st_size for path in recordings.RUNS.rglob("*") if path.is_file()}
    assert {path.name for path in sizes} == {"settings.json", "report.json", "metrics.jsonl", "samples.jsonl"}
    assert {path.parent for path in sizes} == {recordings.folder_of(*one) for one in ALL}
    for one in ALL:
        assert sum(size for path, size in sizes.items() if path.parent == recordings.folder_of(*one)) < LARGEST


def test_what_is_recorded(finished, tmp_path, monkeypatch):
    """Rejects metrics that are rewritten, times that make each rebuild another, and samples that are not the first."""
    monkeypatch.setattr(recordings, "SAMPLES", 5)
    recordings.record(RunFolder(finished), RunFolder(tmp_path / "new" / "seed0"))
    for name in ("settings.json", "metrics.jsonl"):
        assert (tmp_path / "new/seed0" / name).read_bytes() == (finished / name).read_bytes()
    report, recorded = (RunFolder(path).read_json("report.json") for path in (finished, tmp_path / "new/seed0"))
    assert {name: value for name, value in report.items() if name not in ("seconds", "peak_memory_mib")} == recorded
    assert read_lines(tmp_path / "new/seed0/samples.jsonl") == read_lines(finished / "samples.jsonl")[:5]


def test_the_builder_runs_what_it_names(tmp_path, monkeypatch):
    """Rejects a recording filed under another preset or seed, or of a world without the settings' writers."""
    runs = []
    monkeypatch.setattr(recordings, "RUNS", tmp_path)
    monkeypatch.setattr(recordings, "run_pipeline", runs.append)
    monkeypatch.setattr(recordings, "record", lambda run, target: runs.append(target.path))
    recordings.build_recordings(progress=None)
    for run, target, (preset, seed) in zip(runs[::2], runs[1::2], ALL, strict=True):
        on_the_cpu = load_settings(preset, ["engine.device=cpu"], seed=seed)
        assert (run.settings, target) == (on_the_cpu, tmp_path / preset / f"seed{seed}")
        assert (run.world.seed, run.world.repetition) == (seed, run.settings.writers.repetition)
