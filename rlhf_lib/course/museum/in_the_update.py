"""Bugs of the loss, of what is logged about it, and of the step."""

from __future__ import annotations

import torch

from ...engine import optimiser
from ...maths import losses
from ...maths.masking import keep
from .bug import RUN, Bug, always
from .joint_clip import jointly_clipped
from .shared_trunk import shared_trunk

TOO_MUCH = 10.0  # instead of N+'s 0.1
LOSS_SCALE = 2.0**16  # where PyTorch's GradScaler begins


def _mean_of_everything(x, mask, dim=None):
    return x.mean() if dim is None else x.mean(dim)


def _overwritten(policy, value, entropy, *, value_coef, entropy_coef):
    return losses.combine_losses(policy, value, entropy, value_coef=TOO_MUCH, entropy_coef=entropy_coef)


def _once_for_each_epoch(step, steps):
    return max(optimiser.linear_decay(step * RUN.epochs, steps), 0.0)


def _in_half_precision(log_probs, old_log_probs, advantages, action_mask, *, clip):
    """The loss scale is multiplied in before the terms leave half precision."""
    ratio = (log_probs - old_log_probs).half().exp()
    scaled = -advantages.half() * ratio * LOSS_SCALE
    clipped = -advantages.half() * ratio.clamp(1 - clip, 1 + clip) * LOSS_SCALE
    return keep(torch.maximum(scaled, clipped).float() / LOSS_SCALE, action_mask)


BUGS = (
    Bug(
        name="mean over the padding",
        stage="loss",
        rung="implementation",
        says="losses and metrics are means over all slots, prompt and padding included",
        symptom="every metric is diluted by the share of slots that count; Adam hides it from the weights",
        seen_in="N+, TRL, torchtune and trlx log some metrics that way, by reading",
        found_by="advantage_std is not 1; a component test with padding appended",
        fix="masked_mean",
        family="means over the padding",
        plant=always(masked_mean=_mean_of_everything),
    ),
    Bug(
        name="value coefficient overwritten",
        stage="loss",
        rung="implementation",
        says=f"a name was used twice: the value loss counts {TOO_MUCH:g} times, not 0.1 times",
        symptom="none: policy and critic share no weights, and Adam divides a constant factor out again",
        seen_in="the write-up's policy degradation (REFERENCES.md#writeup)",
        found_by="grad_norm_value against that of other runs; reading the loss's parts",
        fix="no name twice",
        family="the value loss rules",
        plant=always(combine_losses=_overwritten),
    ),
    Bug(
        name="value coefficient overwritten, shared trunk",
        stage="loss",
        rung="implementation",
        says=f"the same, where policy and critic share all layers: {TOO_MUCH:g} instead of 0.1",
        symptom="the value loss pulls the layers away from what the policy needs: it degrades",
        seen_in="the write-up's policy degradation (REFERENCES.md#writeup)",
        found_by="does it degrade when the critic is not trained? no: so it comes through the value loss",
        fix="no name twice; networks of their own",
        family="the value loss rules",
        plant=always(combine_losses=_overwritten),
        start=shared_trunk,
        beside="healthy, shared trunk",
    ),
    Bug(
        name="value coefficient overwritten, one norm clipped",
        stage="loss",
        rung="implementation",
        says=f"the same, with networks of their own but one clipped norm for both: {TOO_MUCH:g} instead of 0.1",
        symptom="the critic fills the norm, the policy's gradient sinks to the size of Adam's eps: shorter first steps",
        seen_in="the write-up's policy degradation (REFERENCES.md#writeup); loops that clip all parameters at once",
        found_by="approx_kl of the first update, beside that of a run with a norm for each network",
        fix="no name twice; a norm for each network",
        family="the value loss rules",
        plant=always(combine_losses=_overwritten),
        start=jointly_clipped,
        beside="healthy, one norm clipped",
    ),
    Bug(
        name="overflow in half precision",
        stage="loss",
        rung="understanding",
        says="the ratio is taken in FP16 and multiplied with the loss scale before it leaves it: 65,504 is the end",
        symptom="the run stops: the loss is not finite",
        seen_in="FP16 with a GradScaler. In the write-up's own the forward pass was fine and the gradients of exp were "
        "infinite (REFERENCES.md#writeup): lesson 09 shows that one, here the loss itself overflows",
        found_by="the dump: which tensor is the first that is not finite?",
        fix="log-probs, ratio and loss in float32",
        family="the loss is not finite",
        plant=always(policy_loss=_in_half_precision),
    ),
    Bug(
        name="schedule for each epoch",
        stage="update",
        rung="implementation",
        says="the schedule counts epochs where it should count updates: the rate is 0 half way",
        symptom="learning stops early, and it looks like convergence",
        seen_in="two counts of one schedule. The write-up's resume has the reverse, by reading: a schedule that moves "
        "once an epoch is set on by updates, so that the rate comes back too high (REFERENCES.md#writeup); lesson 07",
        found_by="learning_rate",
        fix="one step of the schedule for each update",
        family="the schedule ends early",
        plant=always(ppo_schedule=_once_for_each_epoch),
    ),
)
