"""A config refuses what cannot be meant, when it is made, and says which field holds which value."""

import math
from dataclasses import fields, replace

import pytest

from rlhf_lib.algorithms.ppo import PPOConfig
from rlhf_lib.algorithms.reward_model import RewardModelConfig
from rlhf_lib.algorithms.sft import SFTConfig

CONFIGS = [PPOConfig, SFTConfig, RewardModelConfig]
NUMBERS = [(config, field) for config in CONFIGS for field in fields(config) if field.type != "bool"]
NEGATIVE = {"score_without_eos"}
ZERO = {"kl_coef", "value_coef", "entropy_coef", "gamma", "lam", "score_without_eos"}
MAY_BE_OFF = {"max_grad_norm"}


def assert_refused(config, name, value):
    with pytest.raises(ValueError) as caught:
        replace(config(), **{name: value})
    assert name in str(caught.value) and repr(value) in str(caught.value)


@pytest.mark.parametrize(("config", "field"), NUMBERS, ids=lambda x: getattr(x, "__name__", None) or x.name)
def test_every_number_is_checked(config, field):
    """Rejects a field that nobody checks: NaN and text fail in the middle of a run, or never."""
    refused = [math.nan, math.inf, "1", True]
    refused += [] if field.name in NEGATIVE else [-1]
    refused += [] if field.name in ZERO else [0]
    refused += [] if field.name in MAY_BE_OFF else [None]
    refused += [1.5] if field.type == "int" else []
    for value in refused:
        assert_refused(config, field.name, value)
    for value in {0} & ({0} if field.name in ZERO else set()):
        assert getattr(replace(config(), **{field.name: value}), field.name) == value


def test_what_is_allowed():
    """Rejects bounds that are too strict: the ends of the shares, no clipping, a reward for not ending."""
    allowed = dict(gamma=1, lam=0.0, max_grad_norm=None, score_without_eos=-7.5, kl_coef=0, temperature=1e-3)
    config = PPOConfig(**allowed)
    assert {name: getattr(config, name) for name in allowed} == allowed


@pytest.mark.parametrize(("name", "value"), [("gamma", 1.01), ("lam", 1.01)])
def test_shares_end_at_1(name, value):
    """Rejects a discount that makes the future worth more than the present."""
    assert_refused(PPOConfig, name, value)


def test_minibatches_divide_the_batch():
    """Rejects minibatches of unequal size, and a message that names one of the two numbers only."""
    with pytest.raises(ValueError, match=r"batch_size=10 does not divide by minibatches=4"):
        PPOConfig(batch_size=10, minibatches=4)
