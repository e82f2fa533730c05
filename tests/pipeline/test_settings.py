"""Settings: everything can be changed, nothing impossible is accepted, and every refusal says what to write instead."""

from dataclasses import fields

import pytest

from rlhf_lib.pipeline.errors import SettingsError
from rlhf_lib.pipeline.settings import PRESETS, change, from_json, keys, load_settings, value_of

TINY = PRESETS["tiny"]
KEYS = keys(TINY)
TEXTS = ["world.name", "world.model", "data.references", "data.preferences"]
CHOICES = {
    "engine.device": "cpu", "engine.precision": "bfloat16", "engine.attention": "eager", "engine.sharding": "fsdp2"
}  # fmt: skip
NUMBERS = [key for key in KEYS if not isinstance(value_of(TINY, key), bool) and key not in TEXTS and key not in CHOICES]
WHOLE = [key for key in NUMBERS if isinstance(value_of(TINY, key), int)]
MAY_BE_ZERO = {
    "seed", "ppo.kl_coef", "ppo.value_coef", "ppo.entropy_coef", "ppo.gamma", "ppo.lam", "ppo.score_without_eos",
    "evaluation.temperature", "evaluation.matched_length", "preferences.title_bias",
    "preferences.length_bias", "writers.repetition",
}  # fmt: skip
MAY_BE_NEGATIVE = {"ppo.score_without_eos"}


def another(key: str, value: object) -> object:
    """A possible value other than this one."""
    if key in CHOICES:
        return CHOICES[key]
    if key in TEXTS:
        return "another/name"
    if key == "world.trainable_layers":
        return 2
    if isinstance(value, bool):
        return not value
    return value * 2 if isinstance(value, int) and value else 0.5 if value is None else value / 2 + 1 / 128


def refused(key: str, value: str) -> str:
    with pytest.raises(SettingsError) as error:
        change(TINY, key, value)
    return str(error.value)


def test_keys_are_all_fields():
    """Rejects a field that no `--set` reaches, and a key of something that is no field."""
    parts = ("world", "data", "writers", "sft", "preferences", "reward_model", "ppo", "evaluation", "engine")
    assert set(KEYS) == {"seed"} | {f"{part}.{field.name}" for part in parts for field in fields(getattr(TINY, part))}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_can_be_set(key):
    """Rejects a value that is read as text or as another number, that lands elsewhere, or that changes TINY itself."""
    before = value_of(TINY, key)
    wanted = another(key, before) if key != "seed" else 7
    changed = change(TINY, key, str(wanted))
    assert value_of(changed, key) == wanted
    assert type(value_of(changed, key)) is type(wanted)
    assert [k for k in KEYS if value_of(changed, k) != value_of(TINY, k)] == [key]
    assert value_of(TINY, key) == before


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "many", "", "1,5"])
def test_what_is_no_number_is_refused(key, value):
    """Rejects a comparison that lets nan through (every one of them is False), and an infinite step."""
    assert refused(key, value).startswith(f"{key}={value}: ")


@pytest.mark.parametrize("key", [key for key in NUMBERS if key not in MAY_BE_NEGATIVE])
def test_negative_is_refused(key):
    """Rejects a bound that is missing or has the wrong sign."""
    assert refused(key, "-1").startswith(f"{key}=-1: ")


@pytest.mark.parametrize("key", NUMBERS)
def test_zero_where_it_can_be(key):
    """Rejects a bound at 0 that is open where it should be closed, or closed where it should be open."""
    if key in MAY_BE_ZERO:
        assert value_of(change(TINY, key, "0"), key) == 0
    else:
        assert refused(key, "0").startswith(f"{key}=0: ")


@pytest.mark.parametrize("key", WHOLE)
def test_half_a_step_is_refused(key):
    """Rejects rounding in silence."""
    assert "a whole number" in refused(key, "1.5")


@pytest.mark.parametrize("key", ["ppo.gamma", "ppo.lam", "writers.repetition"])
def test_a_share_is_at_most_1(key):
    """Rejects a discount that grows, and more than all writers."""
    assert refused(key, "1.01").startswith(f"{key}=1.01: ")
    assert value_of(change(TINY, key, "1"), key) == 1


@pytest.mark.parametrize("key", ["sft.max_grad_norm", "reward_model.max_grad_norm", "ppo.max_grad_norm"])
@pytest.mark.parametrize("off", ["None", "none", "off"])
def test_off(key, off):
    """Rejects "None" read as text, and a limit that cannot be taken away."""
    assert value_of(change(change(TINY, key, "0.5"), key, off), key) is None


def test_off_only_where_it_means_something():
    """Rejects a learning rate of None."""
    assert "must be a number" in refused("ppo.learning_rate", "off")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("FALSE", False)])
def test_true_and_false(text, value):
    """Rejects bool("False"), which is True."""
    assert value_of(change(TINY, "sft.imitate_query", text), "sft.imitate_query") is value


@pytest.mark.parametrize("text", ["maybe", "1", "None"])
def test_neither_true_nor_false(text):
    """Rejects a guess at what was meant."""
    assert "must be true or false" in refused("sft.imitate_query", text)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("ppo.kl_coeff", "ppo.kl_coef"),
        ("pop.kl_coef", "ppo.kl_coef"),
        ("rewardmodel.steps", "reward_model.steps"),
        ("kl_coef", "ppo.kl_coef"),
        ("label_scale", "preferences.label_scale"),
        ("clp", "ppo.clip"),
        ("Seed", "seed"),
        ("sft", "sft.steps"),
    ],
)
def test_a_misspelt_key_names_the_nearest(key, nearest):
    """Rejects a refusal that leaves the user to guess. A leaf without its stage finds the whole name."""
    message = refused(key, "1")
    assert repr(key) in message
    assert f"did you mean {nearest!r}" in message or (key == "sft" and "did you mean 'sft." in message)


def test_a_key_like_nothing_lists_all():
    """Rejects a far-fetched suggestion."""
    message = refused("zzzz", "1")
    assert all(key in message for key in KEYS)


def test_the_preset_is_no_setting():
    """Rejects a run under the name of a preset whose values it does not have."""
    assert "no setting 'preset'" in refused("preset", "tiny")


def test_an_unknown_preset_names_the_nearest():
    """Rejects a KeyError."""
    with pytest.raises(SettingsError, match="no preset 'tinny'; did you mean 'tiny'"):
        load_settings("tinny")


def test_a_change_reads_key_equals_value():
    """Rejects an override without = taken for a key, and a value cut at its second =."""
    with pytest.raises(SettingsError, match=r"'ppo\.kl_coef' should read key=value"):
        load_settings("tiny", ["ppo.kl_coef"])
    with pytest.raises(SettingsError, match=r"ppo\.clip=0\.1=0\.2: must be a number"):
        load_settings("tiny", ["ppo.clip=0.1=0.2"])
    assert load_settings("tiny", [" ppo.clip = 0.1 "]).ppo.clip == 0.1


def test_the_last_change_wins():
    """Rejects changes that start from the preset each time, or a seed that forgets them."""
    settings = load_settings("tiny", ["ppo.clip=0.1", "ppo.gamma=0.5", "ppo.clip=0.3"], seed=5)
    assert (settings.ppo.clip, settings.ppo.gamma, settings.seed) == (0.3, 0.5, 5)


def test_rows_that_cannot_be_dealt_out_are_refused():
    """Rejects minibatches of unequal size. Naming both numbers says what to change."""
    message = refused("ppo.minibatches", "3")
    assert "batch_size=128" in message
    assert "minibatches=3" in message


def test_json_round_trip():
    """Rejects a field left out of settings.json, a None that comes back as text, and a float that loses digits."""
    changes = ["ppo.kl_coef=0.1234567890123456", "sft.max_grad_norm=None", "sft.imitate_query=true"]
    for settings in (TINY, load_settings("tiny", changes, seed=3)):
        assert from_json(settings.to_json()) == settings


def test_what_the_command_lists_it_also_takes():
    """Rejects a printed form, such as None or True, that `--set` cannot read back."""
    assert load_settings("tiny", [f"{key}={value_of(TINY, key)}" for key in KEYS]) == TINY
