"""The five stages end to end, very small: every file, every number, and the same again."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.algorithms.reward_model import score_texts
from rlhf_lib.algorithms.step_zero import LIMITS
from rlhf_lib.engine import models
from rlhf_lib.engine.run_folder import RunFolder, read_lines
from rlhf_lib.maths.advantages import gae
from rlhf_lib.pipeline import comparisons
from rlhf_lib.pipeline.errors import MissingInputError, OccupiedError, SettingsError, TrainingError
from rlhf_lib.pipeline.pipeline import run_pipeline
from rlhf_lib.pipeline.settings import from_json
from rlhf_lib.pipeline.stages import STAGES, ppo_state
from rlhf_lib.pipeline.texts import reference_texts
from rlhf_lib.worlds.tiny_tldr.world import TinyTLDR
from tests.pipeline.runs import small_run

WEIGHTS = "model.safetensors"
MADE_BY = {
    "sft": [f"sft/{WEIGHTS}"],
    "preferences": ["preferences.jsonl", "held_out_preferences.jsonl"],
    "reward_model": [f"reward_model/{WEIGHTS}", "reward_model/config.json"],
    "ppo": [f"policy/{WEIGHTS}", f"value/{WEIGHTS}"],
    "evaluation": ["samples.jsonl"],
}
OUTPUTS = [*(name for names in MADE_BY.values() for name in names), "metrics.jsonl"]
PPO_METRICS = (
    "update episodes kl_per_sequence kl_per_token entropy_per_token policy_loss value_loss clip_fraction approx_kl "
    "ratio_max score gold response_length eos_rate advantage_mean advantage_std explained_variance learning_rate "
    "grad_norm_policy grad_norm_value sampler_forward_gap"
)
REPORTED = {
    "sft": "gold rouge_l",
    "reward_model": "accuracy accuracy_ceiling pairs",
    "ppo": "gold rouge_l win_rate_vs_sft win_rate_vs_sft_interval win_rate_vs_sft_length_matched win_rate_vs_reference "
    "kl_per_sequence kl_before_first_update ratio_error_before_first_update sampler_forward_gap sampler_kl "
    "title_copy_rate "
    "response_length",
    "seconds": "total sft reward_model ppo evaluation",
    "versions": "python torch transformers",
}


def content(folder: Path, names: list[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def metrics(folder: Path, stage: str) -> list[dict]:
    return [row for row in read_lines(folder / "metrics.jsonl") if row["stage"] == stage]


def without_cost(report: dict) -> dict:
    return {name: value for name, value in report.items() if name not in ("seconds", "peak_memory_mib")}


def test_everything_is_written(finished):
    """Rejects a stage that forgets a file, and a draft that is left behind."""
    files = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    expected = {*OUTPUTS, "timing.jsonl", "report.json", "results.json", "settings.json"}
    expected |= {f"{name}/{file}" for name in ("sft", "policy", "reward_model", "value")
                 for file in (WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json")}  # fmt: skip
    assert expected <= files
    assert not [name for name in files if "draft" in name]


@pytest.mark.parametrize("name", ["sft", "policy", "reward_model", "value"])
def test_plain_transformers_loads_it(finished, name):
    """Rejects a folder that only this library can read: missing weights, two labels, or another tokenizer."""
    kind = AutoModelForCausalLM if name in ("sft", "policy") else AutoModelForSequenceClassification
    model, report = kind.from_pretrained(finished / name, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer, ours = AutoTokenizer.from_pretrained(finished / name), TinyTLDR(0).tokenizer
    prompt = TinyTLDR(0).posts("test", 1)[0].prompt
    assert tokenizer(prompt).input_ids == ours(prompt).input_ids
    assert (model.config.pad_token_id, model.config.eos_token_id) == (ours.pad_token_id, ours.eos_token_id)
    if kind is AutoModelForSequenceClassification:
        assert model.config.num_labels == 1


def test_training_moved_the_weights(finished):
    """Rejects a stage that saves what it loaded, or a critic that shares its weights with the reward model."""
    weights = content(finished, [f"{name}/{WEIGHTS}" for name in ("sft", "policy", "reward_model", "value")])
    assert len(set(weights.values())) == 4
    base = TinyTLDR.base_folder / WEIGHTS
    assert base.read_bytes() not in weights.values()


def test_references_average_0(finished):
    """Rejects scores that are not centred, or centred in memory only: the saved model carries its offset."""
    world = TinyTLDR(0)
    scorer = models.load_scorer(finished / "reward_model")
    scores = score_texts(scorer, reference_texts(world, world.posts("sft", 12)), micro_batch_size=4)
    assert scorer.config.reward_offset != 0
    assert float(scores.mean()) == pytest.approx(0, abs=1e-5)


def test_report(finished):
    """Rejects a report without a number that it promises, or with one that is not finite."""
    report = json.loads((finished / "report.json").read_text())
    assert (report["preset"], report["seed"]) == ("tiny", 0)
    for section, names in REPORTED.items():
        assert set(names.split()) <= set(report[section])
    numbers = [report["peak_memory_mib"], *report["seconds"].values(), *report["sft"].values()]
    numbers += [value for value in report["reward_model"].values()] + report["ppo"]["win_rate_vs_sft_interval"]
    numbers += [value for name, value in report["ppo"].items() if isinstance(value, float)]
    assert all(map(math.isfinite, numbers))
    stages = [report["seconds"][stage] for stage in STAGES]
    assert report["seconds"]["total"] == pytest.approx(sum(stages))
    assert report["reward_model"]["pairs"] == 6 * 3
    assert report["reward_model"]["held_out_pairs"] == 4 * 3
    assert report["ppo"]["kl_before_first_update"] < 1e-6
    assert report["ppo"]["ratio_error_before_first_update"] < 1e-5
    assert report["ppo"]["sampler_forward_gap"] < 1e-4


def test_the_report_is_about_the_files(finished):
    """Rejects numbers that were taken from another model, split or policy than the saved ones."""
    report, rows = json.loads((finished / "report.json").read_text()), read_lines(finished / "samples.jsonl")
    assert len(rows) == 12
    for section, name in (("sft", "sft"), ("ppo", "policy"), ("reference", "reference")):
        assert report[section]["gold"] == pytest.approx(sum(row[name]["gold"] for row in rows) / 12)
    assert report["ppo"]["kl_per_sequence"] == metrics(finished, "ppo")[-1]["kl_per_sequence"]
    run = small_run(finished)
    held_out = read_lines(finished / "held_out_preferences.jsonl")
    again = comparisons.accuracy(run, models.load_scorer(finished / "reward_model"), held_out)
    assert report["reward_model"] == pytest.approx({**again, "pairs": 18})
    assert [row["prompt"] for row in rows] == [post.prompt for post in TinyTLDR(0).posts("test", 12)]


def test_metrics(finished):
    """Rejects a step that is not logged, a metric that is missing, and time in a file that must be the same again."""
    assert [len(metrics(finished, stage)) for stage in ("sft", "reward_model", "ppo")] == [2, 3, 2]
    first, *later = metrics(finished, "ppo")
    assert set(first) == {"stage", *PPO_METRICS.split(), *LIMITS}
    for row in later:
        assert set(row) == {"stage", *PPO_METRICS.split()}
    timing = read_lines(finished / "timing.jsonl")
    assert [(row["stage"], row["step"]) for row in timing] == [
        *(("sft", n) for n in range(2)), *(("reward_model", n) for n in range(3)), *(("ppo", n) for n in range(2)),
    ]  # fmt: skip
    before, after = (row["kl_per_token"] for row in metrics(finished, "ppo"))
    assert before == pytest.approx(0, abs=1e-6)
    assert after != before


def test_the_same_run_again(finished, tmp_path):
    """Rejects randomness that no seed decides: the same settings give the same bytes."""
    report = run_pipeline(small_run(tmp_path))
    assert content(tmp_path, OUTPUTS) == content(finished, OUTPUTS)
    assert without_cost(report) == without_cost(json.loads((finished / "report.json").read_text()))


def test_another_seed_is_another_run(finished, tmp_path):
    """Rejects a seed that reaches neither posts nor labels."""
    run_pipeline(small_run(tmp_path, seed=1), ["sft", "preferences"])
    names = MADE_BY["sft"] + MADE_BY["preferences"]
    here, there = content(tmp_path, names), content(finished, names)
    assert all(here[name] != there[name] for name in names)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_alone(finished, tmp_path, stage):
    """Rejects a stage that leans on what an earlier one left in memory: from the saved output it makes the same."""
    before = content(finished, OUTPUTS)
    run_pipeline(small_run(tmp_path, source=finished), [stage])
    assert content(tmp_path, MADE_BY[stage]) == content(finished, MADE_BY[stage])
    assert metrics_or_none(tmp_path, stage) == metrics(finished, stage)
    others = [name for other, names in MADE_BY.items() if other != stage for name in names]
    assert not [name for name in others if (tmp_path / name).exists()]
    assert content(finished, OUTPUTS) == before  # the source is only read


def metrics_or_none(folder: Path, stage: str) -> list[dict]:
    return metrics(folder, stage) if (folder / "metrics.jsonl").exists() else []


def test_evaluation_alone_completes_the_report(finished, tmp_path):
    """Rejects a report that forgets the stages that ran elsewhere."""
    report = run_pipeline(small_run(tmp_path, source=finished), ["evaluation"])
    assert without_cost(report) == without_cost(json.loads((finished / "report.json").read_text()))


def test_old_results_do_not_speak_for_a_new_policy(finished, tmp_path):
    """Rejects a report that shows the other run's evaluation beside a policy that nobody has evaluated."""
    report = run_pipeline(small_run(tmp_path, "ppo.kl_coef=1", source=finished), ["ppo"])
    assert report["sft"] is None
    assert "win_rate_vs_sft" not in report["ppo"]
    assert "accuracy" in report["reward_model"]  # of the reward model that was used
    assert not (tmp_path / "report.json").exists()


def test_a_stage_begun_again_is_logged_once(tmp_path, finished):
    """Rejects metrics that pile up after a kill before the first checkpoint, and a half-written last line."""
    run = small_run(tmp_path, source=finished, resume=True)
    run_pipeline(run, ["sft", "ppo"])
    once = read_lines(tmp_path / "metrics.jsonl")
    shutil.rmtree(tmp_path / "checkpoints" / "sft")
    (tmp_path / "results.json").unlink()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "sft", "st')
    run_pipeline(run, ["sft"])
    twice = read_lines(tmp_path / "metrics.jsonl")
    assert sorted(map(str, once)) == sorted(map(str, twice))


def test_nothing_is_overwritten_unasked(finished):
    """Rejects a second call that starts over in a folder where a run has finished."""
    before = content(finished, OUTPUTS)
    with pytest.raises(OccupiedError, match="already holds stage sft of this run: add --resume"):
        run_pipeline(small_run(finished))
    assert content(finished, OUTPUTS) == before


@pytest.mark.parametrize(("change", "seed"), [("ppo.kl_coef=0.5", 0), ("sft.max_grad_norm=off", 0), ("seed=1", 1)])
def test_other_settings_in_the_same_folder_are_refused(finished, change, seed):
    """Rejects two runs mixed in one folder, and a refusal that does not say what differs and what to do."""
    before = content(finished, [*OUTPUTS, "settings.json"])
    with pytest.raises(SettingsError, match="--from") as error:
        run_pipeline(small_run(finished, change, seed=seed))
    assert change.split("=")[0] in str(error.value)
    assert content(finished, [*OUTPUTS, "settings.json"]) == before


def test_settings_json_is_readable(finished):
    """Rejects settings saved in another form than the one that is read back, or without a field."""
    assert from_json((finished / "settings.json").read_text()) == small_run(finished).settings


@pytest.mark.parametrize(
    ("stage", "missing"),
    [("preferences", "sft"), ("reward_model", "sft"), ("ppo", "reward_model"), ("evaluation", "sft")],
)
def test_a_missing_input_says_what_to_do(tmp_path, stage, missing):
    """Rejects a traceback from the depths of a loader."""
    with pytest.raises(MissingInputError, match=r"run the stage that makes it first, or .* --from") as error:
        run_pipeline(small_run(tmp_path), [stage])
    assert str(tmp_path / missing) in str(error.value)


def backwards_gae(values, rewards, action_mask, *, gamma, lam):
    return -gae(values, rewards, action_mask, gamma=gamma, lam=lam)


def test_a_swapped_part_changes_the_run(finished, tmp_path):
    """Rejects a part that is recorded and not called: the same first rollout, another update, another policy."""
    parts = replace(Parts(), gae=backwards_gae)
    report = run_pipeline(small_run(tmp_path, source=finished, parts=parts), ["ppo"])
    (first, second), (ours, ours_second) = metrics(finished, "ppo"), metrics(tmp_path, "ppo")
    assert (ours["score"], ours["entropy_per_token"]) == (first["score"], first["entropy_per_token"])
    assert ours["explained_variance"] != first["explained_variance"]
    assert ours_second["kl_per_token"] != second["kl_per_token"]
    assert content(tmp_path, MADE_BY["ppo"]) != content(finished, MADE_BY["ppo"])
    assert "backwards_gae" in report["parts"]["gae"]
    assert report["parts"]["kl"].startswith("rlhf_lib.maths.kl.kl_k1:")


def test_policy_and_critic_start_from_sft_and_reward_model(finished):
    """Rejects a reference that shares weights with the policy, and a critic that starts from noise."""
    state = ppo_state(small_run(finished))
    for ours, name in ((state.policy, "sft"), (state.reference, "sft")):
        saved = models.load_policy(finished / name).state_dict()
        assert all(torch.equal(weight, saved[key]) for key, weight in ours.state_dict().items())
    saved = models.load_scorer(finished / "reward_model")
    for ours in (state.critic, state.reward_model):
        assert all(torch.equal(weight, saved.state_dict()[key]) for key, weight in ours.state_dict().items())
        assert ours.config.reward_offset == saved.config.reward_offset
    pointers = [model.base_model.embed_tokens.weight.data_ptr() for model in
                (state.policy, state.reference, state.critic, state.reward_model)]  # fmt: skip
    assert len(set(pointers)) == 4
    frozen = [weight.requires_grad for model in (state.reference, state.reward_model) for weight in model.parameters()]
    assert not any(frozen)


def test_a_broken_file_is_named(tmp_path):
    """Rejects a JSON error without file and line."""
    (tmp_path / "preferences.jsonl").write_text('{"a": 1}\nbroken\n')
    with pytest.raises(ValueError, match=r"preferences\.jsonl, line 2"):
        read_lines(RunFolder(tmp_path) / "preferences.jsonl")


@pytest.mark.parametrize(
    ("change", "stage", "says"),
    [
        (
            "sft.learning_rate=1e30",
            "sft",
            r"stage sft failed after step 1: .*not finite.*the checkpoint of step 1 is kept",
        ),
        ("ppo.learning_rate=1e30", "ppo", r"stage ppo failed after step 0: .*not finite.*no checkpoint"),
    ],
)
def test_training_that_explodes(finished, tmp_path, change, stage, says):
    """Rejects a run that goes on with NaN, or ends without saying where; what was good before it stays."""
    with pytest.raises(TrainingError, match=says):
        run_pipeline(small_run(tmp_path, change, source=finished, checkpoint_seconds=0), [stage])
    assert not (tmp_path / "policy").exists()


def test_a_broken_step_zero_is_explained(finished, tmp_path):
    """Rejects a traceback where policy and sampler disagree, and a sentence without number or where to look."""

    def hotter(*arguments, temperature, **rest):
        return Parts().sample(*arguments, temperature=temperature * 1.5, **rest)

    run = small_run(tmp_path, source=finished, parts=replace(Parts(), sample=hotter))
    with pytest.raises(TrainingError, match=r"stage ppo failed after step 0: sampler_forward_gap is .*temperature"):
        run_pipeline(run, ["ppo"])
