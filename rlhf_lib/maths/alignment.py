"""The one place that shifts. Token t+1 is chosen in state t.

    states    tokens[:, 0]   tokens[:, 1]   ...   tokens[:, T-1]        T of them
    actions        tokens[:, 1]   tokens[:, 2]   ...                    T-1 of them: what was chosen in states 0..T-2

State-indexed tensors (tokens, values) are one wider than action-indexed ones (log-probs, rewards, advantages).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from .masking import mask_from_lengths
from .shapes import ActionMask, Lengths, PerAction, PerState, Tokens


def actions_of(tokens: Shaped[Tensor, "B states"]) -> Shaped[Tensor, "B actions"]:
    """The choice made in each state but the last: `tokens[:, t+1]` at place t. Also of what is noted beside tokens."""
    return tokens[:, 1:]


def acting_states(per_state: Shaped[Tensor, "B states *rest"]) -> Shaped[Tensor, "B actions *rest"]:
    """Whatever a model put out in each state in which something is chosen next: the last state is dropped."""
    return per_state[:, :-1]


def action_log_probs(logits: Float[Tensor, "B states V"], tokens: Tokens) -> PerAction:
    """log pi(tokens[:, t+1] | state t) of each choice that was made, in nats.

    logits   [B, T, V] as a model puts them out, already divided by the temperature: place t is about token t+1
    tokens   [B, T]
    returns  [B, T-1], also where nobody chose: prompt and padding are for `action_mask` to leave out
    differs  `score_actions` gives the same without ever making [B, T, V]: it asks the head only where something counts
    """
    log_probs = acting_states(logits).log_softmax(-1)
    return log_probs.gather(-1, actions_of(tokens)[..., None]).squeeze(-1)


def values_before(values: PerState) -> PerAction:
    """V(state in which choice t was made)."""
    return values[:, :-1]


def values_after(values: PerState) -> PerAction:
    """V(state that choice t led to). Read it only where another choice follows; see `another_follows`."""
    return values[:, 1:]


def action_mask_from_lengths(prompt_lengths: Lengths, sequence_lengths: Lengths, states: int) -> ActionMask:
    """True where the policy chose `tokens[:, t+1]`: the response with its EOS, without prompt and padding.

    prompt_lengths, sequence_lengths  [B] counts of tokens; a sequence is prompt and response
    returns  [B, states-1]
    raises   ValueError if a prompt is empty (nobody could have chosen token 0), if a response is empty, or if a
             sequence is longer than the row
    """
    if bool((prompt_lengths < 1).any()) or bool((sequence_lengths <= prompt_lengths).any()):
        raise ValueError(
            "every row needs at least one prompt token and one response token, got prompt_lengths "
            f"{prompt_lengths.tolist()} and sequence_lengths {sequence_lengths.tolist()}"
        )
    if bool((sequence_lengths > states).any()):
        raise ValueError(f"a sequence of {int(sequence_lengths.max())} tokens does not fit a row of {states}")
    is_response = mask_from_lengths(sequence_lengths, states) & ~mask_from_lengths(prompt_lengths, states)
    return is_response[:, 1:]


def another_follows(action_mask: ActionMask) -> ActionMask:
    """True where choice t counts and so does choice t+1. False at the last choice: what comes after it is worth 0."""
    following = torch.nn.functional.pad(action_mask[:, 1:], (0, 1), value=False)
    return action_mask & following


def is_last(action_mask: ActionMask) -> ActionMask:
    """True at the last choice of each row, where its score is paid."""
    return action_mask & ~another_follows(action_mask)


def check_one_wider(per_state: Shaped[Tensor, "B states"], per_action: Shaped[Tensor, "B actions"]) -> None:
    """Raise ValueError unless `per_state` is exactly one wider. At T = 2 a mix-up would broadcast silently."""
    rows, states = per_state.shape
    if tuple(per_action.shape) != (rows, states - 1):
        raise ValueError(
            f"a state-indexed tensor of shape {tuple(per_state.shape)} goes with action-indexed ones of shape "
            f"{(rows, states - 1)}, got {tuple(per_action.shape)}"
        )


def check_same_actions(*per_action: Float[Tensor, "B actions"] | Bool[Tensor, "B actions"]) -> None:
    """Raise ValueError unless all action-indexed tensors have one shape."""
    shapes = [tuple(tensor.shape) for tensor in per_action]
    if len(set(shapes)) > 1:
        raise ValueError(f"action-indexed tensors must have one shape, got {shapes}")
