"""Models from a folder or the Hub, whole or not at all: a weight that is missing is never replaced by a random one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .files import DamagedError, brief


def load_model(kind: type, source: str | Path, **options) -> nn.Module:
    """`kind.from_pretrained` in float32 and evaluation mode; dropout is off everywhere, as in N+.

    raises  DamagedError naming the source if it cannot be loaded, lacks weights, or holds some that are not finite
    """
    try:
        model, found = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **options)
    except Exception as error:  # each format and architecture fails in its own way
        raise DamagedError(_why(source, error)) from error
    _refuse(source, "it lacks the weights", found["missing_keys"])
    not_finite = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    _refuse(source, "numbers are not finite in the weights", not_finite)
    return model.eval()


def _why(source: str | Path, error: Exception) -> str:
    if Path(source).is_dir():
        return f"the model in {source} cannot be loaded ({brief(error)}): make or copy that folder again"
    return (
        f"{source} is no folder here, and no model of that name could be fetched ({brief(error)}): give the path of a "
        "model's folder, or connect to the network"
    )


def _refuse(source: str | Path, complaint: str, names: object) -> None:
    if names := sorted(names):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise DamagedError(
            f"the model in {source} cannot be used: {complaint} {', '.join(names[:3])}{more}; make or copy that folder "
            "again"
        )
