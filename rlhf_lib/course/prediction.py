"""Predictions: what somebody said on paper beside what the library computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .verdict import Verdict, as_text

CLOSE_ENOUGH = 0.01  # said on paper, with two decimals


def predicted(function: Callable[[], Mapping], **computed: Tensor) -> Verdict:
    """Compare what `function` returns, a dict of numbers or lists, with what was computed under the same names."""
    name = function.__name__
    try:
        said = {key: torch.as_tensor(value, dtype=torch.float64) for key, value in function().items()}
    except NotImplementedError:
        return Verdict(name, "not attempted", "Say first what you expect, then run this cell.")
    except Exception as error:
        return Verdict(name, "error", f"It should return a dict of numbers; {type(error).__name__}: {error}")
    if said.keys() != computed.keys():
        return Verdict(name, "error", f"It should return {', '.join(computed)}; it returns {', '.join(said)}.")
    off = [key for key in computed if not _close(said[key], computed[key])]
    if not off:
        return Verdict(name, "passed", "As computed.")
    rows = [(label, as_text(value)) for key in off for label, value in _rows(key, said[key], computed[key])]
    return Verdict(name, "wrong", "Computed was something else. Where do the two part, and why?", rows=tuple(rows))


def _rows(key: str, said: Tensor, computed: Tensor) -> tuple[tuple[str, Tensor], ...]:
    return (f"you said {key}", said), (f"computed {key}", computed.double())


def _close(said: Tensor, computed: Tensor) -> bool:
    return said.shape == computed.shape and torch.allclose(said, computed.double(), rtol=0, atol=CLOSE_ENOUGH)
