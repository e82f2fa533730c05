"""Three things that must hold before the first PPO update. Any two of them can hold while the third is broken.

That the sampler drew from what is scored is asked twice: of the worst token, and on average. With fewer bits the worst
of a long rollout may be off by as much as top-p makes it, by rounding alone. But rounding averages out, and the mean
is an estimate (k1) of KL(sampler || policy) in nats a token, above 0 for any other distribution.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..engine import models, precision
from ..engine.batching import in_micro_batches
from ..engine.lean import sparing
from ..maths.alignment import acting_mask
from ..maths.diagnostics import step_zero_gaps
from ..maths.kl import kl_k1
from ..maths.masking import masked_mean
from ..maths.records import Rollout
from .parts import Parts
from .ppo_config import PPOConfig


class StepZeroError(RuntimeError):
    """Before any training, policy, reference and sampler disagree: what follows would not be PPO."""


SAMPLER = (
    "the sampler drew from another distribution than the one scored; look at temperature, top-p and top-k, and at "
    "mask and positions under left padding"
)
# name: (limit in float32, where to look)
LIMITS = {
    "kl_before_first_update": (
        1e-6,  # nats a token
        "policy and reference differ before any update; were both made from the same SFT weights, with dropout off?",
    ),
    "ratio_error_before_first_update": (
        1e-5,
        "the policy gives other log-probabilities when it trains than when it collected; look at dropout and masks",
    ),
    "sampler_forward_gap": (1e-4, SAMPLER),  # nats
    "sampler_kl": (5e-6, SAMPLER),  # nats a token; of either sign
}


def assert_step_zero(policy: nn.Module, rollout: Rollout, config: PPOConfig, parts: Parts) -> dict[str, float]:
    """The numbers of `step_zero_gaps` and `sampler_kl`, or StepZeroError naming the one that is off and where to look.

    For the ratio the policy scores once more, with gradients and as it is about to train.
    """

    def score_for_training(texts: Rollout) -> tuple[Tensor, ...]:
        acting = acting_mask(texts.action_mask)
        with sparing(texts.tokens, (acting, [policy]), **config.sparing | dict(keep=False)):  # a pass of its own
            log_probs, _ = parts.score_actions(
                policy, texts.tokens, texts.action_mask, temperature=config.temperature, entropy=models.no_entropy
            )
        return (log_probs.detach(),)

    (log_probs,) = in_micro_batches(score_for_training, rollout, config.micro_batch_size)
    gaps = step_zero_gaps(
        log_probs, rollout.old_log_probs, rollout.ref_log_probs, rollout.sampler_log_probs, rollout.action_mask
    )
    sampler_kl = masked_mean(kl_k1(rollout.sampler_log_probs, rollout.old_log_probs), rollout.action_mask)
    found = {name: float(number) for name, number in dict(gaps, sampler_kl=sampler_kl).items()}
    for name, (limit, where_to_look) in LIMITS.items():
        limit *= precision.slack(name, precision.of(policy))
        if not abs(found[name]) < limit:
            raise StepZeroError(f"{name} is {found[name]:.3g} but must be below {limit:g}: {where_to_look}")
    return found
