"""PPO's verbs, one by one, then whole runs with known answers."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical

from rlhf_lib.algorithms import ppo
from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.algorithms.ppo import (
    PPOConfig,
    collect,
    estimate_targets,
    minibatches,
    ppo_loss,
    token_rewards,
    train_ppo,
)
from rlhf_lib.algorithms.step_zero import LIMITS
from rlhf_lib.course.table import Table
from rlhf_lib.engine import models
from rlhf_lib.engine.optimiser import NonFiniteError
from rlhf_lib.maths.masking import mask_from_lengths
from rlhf_lib.maths.records import Prompts, Rollout
from tests.algorithms.tiny_world import (
    CONFIG,
    PARTS,
    moved_state,
    new_state,
    prompt_batches,
    rollout_and_targets,
    whole_minibatch,
)
from tests.helpers import assert_close, bools, floats, gae_spec
from tests.tiny import EOS, LargestTensor, gradients_of, same_weights, tiny_gpt2, weights_of

CLOSE = dict(rtol=1e-5, atol=1e-5)
METRICS = """
    update episodes kl_per_sequence kl_per_token entropy_per_token policy_loss value_loss clip_fraction approx_kl
    ratio_max score gold response_length eos_rate advantage_mean advantage_std explained_variance learning_rate
    grad_norm_policy grad_norm_value sampler_forward_gap
"""


# collect


def alone(model, row, end):
    """What a model says of one row without padding: [T, V] logits, or [T] scores."""
    hidden = model.model(row[None, :end]).last_hidden_state[0]
    return model.lm_head(hidden) if hasattr(model, "lm_head") else model.score(hidden)[:, 0]


@torch.no_grad()
def test_collect_asks_each_model_about_each_row():
    """Rejects models that are swapped, rows that are mixed up by the buckets, and a forgotten offset or temperature."""
    state = moved_state()
    rollout = collect(state, prompt_batches()[0], CONFIG, PARTS)
    assert 0 < rollout.has_eos.sum() < CONFIG.batch_size
    for row, tokens in enumerate(rollout.tokens):
        start, end = int(rollout.prompt_lengths[row]), int(rollout.sequence_lengths[row])
        policy, reference = (
            Categorical(logits=alone(model, tokens, end)[start - 1 : end - 1] / CONFIG.temperature)
            for model in (state.policy, state.reference)
        )
        at = slice(start - 1, end - 1)
        torch.testing.assert_close(rollout.old_log_probs[row, at], policy.log_prob(tokens[start:end]), **CLOSE)
        torch.testing.assert_close(rollout.sampler_log_probs[row, at], policy.log_prob(tokens[start:end]), **CLOSE)
        torch.testing.assert_close(rollout.old_entropies[row, at], policy.entropy(), **CLOSE)
        torch.testing.assert_close(rollout.ref_log_probs[row, at], reference.log_prob(tokens[start:end]), **CLOSE)
        torch.testing.assert_close(rollout.values[row, :end], alone(state.critic, tokens, end), **CLOSE)
        torch.testing.assert_close(rollout.scores[row], alone(state.reward_model, tokens, end)[-1] - 0.4, **CLOSE)


def test_micro_batches_change_no_rollout():
    """Rejects sampling inside the micro-batches, and results at another width."""
    one, three, whole = (
        collect(moved_state(), prompt_batches()[0], replace(CONFIG, micro_batch_size=size), PARTS) for size in (1, 3, 8)
    )
    real = mask_from_lengths(whole.sequence_lengths, whole.tokens.shape[1])
    for name, expected in vars(whole).items():
        for other in (one, three):
            found = getattr(other, name)
            assert found.shape == expected.shape
            counts = real if name == "values" else torch.ones_like(expected, dtype=torch.bool)
            torch.testing.assert_close(found[counts], expected[counts], **CLOSE)


def test_each_update_and_seed_has_its_own_randomness():
    """Rejects the same random numbers in every update, and a run that depends on the global generator."""
    state, prompts = new_state(), prompt_batches()[0]
    first = collect(state, prompts, CONFIG, PARTS).tokens
    torch.manual_seed(99)
    assert collect(state, prompts, CONFIG, PARTS).tokens.equal(first)
    state.update = 1
    assert not collect(state, prompts, CONFIG, PARTS).tokens.equal(first)
    assert not collect(new_state(seed=1), prompts, CONFIG, PARTS).tokens.equal(first)


# token_rewards, estimate_targets


def rollout_by_hand() -> Rollout:
    """Row 0: one prompt token, three actions and EOS. Row 1: two prompt tokens, one action, no EOS, one padding."""
    mask = bools("xxx", ".x.")
    return Rollout(
        tokens=torch.tensor([[5, 6, 7, EOS], [5, 6, 7, 0]]),
        prompt_lengths=torch.tensor([1, 2]),
        sequence_lengths=torch.tensor([4, 3]),
        has_eos=torch.tensor([True, False]),
        action_mask=mask,
        sampler_log_probs=floats([0, 0, 0], [0, 0, 0]),
        old_log_probs=floats([-1, -2, -3], [0, -1, 0]),
        old_entropies=floats([1, 2, 3], [0, 2, 0]),
        ref_log_probs=floats([-2, -2, -2], [0, -3, 0]),
        values=floats([1, 2, 3, 9], [9, 4, 9, 9]),
        scores=floats(10, 20),
    )


def test_token_rewards_by_hand():
    """Rejects a KL of the other sign or without its coefficient, a score on every action, and a score without EOS.

    KL per action is old - reference: (1, 0, -1) and 2. With 0.5 a nat: (-0.5, 0, 10 + 0.5), and -1 - 1 in place of 20.
    """
    config = replace(CONFIG, kl_coef=0.5, score_without_eos=-1.0)
    assert_close(token_rewards(rollout_by_hand(), config, PARTS), floats([-0.5, 0, 10.5], [0, -2, 0]))


def test_targets_are_whitened_after_the_returns_are_made():
    """Rejects returns from whitened advantages, whitening by row, and whitened returns; against the double sum."""
    rollout = rollout_by_hand()
    rewards, mask = token_rewards(rollout, CONFIG, PARTS), rollout.action_mask
    targets = estimate_targets(rollout, rewards, CONFIG, PARTS)
    raw = gae_spec(rollout.values, rewards, mask, gamma=CONFIG.gamma, lam=CONFIG.lam)
    assert_close(targets.returns, (raw + rollout.values[:, :-1]) * mask)
    counted = raw[mask]
    whitened = (counted - counted.mean()) / (counted.var(unbiased=False) + 1e-8).sqrt()
    assert_close(targets.advantages[mask], whitened)
    assert not targets.advantages[~mask].any()


# minibatches


def orders(seed=0, update=0, config=CONFIG) -> list[list[int]]:
    """The rows of each minibatch; a row is known by its score."""
    state = new_state()
    rollout, targets = rollout_and_targets(state)
    rows = torch.arange(float(config.batch_size))
    rollout, targets = (
        replace(rollout, scores=rows),
        replace(targets, returns=rows[:, None].expand(targets.returns.shape)),
    )
    state.seed, state.update = seed, update
    found = list(minibatches(state, rollout, targets, config))
    assert all(part.rollout.scores.equal(part.targets.returns[:, 0]) for part in found)
    return [part.rollout.scores.int().tolist() for part in found]


def test_minibatches_cover_each_row_once_an_epoch():
    """Rejects rows drawn with replacement, one order for all epochs, and targets that part from their rows."""
    first, second, third, fourth = orders()
    assert {len(rows) for rows in (first, second, third, fourth)} == {CONFIG.batch_size // CONFIG.minibatches}
    assert sorted(first + second) == sorted(third + fourth) == list(range(CONFIG.batch_size))
    assert first + second != third + fourth
    assert first + second != list(range(CONFIG.batch_size))


def test_order_depends_on_seed_update_and_epoch_alone():
    """Rejects the global generator, and an order that repeats in every update."""
    assert orders() == orders()
    assert len({str(order) for order in (orders(), orders(seed=1), orders(update=1))}) == 3


# ppo_loss, update


def gradients(state, minibatch, config) -> dict[str, torch.Tensor]:
    for loss in ppo_loss(state, minibatch, config, PARTS):
        loss.total.backward()
    found = {f"policy.{name}": x for name, x in gradients_of(state.policy).items()}
    found |= {f"critic.{name}": x for name, x in gradients_of(state.critic).items()}
    state.policy.zero_grad(), state.critic.zero_grad()
    return found


def test_micro_batches_change_no_gradient():
    """Rejects a mean of means: rows have 1 to 5 actions, so micro-batches must be weighted by theirs."""
    state = moved_state()
    minibatch = whole_minibatch(state)
    assert len(set(minibatch.rollout.action_mask.sum(1).tolist())) > 2
    whole = gradients(state, minibatch, replace(CONFIG, micro_batch_size=CONFIG.batch_size))
    for size in (1, 3):
        found = gradients(state, minibatch, replace(CONFIG, micro_batch_size=size))
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)


def test_order_of_rows_changes_no_gradient():
    """Rejects a loss in which a row's weight depends on its place."""
    state = moved_state()
    minibatch = whole_minibatch(state)
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    shuffled = ppo.Minibatch(minibatch.rollout.select(order), minibatch.targets.select(order))
    torch.testing.assert_close(
        gradients(state, shuffled, CONFIG), gradients(state, minibatch, CONFIG), rtol=1e-4, atol=1e-5
    )


def test_loss_is_the_sum_of_its_terms():
    """Rejects a dropped coefficient, an entropy that is penalised, and terms averaged over padding."""
    state = moved_state()
    config = replace(CONFIG, value_coef=0.3, entropy_coef=0.2, clip=0.1, value_clip=0.05)
    minibatch = whole_minibatch(state, config)
    found = sum(loss.total for loss in ppo_loss(state, minibatch, config, PARTS))
    rollout, targets, mask = minibatch.rollout, minibatch.targets, minibatch.rollout.action_mask
    whole = Categorical(logits=state.policy(rollout.tokens).logits[:, :-1] / config.temperature)
    ratio = (whole.log_prob(rollout.tokens[:, 1:]) - rollout.old_log_probs).exp()
    policy = torch.maximum(-targets.advantages * ratio, -targets.advantages * ratio.clamp(0.9, 1.1))
    now, old = (
        state.critic.score(state.critic.model(rollout.tokens).last_hidden_state)[:, :-1, 0],
        rollout.values[:, :-1],
    )
    clipped = old + (now - old).clamp(-0.05, 0.05)
    value = torch.maximum((now - targets.returns) ** 2, (clipped - targets.returns) ** 2) / 2
    expected = (policy + 0.3 * value - 0.2 * whole.entropy())[mask].mean()
    torch.testing.assert_close(found, expected, **CLOSE)


def test_first_gradient_is_reinforces():
    """Rejects a ratio that is not 1 at first, a sign, and log-probs without gradient: -E[A grad log pi]."""
    config = replace(CONFIG, entropy_coef=0.0)
    state = moved_state(config)
    rollout, targets = rollout_and_targets(state, config)
    found = gradients(state, ppo.Minibatch(rollout, targets), config)
    log_probs = (state.policy(rollout.tokens).logits[:, :-1] / config.temperature).log_softmax(-1)
    log_probs = log_probs.gather(-1, rollout.tokens[:, 1:, None])[..., 0]
    (-(log_probs * targets.advantages)[rollout.action_mask].mean()).backward()
    for name, gradient in gradients_of(state.policy).items():
        torch.testing.assert_close(found[f"policy.{name}"], gradient, rtol=1e-4, atol=1e-5)


def test_update_trains_policy_and_critic_only():
    """Rejects a reference that shares memory with the policy, and a reward model that learns along."""
    state = new_state()
    before = {name: weights_of(getattr(state, name)) for name in ("policy", "critic", "reference", "reward_model")}
    next(train_ppo(state, prompt_batches(), CONFIG))
    changed = {name for name in before if not same_weights(before[name], weights_of(getattr(state, name)))}
    assert changed == {"policy", "critic"}
    assert same_weights(weights_of(state.reference), before["policy"])
    for judge in (state.reference, state.reward_model):
        assert not judge.training and not any(weight.requires_grad for weight in judge.parameters())


def test_a_loss_that_is_not_finite_changes_no_weight():
    """Rejects a check after the step."""
    state = moved_state()
    minibatch = whole_minibatch(state)
    minibatch.targets.advantages[1, 0:] = torch.nan
    before = weights_of(state.policy)
    with pytest.raises(NonFiniteError, match="the PPO loss"):
        ppo.update(state, ppo_loss(state, minibatch, CONFIG, PARTS), CONFIG, PARTS)
    assert same_weights(before, weights_of(state.policy))


def largest_tensor_of_an_update(**replaced) -> tuple[int, int]:
    """Numbers in the largest tensor of a whole PPO update with a vocabulary of 3,000, and B * T * V."""
    vocab, rows = 3000, 48
    config = replace(CONFIG, batch_size=rows, micro_batch_size=rows // 2, response_length=12)
    state = new_state(config, vocab=vocab, eos_token_id=-1)
    with LargestTensor() as seen:
        next(train_ppo(state, prompt_batches(1, rows), config, replace(PARTS, **replaced)))
    return seen.numbers, config.micro_batch_size * (1 + config.response_length) * vocab


def test_an_update_never_holds_the_vocabulary_at_every_place(monkeypatch):
    """Rejects logits of [B, T, V] in any verb: sampling, scoring, the step-zero check, loss, backward, optimiser."""
    monkeypatch.setattr(models, "LOGITS_AT_ONCE", 8 * 3000)
    largest, whole = largest_tensor_of_an_update()
    assert largest <= 48 * 3000 < whole / 4  # one row of logits for each prompt, in the sampler


def test_the_reader_of_sizes_sees_a_naive_score():
    """Rejects a recorder that overlooks logits of [B, T, V] when somebody makes them."""

    def naive(model, tokens, action_mask, *, temperature, entropy):
        whole = Categorical(logits=model(tokens).logits[:, :-1] / temperature)
        return whole.log_prob(tokens[:, 1:]) * action_mask, whole.entropy() * action_mask

    largest, whole = largest_tensor_of_an_update(score_actions=naive)
    assert largest >= whole


SPARING = ["skip_unread", "lean"]


@pytest.mark.parametrize("setting", SPARING)
def test_skipping_what_nobody_reads_changes_rounding_only(setting):
    """Rejects a loss, or a gradient, that depended on what is skipped in an unread state."""
    state = moved_state()
    minibatch = whole_minibatch(state)
    skipped = gradients(state, minibatch, replace(CONFIG, **{setting: True}))
    torch.testing.assert_close(skipped, gradients(state, minibatch, CONFIG), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("setting", SPARING)
def test_a_sparing_rollout_is_the_same_where_it_counts(setting):
    """Rejects scores read where the reward model made none, and values or log-probs of the wrong states."""
    plain, sparing = (
        collect(moved_state(), prompt_batches()[0], config, PARTS)
        for config in (CONFIG, replace(CONFIG, **{setting: True}))
    )
    for name, expected in vars(plain).items():
        counts = (
            torch.nn.functional.pad(plain.action_mask, (0, 1)) if name == "values" else torch.ones_like(expected) > 0
        )
        torch.testing.assert_close(getattr(sparing, name)[counts], expected[counts], **CLOSE)


def test_lean_and_skip_unread_are_refused_together():
    """Rejects one of two settings that silently wins."""
    with pytest.raises(ValueError, match="skip_unread and lean do not go together"):
        replace(CONFIG, skip_unread=True, lean=True)


def test_a_lean_state_is_refused_before_anything_is_written():
    """Rejects a model that is found out only after the first rollout was sampled."""
    models_of = dict(policy=tiny_gpt2(), critic=new_state().critic, reward_model=new_state().reward_model)
    with pytest.raises(ValueError, match="its architecture is not Llama"):
        ppo.new_state(
            **models_of, config=replace(CONFIG, lean=True), parts=PARTS, eos_token_id=EOS, pad_token_id=0, seed=0
        )


# train_ppo, measure


def test_learning_rate_falls_once_an_update():
    """Rejects a schedule that counts epochs or minibatches, and one that is off by one update."""
    rates = [metrics["learning_rate"] for metrics in train_ppo(new_state(), prompt_batches(), CONFIG)]
    assert rates == [CONFIG.learning_rate * factor for factor in (1.0, 0.75, 0.5, 0.25)]


def test_metrics_have_the_names_of_the_contract():
    """Rejects a metric that is renamed, lost or added, and a tensor among them."""
    state = new_state(judge=lambda samples: samples.sequence_lengths.double())
    for number, metrics in enumerate(train_ppo(state, prompt_batches(2), CONFIG)):
        assert set(metrics) == {*METRICS.split(), *(LIMITS if metrics["update"] == 0 else ())}
        assert {type(value) for value in metrics.values()} == {int, float}
        assert (metrics["update"], metrics["episodes"]) == (number, 8 * (number + 1))


def test_metrics_by_hand():
    """Rejects sums for means, padding in a mean, and per-token for per-sequence: the rollout by hand, 4 actions."""
    state = new_state(judge=lambda samples: floats(3, 6))
    rollout = rollout_by_hand()
    rollout = replace(rollout, sampler_log_probs=rollout.old_log_probs + floats([0, 0.25, 0], [7, -0.5, 7]))
    targets = ppo.Targets(advantages=floats([1, 3, 1], [0, 3, 0]), returns=floats([2, 1, 3], [0, 6, 0]))
    state.diagnostics |= {"ratio_max": [1.5, 3.0, 2.0], "approx_kl": [1.0, 3.0]}
    found = ppo.measure(state, rollout, targets, CONFIG, PARTS)
    expected = dict(
        kl_per_sequence=1.0,  # (1 + 0 - 1 + 2) / 2 rows
        kl_per_token=0.5,  # / 4 actions
        entropy_per_token=2.0,  # (1 + 2 + 3 + 2) / 4
        score=15.0,  # as the reward model gave it, before any replacement
        gold=4.5,
        response_length=2.0,
        eos_rate=0.5,
        advantage_mean=2.0,
        advantage_std=1.0,
        explained_variance=1 - 1.25 / 3.5,  # errors (1, -1, 0, 2), returns (2, 1, 3, 6)
        sampler_forward_gap=0.5,
        ratio_max=3.0,
        approx_kl=2.0,
    )
    assert_close(floats(*(found[name] for name in expected)), floats(*expected.values()))
    assert not state.diagnostics


def test_train_ppo_waits_to_be_asked():
    """Rejects an update, or a batch taken, before the caller asks for it; and two yields for one batch."""
    state, taken = new_state(), []
    before = weights_of(state.policy)
    run = train_ppo(state, (taken.append(batch) or batch for batch in prompt_batches(3)), CONFIG)
    assert taken == [] and same_weights(before, weights_of(state.policy))
    next(run)
    assert len(taken) == 1
    after_one = weights_of(state.policy)
    assert not same_weights(before, after_one)
    assert len(list(run)) == 2


def test_a_run_can_be_stopped_at_any_update_and_continued():
    """Rejects a state that is one update behind when the caller stops, saves, or starts the loop again."""
    whole, stopped = new_state(), new_state()
    expected = list(train_ppo(whole, prompt_batches(3), CONFIG))
    found = [next(train_ppo(stopped, [batch], CONFIG)) for batch in prompt_batches(3)]
    assert str(found) == str(expected)  # gold is NaN without a judge
    assert same_weights(weights_of(whole.policy), weights_of(stopped.policy))


def test_the_judge_is_not_obeyed():
    """Rejects a run that trains on what is meant for the log alone."""
    plain, judged = new_state(), new_state(judge=lambda samples: torch.full((len(samples.tokens),), 1e6))
    next(train_ppo(plain, prompt_batches(1), CONFIG))
    assert next(train_ppo(judged, prompt_batches(1), CONFIG))["gold"] == 1e6
    assert same_weights(weights_of(plain.policy), weights_of(judged.policy))


# A probe with a known answer


LOGITS = torch.tensor([0.5, -0.5, 0.0, 1.0, -1.0, 0.3])
SCORES = torch.tensor([1.0, 0.6, 0.0, -0.5, 0.8, -1.0])
BANDIT = PPOConfig(
    updates=100, batch_size=256, epochs=2, micro_batch_size=256, response_length=1, temperature=0.7, kl_coef=0.5,
    learning_rate=0.05, value_coef=1.0, value_clip=10.0,
)  # fmt: skip


def bandit(parts: Parts, seed: int) -> float:
    """Train a table on prompts of two tokens with one token to write; total variation to the closed-form optimum.

    E_pi[r] - beta KL(pi || ref) is largest for pi proportional to ref exp(r / beta). The prompt ends with token 2.
    """
    config, vocab = BANDIT, len(LOGITS)
    policy, critic, reward_model = (
        Table(LOGITS.expand(vocab, vocab), scores) for scores in (SCORES, 0 * SCORES, SCORES)
    )
    parts = replace(parts, replace_score_without_eos=lambda scores, has_eos, *, score_without_eos: scores)
    state = ppo.new_state(policy, critic, reward_model, config, parts, eos_token_id=0, pad_token_id=0, seed=seed)
    prompt = Prompts(torch.tensor([[1, 2]]).expand(config.batch_size, -1), torch.full((config.batch_size,), 2))
    for _ in train_ppo(state, [prompt] * config.updates, config, parts):
        pass
    found = (policy.head.weight[:, 2].detach() / config.temperature).softmax(0)
    optimum = ((LOGITS / config.temperature).log_softmax(0) + SCORES / config.kl_coef).softmax(0)
    return float((found - optimum).abs().sum() / 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bandit_finds_the_optimum(seed):
    """Rejects whatever bends the objective: a wrong temperature, KL direction or coefficient, baseline or ratio."""
    assert bandit(PARTS, seed) <= 0.005


def test_bandit_with_the_kl_turned_around_does_not():
    """Rejects a probe that cannot fail: paid for leaving the reference, the policy ends far from the optimum."""
    assert bandit(replace(PARTS, kl=lambda log_p, log_q: log_q - log_p), seed=0) >= 0.15
