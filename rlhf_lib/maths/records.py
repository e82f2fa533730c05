"""What is passed from step to step: plain frozen records of tensors that share their rows."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

from torch import Tensor

from .shapes import ActionMask, Lengths, PerAction, PerRow, PerState, RowMask, Tokens

Record = TypeVar("Record", bound="Rows")


@dataclass(frozen=True)
class Rows:
    """A record whose fields are tensors with one entry, or one row, for each sequence."""

    def select(self: Record, index: Tensor) -> Record:
        """The rows named by `index`, in its order."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


@dataclass(frozen=True)
class Prompts(Rows):
    """Right-padded prompts [B, P] and their lengths [B]."""

    tokens: Tokens
    lengths: Lengths


@dataclass(frozen=True)
class Texts(Rows):
    """Prompt and response in one right-padded row."""

    tokens: Tokens
    prompt_lengths: Lengths
    sequence_lengths: Lengths
    has_eos: RowMask


@dataclass(frozen=True)
class Samples(Texts):
    """Texts that a policy sampled, with the log-probabilities the sampler saw (nats; a cross-check, never a loss)."""

    action_mask: ActionMask
    sampler_log_probs: PerAction


@dataclass(frozen=True)
class Rollout(Samples):
    """Samples, and what all four models made of them before the update."""

    old_log_probs: PerAction
    old_entropies: PerAction
    ref_log_probs: PerAction
    values: PerState
    scores: PerRow


@dataclass(frozen=True)
class Targets(Rows):
    """What the update aims at: whitened advantages (no unit) and returns (reward units)."""

    advantages: PerAction
    returns: PerAction


def trim(record: Record, states: int) -> Record:
    """The record with rows cut to `states` tokens; every action-indexed field to `states - 1`."""
    width = next(iter(vars(record).values())).shape[1]
    full = width if isinstance(record, Texts) else width + 1  # targets have no state-indexed field

    def cut(tensor: Tensor) -> Tensor:
        return tensor if tensor.dim() == 1 else tensor[:, : tensor.shape[1] - full + states]

    return type(record)(**{field.name: cut(getattr(record, field.name)) for field in fields(record)})
