"""Ragged cases for checks: prompts and responses of different lengths in one padded batch, every tensor at hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

STATE_INDEXED = {"values", "old_values"}
ACTION_INDEXED = {
    "action_mask", "rewards", "advantages", "returns", "log_probs", "old_log_probs", "ref_log_probs", "placed_scores",
    "kl_per_token", "sampler_log_probs",
}  # fmt: skip
Tensors = dict[str, Tensor]

SHAPES = {  # (prompt, response) tokens of each row, and columns of padding behind the longest
    "one choice in a row of two tokens": ([(1, 1)], 0),
    "a prompt of two, a response of two": ([(2, 2)], 0),
    "one row, with padding behind it": ([(2, 3)], 2),
    "rows of different lengths": ([(1, 3), (2, 1)], 1),
    "a full row beside short ones": ([(3, 4), (1, 2), (5, 1)], 0),
    "many rows": ([(2, 3), (4, 1), (1, 6), (3, 3)], 2),
}


def ragged_case(lengths: list[tuple[int, int]], padding: int = 0, seed: int = 0, dtype=torch.float64) -> Tensors:
    """Rows of (prompt, response) tokens with every tensor that the maths takes.

    Entries that do not count are random as well, not zero, so that whoever reads them gets another answer.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, states = len(lengths), max(prompt + response for prompt, response in lengths) + padding

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    action_mask = torch.zeros(rows, states - 1, dtype=torch.bool)
    for row, (prompt, response) in enumerate(lengths):
        for t in range(states - 1):
            action_mask[row, t] = prompt <= t + 1 < prompt + response  # token t+1 is chosen in state t
    case = {name: noise(rows, states) for name in ("values", "old_values")}
    for name in ("rewards", "advantages", "returns", "placed_scores", "kl_per_token"):
        case[name] = noise(rows, states - 1)
    case["log_probs"] = -noise(rows, states - 1).abs() - 0.1
    for name in ("old_log_probs", "ref_log_probs"):
        case[name] = case["log_probs"] + 0.3 * noise(rows, states - 1)  # ratios on both sides of a clip of 0.2
    case["scores"], case["has_eos"] = noise(rows), noise(rows) > 0
    case["sampler_log_probs"] = case["old_log_probs"] + 0.3 * noise(rows, states - 1)
    case["prompt_lengths"] = torch.tensor([prompt for prompt, _ in lengths])
    case["sequence_lengths"] = torch.tensor([prompt + response for prompt, response in lengths])
    return case | {"action_mask": action_mask}


def counted(case: Tensors, name: str) -> Tensor:
    """Where the tensor may be read: a state counts where something is chosen in it, never after the last choice."""
    if name in STATE_INDEXED:
        return torch.nn.functional.pad(case["action_mask"], (0, 1))
    return case["action_mask"] if name in ACTION_INDEXED else torch.ones_like(case[name], dtype=torch.bool)


def poisoned(case: Tensors, bad: float = math.nan) -> Tensors:
    """The case with `bad` wherever nothing may be read."""
    return {
        name: tensor.masked_fill(~counted(case, name), bad) if tensor.is_floating_point() else tensor
        for name, tensor in case.items()
    }


def of_every_shape() -> list[tuple[str, Tensors]]:
    """A label and the tensors for each of SHAPES, clean and with NaN wherever nothing may be read."""
    found = []
    for seed, (label, (lengths, padding)) in enumerate(SHAPES.items()):
        tensors = ragged_case(lengths, padding, seed)
        found += [(label, tensors), (f"{label}; NaN stands where nothing may be read", poisoned(tensors))]
    return found


def as_wide_as_actions() -> list[tuple[str, Tensors]]:
    """Cases that have to be refused: values without their last column, in short rows and in the shortest."""
    found = []
    for lengths in ([(1, 1), (1, 1)], [(2, 3), (1, 1)]):
        tensors = ragged_case(lengths, seed=11)
        narrow = {name: tensors[name][:, 1:] for name in STATE_INDEXED}
        found.append(("values as wide as the actions, where they should be one wider", {**tensors, **narrow}))
    return found


def refuse_other_widths(per_state: Tensor, per_action: Tensor) -> None:
    """raises  ValueError unless the first is exactly one wider"""
    if per_state.shape[1] != per_action.shape[1] + 1:
        raise ValueError(f"{tuple(per_state.shape)} is not one wider than {tuple(per_action.shape)}")


def rows_of(mask: Tensor) -> list[list[int]]:
    """For each row of a mask, the places that count."""
    return [[place for place, counts in enumerate(row) if counts] for row in mask.tolist()]
