"""The replaceable parts: exactly the functions that the algorithms' verbs call, the library's own as defaults.

Swap one with `dataclasses.replace(parts, gae=my_gae)`: a learner's function, or a planted bug. A slot, the library
function behind it and its exercise share one signature.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import nn

from ..engine import models, optimiser, sampling
from ..maths import advantages, diagnostics, kl, losses, masking, rewards


def prepare_reference(policy: nn.Module) -> nn.Module:
    """The model that the policy must stay close to: a frozen copy, which no update can reach."""
    return models.freeze(copy.deepcopy(policy))


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A frozen record of functions; see the module's docstring."""

    prepare_reference: Callable = prepare_reference
    sample: Callable = sampling.sample
    score_actions: Callable = models.score_actions
    state_values: Callable = models.state_values
    read_score: Callable = models.read_score
    replace_score_without_eos: Callable = rewards.replace_score_without_eos
    place_score: Callable = rewards.place_score
    kl: Callable = kl.kl_k1
    penalise_kl: Callable = rewards.penalise_kl
    gae: Callable = advantages.gae
    returns: Callable = advantages.returns
    whiten: Callable = masking.whiten
    policy_loss: Callable = losses.policy_loss
    value_loss: Callable = losses.value_loss
    entropy: Callable = losses.entropy
    combine_losses: Callable = losses.combine_losses
    masked_mean: Callable = masking.masked_mean
    approx_kl: Callable = diagnostics.approx_kl
    clip_fraction: Callable = diagnostics.clip_fraction
    explained_variance: Callable = diagnostics.explained_variance
    ppo_schedule: Callable = optimiser.linear_decay
    sft_loss: Callable = losses.sft_loss
    preference_loss: Callable = losses.preference_loss
    schedule: Callable = optimiser.cosine_decay

    def __post_init__(self):
        for field in fields(self):
            if not callable(getattr(self, field.name)):
                raise TypeError(f"part {field.name!r} must be a function, got {getattr(self, field.name)!r}")

    def fingerprint(self) -> dict[str, str]:
        """Name and source hash of every part, for the record of a run."""
        return {field.name: _fingerprint(getattr(self, field.name)) for field in fields(self)}


def _fingerprint(function: Callable) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)  # a partial has no name of its own
    name = f"{named.__module__}.{named.__qualname__}"
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return f"{name}:no-source"
    return f"{name}:{hashlib.sha256(source.encode()).hexdigest()[:12]}"
