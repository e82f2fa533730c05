"""Every slot is read where the algorithms say it is."""

import functools
from dataclasses import fields, is_dataclass, replace

import pytest
from torch import Tensor, nn

from rlhf_lib.algorithms import ppo, reward_model, sft
from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.algorithms.step_zero import StepZeroError
from rlhf_lib.engine.models import scorer_from_policy
from rlhf_lib.maths.advantages import gae
from tests.algorithms.tiny_world import CONFIG, PARTS, comparisons, new_state, prompt_batches
from tests.tiny import disturb, ragged_texts, tiny_llama

NAMES = [field.name for field in fields(Parts)]
SFT = sft.SFTConfig(steps=4, batch_size=7, micro_batch_size=3, learning_rate=1e-3)
REWARD_MODEL = reward_model.RewardModelConfig(steps=4, learning_rate=1e-3, head_learning_rate=1e-2)


def everything(parts: Parts) -> str:
    """All that one PPO update and two steps each of SFT and reward modelling log, as text."""
    state = new_state(parts=parts)
    log = list(ppo.train_ppo(state, prompt_batches(2), CONFIG, parts))
    batches = [ragged_texts(seed=seed) for seed in range(2)]
    log += sft.train_sft(sft.new_state(tiny_llama(), SFT), batches, SFT, parts)
    scorer = reward_model.new_state(scorer_from_policy(tiny_llama(), seed=0), REWARD_MODEL)
    log += reward_model.train_reward_model(scorer, [comparisons(seed=seed) for seed in range(2)], REWARD_MODEL, parts)
    return str(log)


@functools.cache
def usual() -> str:
    return everything(PARTS)


def distort(result):
    """The same kind of thing with other numbers in it."""
    if isinstance(result, Tensor):
        return result * 1.1 + 0.01 if result.is_floating_point() else result
    if isinstance(result, tuple):
        return tuple(map(distort, result))
    if isinstance(result, nn.Module):
        return disturb(result, by=1e-3)
    if is_dataclass(result):
        return replace(result, **{name: distort(value) for name, value in vars(result).items()})
    return result * 1.1


@pytest.mark.parametrize("name", NAMES)
def test_every_slot_is_called_and_obeyed(name):
    """Rejects a verb that calls the library's function past its slot, or calls the slot and drops the result."""
    calls = []

    def swapped(*args, **kwargs):
        calls.append(name)
        return change(getattr(PARTS, name)(*args, **kwargs))

    change = lambda result: result  # noqa: E731
    assert everything(replace(PARTS, **{name: swapped})) == usual()
    assert calls
    change = distort
    try:
        found = everything(replace(PARTS, **{name: swapped}))
    except StepZeroError:
        return  # seen at once
    assert found != usual()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [None, 0.5, "gae"])
def test_only_functions_are_parts(name, wrong):
    """Rejects a run that fails in its middle because a slot holds a number."""
    with pytest.raises(TypeError, match=f"part '{name}' must be a function, got {wrong!r}"):
        replace(PARTS, **{name: wrong})


def test_fingerprint_tells_what_was_swapped():
    """Rejects a record of a run in which a learner's function, or a planted bug, looks like the library's."""

    def my_gae(*args, **kwargs):
        return gae(*args, **kwargs)

    def make(sign):
        if sign > 0:

            def fn(x):
                return x
        else:

            def fn(x):
                return -x

        return fn

    usual = PARTS.fingerprint()
    assert list(usual) == NAMES
    swapped = replace(PARTS, gae=my_gae).fingerprint()
    assert {name for name in NAMES if swapped[name] != usual[name]} == {"gae"}
    plus, minus = (replace(PARTS, gae=make(sign)).fingerprint()["gae"] for sign in (1, -1))
    assert plus.rpartition(":")[0] == minus.rpartition(":")[0] and plus != minus  # one name, other source


class Callable:
    def __call__(self, x):
        return x


@pytest.mark.parametrize("function", [functools.partial(gae, lam=0), Callable(), lambda x: x, abs])
def test_whatever_can_be_called_has_a_fingerprint(function):
    """Rejects a report that fails at the end of a run because a part has no name or no source."""
    assert replace(PARTS, gae=function).fingerprint()["gae"] != PARTS.fingerprint()["gae"]
