"""What a check says: a panel in a notebook, plain text in a terminal. It never shows the answer."""

from __future__ import annotations

import html
from dataclasses import dataclass, field

import torch
from torch import Tensor

SIGNS = {"passed": "✓", "not attempted": "○", "wrong": "✗", "error": "!"}
COLOURS = {"passed": "#2e7d32", "not attempted": "#757575", "wrong": "#c62828", "error": "#b45309"}
ENTRIES_SHOWN = 60  # of one tensor


@dataclass(frozen=True)
class Verdict:
    """`status` is passed, not attempted, wrong or error (it could not be tried); `rows` name tensors to look at."""

    exercise: str
    status: str
    says: str
    mistake: str = ""  # the known mistake that it makes, named
    case: str = ""
    rows: tuple[tuple[str, str], ...] = ()
    printed: str = ""
    next_step: str = ""
    details: tuple[str, ...] = field(default=())
    score: str = ""  # of an answer that can be half right, such as "7 of 10 mutants"

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def __str__(self) -> str:
        lines = [f"[{SIGNS[self.status]}] {self.exercise}: {self.status}. {self.says}"]
        lines += [f"    {text}" for text in (self.mistake, *self.details) if text]
        if self.case:
            lines.append(f"    The smallest case that shows it: {self.case}")
        width = max((len(name) for name, _ in self.rows), default=0)
        for name, text in self.rows:
            lines += [
                f"    {name if not place else '':>{width}}  {line}" for place, line in enumerate(text.split("\n"))
            ]
        if self.printed:
            lines.append(f"    It also printed: {self.printed}")
        if self.next_step:
            lines.append(f"    {self.next_step}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        colour, sign = COLOURS[self.status], SIGNS[self.status]
        head = f"<span aria-hidden='true'>{sign}</span> {_safe(self.exercise)}: {self.status}."
        parts = [f"<div><b>{head}</b> {_safe(self.says)}</div>"]
        parts += [f"<div style='margin-top:4px'><b>{_safe(self.mistake)}</b></div>"] if self.mistake else []
        parts += [f"<div>{_safe(text)}</div>" for text in self.details]
        if self.case:
            parts.append(f"<div style='margin-top:4px'>The smallest case that shows it: {_safe(self.case)}</div>")
        if self.rows:
            parts.append("<table style='margin:4px 0'>" + "".join(map(_row, self.rows)) + "</table>")
        parts += [f"<div>It also printed: <code>{_safe(self.printed)}</code></div>"] if self.printed else []
        parts += [f"<div style='margin-top:4px'>{_safe(self.next_step)}</div>"] if self.next_step else []
        style = f"border-left:5px solid {colour};padding:6px 12px;margin:4px 0"
        return f"<div class='rlhf-verdict' role='status' style='{style}'>{''.join(parts)}</div>"


def as_text(value: object) -> str:
    """A small tensor row by row, as a person would write it; of a large or an empty one, its shape."""
    if not isinstance(value, Tensor):
        return str(value)
    if not 0 < value.numel() <= ENTRIES_SHOWN or value.dim() > 2:
        return f"{kind_of(value)} of shape {tuple(value.shape)}"
    rows = value.detach().reshape(-1, value.shape[-1] if value.dim() else 1)
    return "\n".join(" ".join(f"{_entry(entry):>7}" for entry in row) for row in rows)


def kind_of(value: Tensor) -> str:
    """The tensor's dtype without its prefix."""
    return str(value.dtype).removeprefix("torch.")


def _entry(entry: Tensor) -> str:
    if entry.dtype == torch.bool:
        return "True" if entry else "."
    return f"{float(entry):.3f}" if entry.is_floating_point() else str(int(entry))


def _row(row: tuple[str, str]) -> str:
    name, text = row
    style = "padding:2px 8px;text-align:left;vertical-align:top"
    shown = f"<pre style='margin:0;background:none;font-family:monospace'>{_safe(text)}</pre>"
    return f"<tr><th style='{style}'>{_safe(name)}</th><td style='{style}'>{shown}</td></tr>"


def _safe(text: str) -> str:
    return html.escape(text)
