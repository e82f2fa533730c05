"""Operations counted from shapes against operations counted as they run."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rlhf_lib.algorithms import ppo
from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.algorithms.ppo_config import PPOConfig
from rlhf_lib.engine import arithmetic, models
from rlhf_lib.engine.arithmetic import forward, matmul_rate, operations, sampling
from rlhf_lib.engine.memory_budget import ModelShape, Plan
from rlhf_lib.engine.sampling import sample, uniforms
from rlhf_lib.maths.records import Prompts
from tests.tiny import PAD, VOCAB, tiny_llama, tiny_neox

ROWS, PROMPT, RESPONSE, NEVER = 4, 9, 5, -1  # no token is the EOS: every row is as long as it may be
PROMPTS = Prompts(torch.randint(2, VOCAB, (ROWS, PROMPT)), torch.full((ROWS,), PROMPT))


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("make", [tiny_llama, tiny_neox])
def test_a_pass(make):
    """Rejects weights or pairs of states that are forgotten or counted twice."""
    model = make()
    shape = ModelShape.of(model.config)
    mask = torch.ones(ROWS, PROMPT - 1, dtype=torch.bool)
    ran = counted(lambda: models.score_actions(model, PROMPTS.tokens, mask, temperature=1.0))
    assert forward(shape, rows=ROWS, states=PROMPT, heads=int(mask.sum())) == pytest.approx(ran, rel=1e-3)


def test_sampling():
    """Rejects a cache that is not counted on, a head at every token of the prompt, and a last token that is read."""
    model = tiny_llama()
    draws = uniforms(0, rows=ROWS, steps=RESPONSE)
    tokens = dict(temperature=1.0, eos_token_id=NEVER, pad_token_id=PAD)
    ran = counted(lambda: sample(model, PROMPTS.tokens, PROMPTS.lengths, draws, **tokens))
    expected = sampling(ModelShape.of(model.config), rows=ROWS, prompt=PROMPT, response=RESPONSE)
    assert expected == pytest.approx(ran, rel=0.01)


def test_an_update():
    """Rejects a wrong number of passes in any phase: four models once, two of them three times an epoch."""
    config = PPOConfig(updates=2, batch_size=ROWS, micro_batch_size=2, epochs=3, response_length=RESPONSE)
    policy = tiny_llama()
    critic, scorer = (models.scorer_from_policy(policy, seed=seed) for seed in (0, 1))
    state = ppo.new_state(
        policy, critic, scorer, config, Parts(), seed=0, eos_token_id=NEVER, pad_token_id=PAD
    )  # fmt: skip
    steps = ppo.train_ppo(state, [PROMPTS, PROMPTS], config)
    next(steps)  # the first update looks once more, for the step-zero assertions
    ran = counted(lambda: next(steps))
    plan = Plan(policy=ModelShape.of(policy.config), batch=ROWS, micro_batch=2, prompt=PROMPT, response=RESPONSE)
    assert sum(operations(plan, epochs=3).values()) == pytest.approx(ran, rel=0.02)
    assert operations(replace(plan, batch=2 * ROWS), epochs=3)["training"] == 2 * operations(plan, epochs=3)["training"]


def test_the_rate_by_a_clock_of_ours(monkeypatch):
    """Rejects a multiplication and its addition counted as one, and the mean or the first of the tries for the best."""
    readings = iter([0.0, 4.0, 10.0, 10.5, 20.0, 22.0])
    monkeypatch.setattr(arithmetic.time, "perf_counter", lambda: next(readings))
    assert matmul_rate(size=8, tries=2) == 2 * 8**3 / 0.5
