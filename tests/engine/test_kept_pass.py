"""The rollout's first pass as the first of training: the same bits, one pass less, never of other texts or weights."""

import copy
from dataclasses import replace

import pytest
import torch

from rlhf_lib.algorithms.ppo import collect, train_ppo
from rlhf_lib.algorithms.ppo_config import PPOConfig
from rlhf_lib.algorithms.step_zero import assert_step_zero
from rlhf_lib.engine import lean
from rlhf_lib.engine.lean import only_what_is_read
from rlhf_lib.engine.models import freeze, hidden_states
from tests.algorithms.tiny_world import CONFIG, PARTS, new_state, prompt_batches
from tests.tiny import disturb, ragged_texts, tiny_llama, weights_of

LEAN = replace(CONFIG, lean=True, minibatches=1)  # 3 micro-batches, 2 epochs


@pytest.fixture
def passes(monkeypatch):
    """Of bodies, in the order in which they are made."""
    made, run = [], lean.run_layers
    monkeypatch.setattr(lean, "run_layers", lambda body, *rest: made.append(body) or run(body, *rest))
    return made


def without_keeping(monkeypatch):
    monkeypatch.setattr(PPOConfig, "sparing", property(lambda config: dict(lean=True, skip_unread=False)))


def trained(config):
    state = new_state(config)
    return state, list(train_ppo(state, prompt_batches(2), config))


@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_same_bits_with_one_pass_less(monkeypatch, passes, minibatches):
    """Rejects a kept pass of other rows or weights, one that is used twice, and one kept where it never fits."""
    config = replace(LEAN, minibatches=minibatches)
    state, metrics = trained(config)
    counts = [passes.count(model.base_model) for model in (state.policy, state.critic)]
    assert not any(vars(model.base_model).get("kept_pass") for model in (state.policy, state.critic))
    passes.clear()
    without_keeping(monkeypatch)
    expected, expected_metrics = trained(config)
    spared = 2 if minibatches == 1 else 0  # one of each of two updates
    assert counts == [passes.count(model.base_model) - spared for model in (expected.policy, expected.critic)]
    assert metrics == expected_metrics
    for name in ("policy", "critic"):
        found, wanted = (weights_of(getattr(one, name)) for one in (state, expected))
        assert all(found[weight].equal(wanted[weight]) for weight in wanted)


def test_step_zero_makes_passes_of_its_own(passes):
    """Rejects a check of the rollout's log-probs against themselves, and one that uses up what training needs."""
    state = new_state(LEAN)
    rollout = collect(state, prompt_batches()[0], LEAN, PARTS)
    kept = state.policy.base_model.kept_pass
    passes.clear()
    assert_step_zero(state.policy, rollout, LEAN, PARTS)
    assert passes == [state.policy.base_model] * 3 and state.policy.base_model.kept_pass is kept


CHANGES = {
    "nothing": lambda model, tokens, read: (tokens, read),
    "weights": lambda model, tokens, read: disturb(model) and (tokens, read),
    "texts": lambda model, tokens, read: (tokens.flip(0), read),
    "what is read": lambda model, tokens, read: (tokens, read & (torch.arange(read.shape[1]) > 0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_the_same_texts_and_weights(passes, change):
    """Rejects states, and gradients, of a pass that was another one."""
    model, tokens = tiny_llama(), ragged_texts().tokens
    read = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad(), only_what_is_read(read, model, keep=True):
        hidden_states(model, tokens)
    tokens, read = CHANGES[change](model, tokens, read)
    plain = copy.deepcopy(model)
    results = []
    for one, keep in ((model, True), (plain, False)):
        with only_what_is_read(read, one, keep=keep):
            states = hidden_states(one, tokens)
        states.square().sum().backward()
        results.append([states.detach(), *(weight.grad for weight in one.base_model.parameters())])
    assert all(found.equal(wanted) for found, wanted in zip(*results, strict=True))
    assert len(passes) == (2 if change == "nothing" else 3)


def test_nothing_is_kept_of_a_model_that_does_not_learn_and_one_micro_batch_of_one_that_does():
    """Rejects graphs of reference and reward model, and as many micro-batches in memory as there are."""
    learner, frozen = tiny_llama(), freeze(tiny_llama(seed=1))
    texts = [ragged_texts(seed=seed).tokens for seed in (0, 1)]
    with torch.no_grad():
        for tokens in texts:
            with only_what_is_read(torch.ones_like(tokens, dtype=torch.bool), learner, frozen, keep=True):
                assert not any(hidden_states(model, tokens).requires_grad for model in (learner, frozen))
    assert learner.base_model.kept_pass.texts[0] is texts[0] and not hasattr(frozen.base_model, "kept_pass")


def test_pieces_of_an_order():
    """Rejects rows of one length in another micro-batch than in the rollout, and an order lost where it counts."""
    order = torch.tensor([4, 0, 3, 1, 2])
    plain, in_order = ([piece.tolist() for piece in lean.pieces(order, 2, lean=is_lean)] for is_lean in (False, True))
    assert plain == [[4, 0, 3], [1, 2]] and in_order == [[0, 3, 4], [1, 2]]
