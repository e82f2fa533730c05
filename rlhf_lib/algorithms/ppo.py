"""Proximal policy optimisation of a language model against a reward model, with a KL penalty (Huang et al. 2024).

Read `train_ppo`, then its verbs from top to bottom; the functions they call through `parts` are the maths shelf.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..engine import distributed, models, optimiser
from ..engine.batching import in_micro_batches, micro_batch, own_buckets
from ..engine.lean import pieces, refuse_if_not_lean, sparing
from ..engine.lean_decoder import lean_decoding
from ..engine.sampling import uniforms
from ..maths.alignment import acting_mask
from ..maths.losses import log_ratio
from ..maths.records import Prompts, Rollout, Samples, Targets
from ..maths.shapes import PerAction, PerRow, PerState, Scalar
from .parts import Parts
from .ppo_config import PPOConfig
from .step_zero import assert_step_zero


def train_ppo(state: PPOState, prompts: Iterable[Prompts], config: PPOConfig, parts: Parts = Parts()) -> Iterator[dict]:
    """One PPO update for each batch of prompts; yields its metrics, for the caller to log, save, plot or stop."""
    for batch in prompts:
        rollout = collect(state, batch, config, parts)
        if state.update == 0:
            state.step_zero = assert_step_zero(state.policy, rollout, config, parts)
        rewards = token_rewards(rollout, config, parts)
        targets = estimate_targets(rollout, rewards, config, parts)
        for minibatch in minibatches(state, rollout, targets, config):
            update(state, ppo_loss(state, minibatch, config, parts), config, parts)
        metrics = measure(state, rollout, targets, config, parts)
        state.update += 1
        yield metrics


# ------------------------------------------------------------------------------------------------------- the records


@dataclass
class PPOState:
    """What changes while PPO runs, and the models it runs on."""

    policy: nn.Module
    critic: nn.Module
    reference: nn.Module
    reward_model: nn.Module
    optimizer: torch.optim.Optimizer
    eos_token_id: int
    pad_token_id: int
    seed: int
    judge: Callable[[Samples], PerRow] | None = None  # an outside judge, for the log only: PPO never sees its scores
    update: int = 0
    step_zero: dict[str, float] = field(default_factory=dict)
    diagnostics: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # of this update's steps


@dataclass(frozen=True)
class Minibatch:
    """Some rows of a rollout and what they aim at."""

    rollout: Rollout
    targets: Targets


def new_state(
    policy: nn.Module, critic: nn.Module, reward_model: nn.Module, config: PPOConfig, parts: Parts, **rest
) -> PPOState:
    """A state before its first update: the reference is made from the policy, the reward model is frozen."""
    for model in (policy, critic, reward_model) if config.lean else ():
        refuse_if_not_lean(model.base_model)
    reference = parts.prepare_reference(policy)
    how = dict(learning_rate=config.learning_rate, eps=config.adam_eps, fused=config.lean)
    optimizer = optimiser.make_optimizer([policy.parameters(), critic.parameters()], **how)
    return PPOState(policy, critic, reference, models.freeze(reward_model), optimizer, **rest)


# --------------------------------------------------------------------------------------------------------- the verbs


@torch.no_grad()
def collect(state: PPOState, batch: Prompts, config: PPOConfig, parts: Parts) -> Rollout:
    """Let the policy write, then ask all four models what they make of the texts, in forward passes of their own.

    The log-probabilities that PPO uses come from these passes, never from the sampler (see lesson 04).
    """
    randomness = uniforms(state.seed, "ppo", state.update, rows=len(batch.tokens), steps=config.response_length)
    with lean_decoding(state.policy, lean=config.lean):
        samples = parts.sample(
            state.policy, batch.tokens, batch.lengths, randomness,
            temperature=config.temperature, eos_token_id=state.eos_token_id, pad_token_id=state.pad_token_id,
        )  # fmt: skip

    def look(texts: Samples) -> tuple[Tensor, ...]:
        what = texts.tokens, texts.action_mask
        acting, scored = acting_mask(texts.action_mask), models.scored_states(texts)
        reading = (acting, (state.policy, state.critic, state.reference)), (scored, (state.reward_model,))
        with sparing(texts.tokens, *reading, **config.sparing):
            log_probs, entropies = parts.score_actions(
                state.policy, *what, temperature=config.temperature, entropy=parts.entropy
            )
            ref_log_probs, _ = parts.score_actions(
                state.reference, *what, temperature=config.temperature, entropy=models.no_entropy
            )
            values = parts.state_values(state.critic, texts.tokens)
            scores = parts.read_score(parts.state_values(state.reward_model, texts.tokens), texts)
        return log_probs, entropies, ref_log_probs, values, scores

    seen = in_micro_batches(look, models.read_ahead(state.policy, samples), config.micro_batch_size)
    return Rollout(*vars(samples).values(), *seen)


def token_rewards(rollout: Rollout, config: PPOConfig, parts: Parts) -> PerAction:
    """The score of each text at its last action, less the KL penalty at every action."""
    scores = parts.replace_score_without_eos(
        rollout.scores, rollout.has_eos, score_without_eos=config.score_without_eos
    )
    kl = parts.kl(rollout.old_log_probs, rollout.ref_log_probs)
    placed = parts.place_score(scores, rollout.action_mask)
    return parts.penalise_kl(placed, kl, rollout.action_mask, kl_coef=config.kl_coef)


def estimate_targets(rollout: Rollout, rewards: PerAction, config: PPOConfig, parts: Parts) -> Targets:
    """Advantages by GAE, returns from them as they are, and only then whitening, once over the whole rollout."""
    mask = rollout.action_mask
    advantages = parts.gae(rollout.values, rewards, mask, gamma=config.gamma, lam=config.lam)
    returns = parts.returns(advantages, rollout.values, mask)
    return Targets(advantages=parts.whiten(advantages, mask), returns=returns)


def minibatches(state: PPOState, rollout: Rollout, targets: Targets, config: PPOConfig) -> Iterator[Minibatch]:
    """`config.epochs` passes over the rollout, each in a new order and in `config.minibatches` pieces."""
    rows = len(rollout.tokens)
    for epoch in range(config.epochs):
        order = uniforms(state.seed, "order", state.update, epoch, rows=1, steps=rows)[0].argsort()
        for index in pieces(order, config.minibatches, lean=config.lean):
            yield Minibatch(rollout.select(index), targets.select(index))


@dataclass(frozen=True)
class PartialLoss:
    """The loss of one micro-batch, already scaled by its share of the minibatch's actions, and what to log about it."""

    total: Scalar
    share: float
    diagnostics: dict[str, Tensor]
    evidence: dict[str, Tensor]  # what it was made of, for the dump if it is not finite


def ppo_loss(state: PPOState, minibatch: Minibatch, config: PPOConfig, parts: Parts) -> Iterator[PartialLoss]:
    """The minibatch's loss, one micro-batch of rows of similar length at a time; their sum is the loss of the whole."""
    actions = minibatch.rollout.action_mask.sum()
    for index in own_buckets(minibatch.rollout, config.micro_batch_size):
        texts = micro_batch(minibatch.rollout, minibatch.rollout, index)
        targets = micro_batch(minibatch.targets, minibatch.rollout, index)
        yield _partial_loss(state, texts, targets, float(texts.action_mask.sum() / actions), config, parts)


def _partial_loss(
    state: PPOState, texts: Rollout, targets: Targets, share: float, config: PPOConfig, parts: Parts
) -> PartialLoss:
    mask, old = texts.action_mask, texts.old_log_probs
    log_probs, entropies, values = _look_again(state, texts, config, parts)
    policy_loss = parts.masked_mean(parts.policy_loss(log_probs, old, targets.advantages, mask, clip=config.clip), mask)
    value_loss = parts.masked_mean(
        parts.value_loss(values, texts.values, targets.returns, mask, clip=config.value_clip), mask
    )
    entropy = parts.masked_mean(entropies, mask)
    total = parts.combine_losses(
        policy_loss, value_loss, entropy, value_coef=config.value_coef, entropy_coef=config.entropy_coef
    )
    with torch.no_grad():
        clipped = parts.clip_fraction(log_probs, old, targets.advantages, mask, clip=config.clip)
        diagnostics = dict(
            policy_loss=policy_loss.detach(),
            value_loss=value_loss.detach(),
            approx_kl=parts.masked_mean(parts.approx_kl(log_probs, old, mask), mask),
            clip_fraction=parts.masked_mean(clipped, mask),
            ratio_max=log_ratio(log_probs, old, mask).exp().max(),
        )
    made_of = dict(new_log_probs=log_probs, new_values=values, entropy=entropy, **diagnostics)
    return PartialLoss(share * total, share, diagnostics, {**vars(texts), **vars(targets), **made_of})


def _look_again(
    state: PPOState, texts: Rollout, config: PPOConfig, parts: Parts
) -> tuple[PerAction, PerAction, PerState]:
    """What policy and critic make of the texts now, with gradients; no work goes into what nobody reads."""
    entropy = parts.entropy if config.entropy_coef else models.no_entropy
    acting = acting_mask(texts.action_mask)
    with sparing(texts.tokens, (acting, (state.policy, state.critic)), **config.sparing):
        log_probs, entropies = parts.score_actions(
            state.policy, texts.tokens, texts.action_mask, temperature=config.temperature, entropy=entropy
        )
        return log_probs, entropies, parts.state_values(state.critic, texts.tokens)


def update(state: PPOState, losses: Iterable[PartialLoss], config: PPOConfig, parts: Parts) -> None:
    """One optimiser step of policy and critic from the losses of all micro-batches of a minibatch."""
    optimiser.set_learning_rates(
        state.optimizer, config.learning_rate * parts.ppo_schedule(state.update, config.updates)
    )
    sums: dict[str, float] = defaultdict(float)
    for loss in losses:
        optimiser.backward("the PPO loss", loss.total, state.optimizer, loss.evidence)
        for name, value in loss.diagnostics.items():
            worst = name == "ratio_max"
            sums[name] = max(sums[name], float(value)) if worst else sums[name] + loss.share * float(value)
    norms = optimiser.step(state.optimizer, max_grad_norm=config.max_grad_norm)
    found = distributed.of_all_processes(sums, largest=("ratio_max",))
    for name, value in {**found, "grad_norm_policy": norms[0], "grad_norm_value": norms[1]}.items():
        state.diagnostics[name].append(value)


@torch.no_grad()
def measure(state: PPOState, rollout: Rollout, targets: Targets, config: PPOConfig, parts: Parts) -> dict[str, float]:
    """What the rollout looked like before this update, means over its steps, and at first what step zero found."""
    mask = rollout.action_mask
    kl = parts.kl(rollout.old_log_probs, rollout.ref_log_probs)
    gap = (rollout.sampler_log_probs - rollout.old_log_probs).abs()
    steps, state.diagnostics = state.diagnostics, defaultdict(list)
    metrics = dict(
        update=state.update,
        episodes=(state.update + 1) * config.batch_size,
        kl_per_sequence=parts.masked_mean(kl, mask) * mask.sum() / len(mask),
        kl_per_token=parts.masked_mean(kl, mask),
        entropy_per_token=parts.masked_mean(rollout.old_entropies, mask),
        score=rollout.scores.mean(),
        gold=state.judge(rollout).mean() if state.judge else torch.nan,
        response_length=mask.sum(1).float().mean(),
        eos_rate=rollout.has_eos.float().mean(),
        advantage_mean=parts.masked_mean(targets.advantages, mask),
        advantage_std=parts.masked_mean((targets.advantages - targets.advantages[mask].mean()) ** 2, mask).sqrt(),
        explained_variance=parts.explained_variance(rollout.values, targets.returns, mask),
        learning_rate=state.optimizer.param_groups[0]["lr"],
        sampler_forward_gap=torch.where(mask, gap, 0).max(),
        **{name: max(values) if name == "ratio_max" else sum(values) / len(values) for name, values in steps.items()},
    )
    if state.update == 0:
        metrics |= state.step_zero
    return {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
