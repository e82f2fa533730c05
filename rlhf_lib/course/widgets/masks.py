"""Lesson 01's instrument: a mask to toggle, and what becomes of the statistics with it, without it, and done badly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...maths.masking import masked_mean, masked_softmax, masked_var, whiten
from .instrument import Instrument, html_table, module, stylesheet
from .plain import plain, show


def mask_explorer(
    x: Float[Tensor, "B N"],
    mask: Bool[Tensor, "B N"],
    *,
    name: str = "x",
    row_names: Sequence[str] | None = None,
    row: int = 0,
) -> MaskExplorer:
    """`x` with a mask to toggle; its mean, variance, whitening and softmax without the mask, multiplied and selected.

    x          [B, N] any unit: the KL, log-probs, advantages ... of a few rows
    mask       [B, N] True where an entry counts
    name       what x is called on the page
    row_names  [B] what the rows are called, "row 0" and so on if left out
    row        the one whose whitening and softmax are shown at first
    """
    if x.shape != mask.shape or x.dim() != 2:
        raise ValueError(f"x and mask must both be [B, N], got {tuple(x.shape)} and {tuple(mask.shape)}")
    if not 0 <= row < len(x):
        raise ValueError(f"row {row} of a tensor of {len(x)} rows")
    names = [f"row {place}" for place in range(len(x))] if row_names is None else list(row_names)
    if len(names) != len(x):
        raise ValueError(f"{len(names)} row names for {len(x)} rows")
    data = dict(name=name, row_names=names, x=x.double(), mask=mask.int())
    return MaskExplorer(data=plain(data), view=dict(flipped=[], padding="given", row=row))


class MaskExplorer(Instrument):
    """See `mask_explorer`. `view["flipped"]` are the cells of the mask that were toggled: [row, column]."""

    _esm = module("masks")
    _css = stylesheet("masks")

    def summary(self) -> str:
        return f"{self.data['name']}, {len(self.data['x'])} rows of {len(self.data['x'][0])}"

    def static_html(self) -> str:
        x = torch.tensor([[float(entry) for entry in row] for row in self.data["x"]], dtype=torch.float64)
        mask = torch.tensor(self.data["mask"]) > 0
        row, names = self.view["row"], self.data["row_names"]
        everywhere, fill = torch.ones_like(mask), mask.double().mean().item()
        entries = ([names[b], *_texts(x[b], mask[b])] for b in range(len(x)))
        statistics = (
            [title, show(fn(x, everywhere).item()), show(fn(x, mask).item())]
            for title, fn in (("mean", masked_mean), ("variance", masked_var))
        )
        results = (
            [title, *map(show, result[row].tolist())]
            for title, result in (
                ("whitened, plain", whiten(x, everywhere)),
                ("whitened, masked", whiten(x, mask)),
                ("softmax, plain", masked_softmax(x, everywhere)),
                ("softmax, masked", masked_softmax(x, mask)),
            )
        )
        positions = ["", *range(x.shape[1])]
        caption = f"{self.data['name']}; in brackets what does not count; fill rate {show(fill)}"
        tables = (
            html_table(caption, positions, entries),
            html_table("Over everything", ["", "plain", "masked"], statistics),
            html_table(names[row], positions, results),
        )
        return "\n".join(tables)


def _texts(entries: Tensor, mask: Tensor) -> list[str]:
    return [show(entry) if counts else f"[{show(entry)}]" for entry, counts in zip(entries.tolist(), mask.tolist())]
