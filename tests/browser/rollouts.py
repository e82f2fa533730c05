"""Rollouts that the tests and their notebooks both make, with everything in them that may go wrong."""

from __future__ import annotations

import math

import torch

from rlhf_lib.maths.alignment import action_mask_from_lengths
from rlhf_lib.maths.records import Rollout

NASTY = [
    "<script>window.hacked = 1</script>",
    "a & b &lt;",
    "two\nlines",
    "🙂👍🏽",
    '"><img src=x onerror=alert(1)>',
    "<eos>",
    "<pad>",
]


class Texts:
    """As much of a tokenizer as the instruments use: id n is the n-th text."""

    def __init__(self, texts: list[str]):
        self.texts = texts

    def decode(self, ids: list[int]) -> str:
        return "".join(self.texts[place] for place in ids)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.texts[place] for place in ids]


def random_rollout(prompts: list[int], lengths: list[int], width: int, has_eos: list[bool], vocabulary: int) -> Rollout:
    """Rows of these lengths with random numbers, also where nothing counts."""
    generator = torch.Generator().manual_seed(len(prompts) + width)
    rows = len(prompts)

    def noise(columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator)

    mask = action_mask_from_lengths(torch.tensor(prompts), torch.tensor(lengths), width)
    old = -noise(width - 1).abs()
    return Rollout(
        tokens=torch.randint(0, vocabulary, (rows, width), generator=generator),
        prompt_lengths=torch.tensor(prompts), sequence_lengths=torch.tensor(lengths), has_eos=torch.tensor(has_eos),
        action_mask=mask, sampler_log_probs=old, old_log_probs=old, old_entropies=noise(width - 1).abs(),
        ref_log_probs=old + 0.3 * noise(width - 1), values=noise(width), scores=noise(1)[:, 0],
    )  # fmt: skip


def nasty() -> tuple[Rollout, Texts]:
    """Row 0 ends in the middle, row 1 never, row 2 at once; every number that may not be read is NaN or infinite."""
    rollout = random_rollout([2, 3, 1], [6, 9, 2], 9, [True, False, True], len(NASTY))
    rollout.tokens[:, :5] = torch.arange(5)
    rollout.tokens[0, 5:] = torch.tensor([5, 6, 5, 6])  # EOS once more, behind the end
    unread = torch.nn.functional.pad(~rollout.action_mask, (0, 1), value=True)
    rollout.values[unread] = math.nan
    rollout.old_log_probs[~rollout.action_mask] = -math.inf
    rollout.ref_log_probs[~rollout.action_mask] = math.inf
    return rollout, Texts(NASTY)


def single() -> tuple[Rollout, Texts]:
    """One row of two tokens: one choice."""
    return random_rollout([1], [2], 2, [True], 2), Texts(["Q", "A"])


def wide() -> tuple[Rollout, Texts]:
    """64 rows of 128 tokens, hardly any of them prompt."""
    lengths = [128 - row for row in range(64)]
    return random_rollout([3] * 64, lengths, 128, [True] * 64, 5), Texts([f"word{n}" for n in range(5)])
