"""Fewer bits in the layers of a model, and nowhere else."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import DynamicCache, TopKLogitsWarper, TopPLogitsWarper

from rlhf_lib.algorithms import ppo
from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.algorithms.ppo_config import PPOConfig
from rlhf_lib.algorithms.step_zero import LIMITS, StepZeroError, assert_step_zero
from rlhf_lib.course.careless import Careless
from rlhf_lib.engine import models, past, sampling
from rlhf_lib.engine.lean import refuse_if_not_lean
from rlhf_lib.engine.precision import DTYPES, in_precision
from rlhf_lib.engine.sampling import sample, uniforms
from rlhf_lib.maths.records import Rollout
from tests.tiny import EOS, MODELS, PAD, disturb, gradients_of, ragged_prompts, ragged_texts, tiny_llama

TEXTS = ragged_texts()
MASK = TEXTS.tokens[:, 1:] >= 0
HALVES = ("bfloat16", "float16")


def dtypes_of_products(model: nn.Module, run) -> set[torch.dtype]:
    """Of what the linear maps of the layers give out."""
    seen = set()
    products = [m for layer in models.layers_of(model) for m in layer.modules() if "weight" in m._parameters
                and m.weight.dim() == 2]  # fmt: skip
    hooks = [m.register_forward_hook(lambda _, __, output: seen.add(output.dtype)) for m in products]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def log_probs_of(model: nn.Module):
    return models.score_actions(model, TEXTS.tokens, MASK, temperature=0.7)[0]


def write(model: nn.Module):
    prompts = ragged_prompts(5)
    randomness = uniforms(0, rows=5, steps=6)
    return sample(model, prompts.tokens, prompts.lengths, randomness, temperature=0.7, eos_token_id=EOS,
                  pad_token_id=PAD)  # fmt: skip


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", MODELS)
def test_only_layers_have_fewer_bits(name, precision):
    """Rejects log-probabilities, values or sampled log-probabilities in 16 bits, and layers that stay in float32."""
    model = in_precision(MODELS[name](), precision)
    assert dtypes_of_products(model, lambda: log_probs_of(model)) == {DTYPES[precision]}
    assert dtypes_of_products(model, lambda: write(model)) == {DTYPES[precision]}
    heads = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: heads.append(logits.dtype))
    found = [log_probs_of(model), write(model).sampler_log_probs, models.hidden_states(model, TEXTS.tokens)]
    assert {x.dtype for x in found} | set(heads) == {torch.float32}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", HALVES)
def test_close_to_float32(precision):
    """Rejects a precision that changes nothing, and one that changes everything. Gradients arrive in float32."""
    plain, model = tiny_llama(), in_precision(tiny_llama(), precision)
    expected, found = log_probs_of(plain), log_probs_of(model)
    assert 0 < float((found - expected).detach().abs().mean()) < {"bfloat16": 0.1, "float16": 0.01}[precision]
    for x in (expected, found):
        x.sum().backward()
    for name, gradient in gradients_of(model).items():
        assert gradient.dtype == torch.float32
        exact = gradients_of(plain)[name]
        assert float((gradient - exact).norm()) < 0.1 * float(exact.norm()), name


def test_a_copy_has_layers_of_its_own():
    """Rejects a reference, or a critic, whose wrapped layers are those of the model that it was copied from."""
    model = in_precision(tiny_llama(), "bfloat16")
    before, other = log_probs_of(model), copy.deepcopy(model)
    assert torch.equal(log_probs_of(other), before)
    disturb(other)
    assert torch.equal(log_probs_of(model), before)
    assert not torch.allclose(log_probs_of(other), before, atol=0.1)
    assert other.base_model.precision == "bfloat16"


def test_float32_wraps_nothing():
    """Rejects a default that costs something, or that keeps the lean pass away."""
    model = in_precision(tiny_llama(), "float32")
    assert torch.equal(log_probs_of(model), log_probs_of(tiny_llama()))
    refuse_if_not_lean(model.base_model)
    with pytest.raises(ValueError, match="lean"):
        refuse_if_not_lean(in_precision(tiny_llama(), "bfloat16").base_model)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", HALVES)
def test_keys_and_values_are_remembered_in_fewer_bits(name, precision, monkeypatch):
    """Rejects a cache of float32, twice as large, which attention copies for every token; and other texts without."""
    seen, feed = set(), sampling.Decoder.feed

    def look(decoder, tokens):
        seen.update(numbers.dtype for layer in decoder.cache.layers for numbers in (layer.keys, layer.values))
        feed(decoder, tokens)

    monkeypatch.setattr(sampling.Decoder, "feed", look)
    found = write(in_precision(MODELS[name](), precision))
    assert seen == {DTYPES[precision]}
    monkeypatch.setattr(past, "_kind", lambda: DynamicCache)
    for tensor, expected in zip(vars(found).values(), vars(write(in_precision(MODELS[name](), precision))).values()):
        assert torch.equal(tensor, expected)


# ------------------------------------------------------------------------------------------------------- step zero


CONFIG = PPOConfig(batch_size=32, response_length=12, micro_batch_size=16)


def first_rollout(precision: str, write=sample) -> tuple[nn.Module, Rollout]:
    """What a policy in this precision has written by this sampler."""
    policy = in_precision(tiny_llama(), precision)
    scorer = in_precision(models.scorer_from_policy(policy, seed=0), precision)
    parts, ends = replace(Parts(), sample=write), dict(eos_token_id=EOS, pad_token_id=PAD)
    state = ppo.new_state(policy, copy.deepcopy(scorer), scorer, CONFIG, parts, seed=0, **ends)
    return state.policy, ppo.collect(state, ragged_prompts(32), CONFIG, parts)


def filtered(change):
    def write(model, *texts, temperature, **tokens):
        filtering = Careless(model, lambda _, logits: change(None, logits), temperature=temperature)
        return sample(filtering, *texts, temperature=1.0, **tokens)

    return write


def heated(factor: float):
    return lambda *args, temperature, **tokens: sample(*args, temperature=factor * temperature, **tokens)


WRONG = {
    "top-p 0.9": filtered(TopPLogitsWarper(0.9)), "top-p 0.95": filtered(TopPLogitsWarper(0.95)),
    "top-k 10": filtered(TopKLogitsWarper(10)), "hotter": heated(1 / 0.7), "colder": heated(0.7),
}  # fmt: skip


@pytest.mark.parametrize("precision", DTYPES)
def test_step_zero_lets_right_samplers_pass(precision):
    """Rejects limits that rounding breaks."""
    policy, rollout = first_rollout(precision)
    assert set(assert_step_zero(policy, rollout, CONFIG, Parts())) == set(LIMITS)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("wrong", WRONG)
def test_step_zero_stops_wrong_samplers(wrong, precision):
    """Rejects limits so wide that a filter, or another temperature, passes them as rounding in half precision."""
    policy, rollout = first_rollout(precision, WRONG[wrong])
    with pytest.raises(StepZeroError, match=r"sampler_\w+ is"):
        assert_step_zero(policy, rollout, CONFIG, Parts())


@pytest.mark.parametrize("precision", DTYPES)
def test_in_half_precision_the_mean_decides(precision):
    """Rejects limits by which one token of a long rollout, rounded badly, stops a run; and a mean that may be negative.

    The one is off by 0.05 nats, in bfloat16 by half a nat; all of them by 0.02.
    """
    policy, rollout = first_rollout(precision)
    one = torch.zeros_like(rollout.sampler_log_probs)
    one[tuple(rollout.action_mask.nonzero()[0])] = 0.5 if precision == "bfloat16" else 0.05
    once_off, all_off = (replace(rollout, sampler_log_probs=rollout.sampler_log_probs - by) for by in (one, 0.02))
    if precision == "float32":
        with pytest.raises(StepZeroError, match="sampler_forward_gap is"):
            assert_step_zero(policy, once_off, CONFIG, Parts())
        return
    assert_step_zero(policy, once_off, CONFIG, Parts())
    with pytest.raises(StepZeroError, match=r"sampler_kl is -0\.0"):
        assert_step_zero(policy, all_off, CONFIG, Parts())
