"""The doctor reads what is there, names what it knows, and accuses nobody who is healthy."""

from __future__ import annotations

import json

import pytest

from rlhf_lib.course.doctor import NOTHING, TRL_NAMES, diagnose, from_rows, read_log, recorded_by_trl
from rlhf_lib.course.doctor.command import examine
from rlhf_lib.course.museum import HEALTHY_RUNS, bug, recorded
from rlhf_lib.pipeline import recordings
from rlhf_lib.pipeline.errors import UserError

HEALTHY = dict(
    update=0, kl_per_sequence=0.0, approx_kl=0.01, advantage_mean=1e-9, advantage_std=1.0, learning_rate=1e-4,
    score=0.0, gold=1.0, explained_variance=-0.5, sampler_forward_gap=1e-5,
)  # fmt: skip
AT_START = dict(kl_before_first_update=0.0, ratio_error_before_first_update=0.0)


def rows(updates: int = 6, **changes) -> list[dict]:
    """Updates of a healthy run; a change is a number for all updates, or a function of the update."""
    found = []
    for update in range(updates):
        row = HEALTHY | (AT_START if update == 0 else {}) | dict(
            update=update, kl_per_sequence=0.2 * update, score=0.1 * update, gold=1 + 0.1 * update
        )  # fmt: skip
        found.append(row | {name: c(update) if callable(c) else c for name, c in changes.items()})
    return found


def said_of(**changes) -> str:
    return diagnose(from_rows(rows(**changes))).first


def test_healthy_rows_are_not_accused():
    """Rejects a rule that fires at what every run shows."""
    assert said_of() == NOTHING


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        (dict(sampler_forward_gap=0.1), "another distribution is sampled"),
        (dict(kl_per_sequence=lambda u: -u), "another distribution is sampled"),
        (dict(kl_per_sequence=lambda u: 0.3 + u), "another distribution is sampled"),
        (dict(kl_before_first_update=0.01), "the reference differs"),
        (dict(ratio_error_before_first_update=0.5), "the ratio is not 1 at the start"),
        (dict(kl_per_sequence=0.0), "the reference moves"),
        (dict(advantage_mean=lambda u: 0.3 / (u + 1)), "advantages are not centred"),
        (dict(advantage_std=2.4), "advantages are not whitened"),
        (dict(advantage_std=0.4), "means over the padding"),
        (dict(learning_rate=lambda u: max(0, 1e-4 * (1 - u / 3))), "the schedule ends early"),
        (dict(explained_variance=-40.0, score=lambda u: 1 - u), "the score does not arrive"),
        (dict(gold=lambda u: 1 - u), "the score is upside down"),
    ],
)
def test_a_sign_is_seen(changes, family):
    """Rejects a rule that never fires, or fires under another name."""
    assert said_of(**changes) == family


OVER_OPTIMISED = "the reward is over-optimised"


def a_turn(*, at: int = 8, by: float = 0.2):
    """Gold that rises by 0.2 an update from 1 on, and falls after one of them by so much an update."""
    return lambda update: 1 + 0.2 * min(update, at) - by * max(0, update - at)


def noise(update: int) -> float:
    return 0.3 * (-1) ** (update % 5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(gold=a_turn()), OVER_OPTIMISED),
        (dict(gold=a_turn(by=0.04)), NOTHING),
        (dict(gold=a_turn(at=0)), "the score is upside down"),
        (dict(gold=a_turn(), score=a_turn()), NOTHING),
        (dict(gold=a_turn(), kl_per_sequence=lambda u: min(u, 5)), NOTHING),
        (dict(gold=lambda u: a_turn()(u if u < 16 else u - 16)), NOTHING),
        (dict(gold=lambda u: 2 + noise(u) - 0.008 * abs(u - 8)), NOTHING),
        (dict(gold=lambda u: a_turn(by=0.065)(u) + noise(u)), NOTHING),
        (dict(gold=a_turn(), score=lambda u: 2 + noise(u) + 0.002 * u), NOTHING),
    ],
    ids=[
        "score and KL rise, gold turns", "less than half of its rise", "from the beginning", "the score falls too",
        "the KL stays", "gold comes back", "gold by chance", "its fall by chance", "score by chance",
    ],
)  # fmt: skip
def test_a_reward_that_is_over_optimised(changes, says):
    """Rejects a rule that looks at gold alone, at score alone, or at no noise, and one that calls a wrong sign so."""
    diagnosis = diagnose(from_rows(rows(updates=24, **changes)))
    assert diagnosis.families == (() if says == NOTHING else (says,))


def test_nobody_is_over_optimised_without_gold():
    """Rejects an accusation by score and KL alone, and silence about a question that could not be asked."""
    diagnosis = diagnose(from_rows(rows(updates=24, gold=float("nan"))))
    assert diagnosis.first == NOTHING and OVER_OPTIMISED in {rule.family for rule in diagnosis.not_asked}


@pytest.mark.parametrize(("preset", "seed"), recordings.RECORDED)
def test_recorded_runs_are_over_optimised_or_not(preset, seed):
    """Rejects a rule that knows made-up curves only; the numbers are those of README's table, in other windows."""
    diagnosis = diagnose(read_log(recordings.folder_of(preset, seed)))
    assert diagnosis.families == ((OVER_OPTIMISED,) if preset == "tiny-overoptimised" else ())
    for sign in diagnosis.signs:
        gold, best, score = (sign.evidence[name] for name in ("gold", "best_gold", "score"))
        assert gold == pytest.approx(0.7, abs=0.15) and best == pytest.approx(2.9, abs=0.25) and score > 3
        assert 5 <= sign.evidence["update_of_best_gold"] <= 10


def test_a_policy_that_stands_still_has_a_kl_of_zero():
    """Rejects an accusation of the reference when nothing was trained."""
    assert said_of(kl_per_sequence=0.0, approx_kl=0.0) == NOTHING


def test_linear_decay_may_end_at_zero():
    """Rejects an accusation of a schedule whose very last update is 0."""
    assert said_of(learning_rate=lambda u: 1e-4 * (1 - u / 5)) == NOTHING


def in_another_unit(rows: list[dict], unit: float) -> list[dict]:
    """A log with all scores so many times as large: losses and gradients of values grow as the square."""
    powers = dict(score=1, gold=1, value_loss=2, grad_norm_value=2)
    return [{name: value * unit ** powers.get(name, 0) for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("unit", [0.01, 0.3, 0.7, 30, 100])
def test_the_unit_of_scores_does_not_matter(unit):
    """Rejects thresholds in reward units: at 30 times ours every healthy critic once "ruled" by its gradient's norm."""
    for name, runs in recorded().items():
        family = NOTHING if name in HEALTHY_RUNS else bug(name).family
        if family in (NOTHING, "something is paid many times", "the value loss rules"):
            assert {diagnose(from_rows(in_another_unit(run.metrics, unit))).first for run in runs.values()} == {family}


def test_scores_around_zero_are_not_small():
    """Rejects the mean score as their size: with a zero in the middle, healthy returns looked many times as large."""
    rest = dict(
        eos_rate=0.7, explained_variance=0.0, gold=1.0, score=lambda u: (-0.3) ** u / 2, episodes=lambda u: 16 * (u + 1)
    )
    assert said_of(value_loss=lambda u: 0.5 / (u + 1), **rest) == NOTHING
    assert said_of(value_loss=lambda u: 50 / (u + 1), **rest) == "something is paid many times"


def test_what_cannot_be_asked_is_said():
    """Rejects a clean bill that rests on columns that were not there."""
    diagnosis = diagnose(from_rows([{"score": 1.0}, {"score": 2.0}]))
    assert diagnosis.first == NOTHING and len(diagnosis.not_asked) >= 10
    assert "not asked" in str(diagnosis)


WHAT_TRL_LOGGED = {
    "healthy": NOTHING,
    "healthy in bfloat16": NOTHING,
    "another reference": "the reference differs",
    "repetition penalty": "another distribution is sampled",
    "padding is eos": NOTHING,  # overlooked
}


@pytest.mark.parametrize("name", recorded_by_trl())
def test_logs_of_trl_are_read(name):
    """Rejects names that TRL does not write, updates counted from 1, limits of float32 for bfloat16, a wrong name."""
    log = read_log(recorded_by_trl()[name])
    assert log.has("update", *TRL_NAMES.values()) and log["update"] == list(range(24))
    assert diagnose(log).first == WHAT_TRL_LOGGED[name]


def test_all_logs_of_trl_are_there():
    """Rejects a log that does not ship."""
    assert set(recorded_by_trl()) == set(WHAT_TRL_LOGGED)


def test_the_last_checkpoint_of_trl_is_read(tmp_path):
    """Rejects checkpoint 9 as later than 10, and a folder that holds checkpoints alone as one without a log."""
    for step in (9, 10):
        history = [{"objective/kl": -3.0 * update, "step": update} for update in range(1, step + 1)]
        (tmp_path / f"checkpoint-{step}").mkdir()
        file = tmp_path / f"checkpoint-{step}" / "trainer_state.json"
        file.write_text(json.dumps({"log_history": [*history, {"train_runtime": 1.0}]}))
    assert read_log(tmp_path).updates == 10
    assert diagnose(read_log(tmp_path)).first == "another distribution is sampled"


@pytest.mark.parametrize(
    ("precision", "changes", "first"),
    [
        ("bfloat16", dict(sampler_forward_gap=0.01, sampler_kl=1e-4), NOTHING),
        ("float32", dict(sampler_forward_gap=0.01), "another distribution is sampled"),
        ("bfloat16", dict(sampler_forward_gap=0.1, sampler_kl=0.025), "another distribution is sampled"),
        ("bfloat16", dict(sampler_forward_gap=0.1, sampler_kl=-0.025), "another distribution is sampled"),
        ("bfloat16", dict(sampler_forward_gap=0.1), NOTHING),
    ],
    ids=["rounding", "too much for float32", "top-p", "of either sign", "an older log"],
)
def test_fewer_bits_are_no_bug(tmp_path, precision, changes, first):
    """Rejects limits of float32 for a run in bfloat16, those of bfloat16 for all, and a mean that nobody reads."""
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"stage": "ppo", **row}) + "\n" for row in rows(**changes))
    )
    (tmp_path / "settings.json").write_text(json.dumps({"ppo": {"updates": 6}, "engine": {"precision": precision}}))
    assert diagnose(read_log(tmp_path)).first == first


def test_a_folder_of_ours_is_read(tmp_path, capsys):
    """Rejects a reader that takes SFT's rows for PPO's, and output that another program cannot read."""
    lines = [{"stage": "sft", "loss": 1.0}, *({"stage": "ppo", **row} for row in rows(advantage_std=2.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert examine(tmp_path, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["updates"] == 6 and said["signs"][0]["evidence"] == {"advantage_std": 2.0}
    assert examine(tmp_path / "metrics.jsonl", as_json=False)
    assert "advantages are not whitened" in capsys.readouterr().out


@pytest.mark.parametrize(("updates", "first"), [(9, "the loss is not finite"), (6, NOTHING)])
def test_a_dump_counts_for_a_run_that_did_not_go_on(tmp_path, updates, first):
    """Rejects an accusation of a run that broke off once, was mended, and has come to its end since."""
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"stage": "ppo", **row}) + "\n" for row in rows()))
    (tmp_path / "settings.json").write_text(json.dumps({"ppo": {"updates": updates}}))
    (tmp_path / "dump").mkdir()
    assert diagnose(read_log(tmp_path)).first == first


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("nothing", "", "no metrics.jsonl"),
        ("metrics.jsonl", '{"update": 0}\n{"upd\n', "line 2"),
        ("metrics.jsonl", '{"stage": "sft", "loss": 1.0}\n', "no row of PPO"),
        ("trainer_state.json", '{"step": 3}', "not a trainer's state"),
    ],
)
def test_a_log_that_is_not_there_or_damaged(tmp_path, name, content, says):
    """Rejects a traceback where the user is to mend something."""
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says):
        read_log(tmp_path)


def test_a_folder_that_does_not_exist(tmp_path):
    """Rejects the word that it lacks a log, where the path is misspelt."""
    with pytest.raises(UserError, match="nowhere does not exist: name the folder of a run, or its log"):
        read_log(tmp_path / "nowhere")
