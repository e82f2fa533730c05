"""What stands around the library for whoever learns with it: exercises, checks, hints, progress, widgets.

In a notebook: `from rlhf_lib.course import check, hint, predicted, progress, train_with`.
"""

from __future__ import annotations

_HOMES = {
    "check": "checking",
    "hint": "journal",
    "predicted": "prediction",
    "progress": "journal",
    "train_with": "trial",
}
__all__ = ["check", "hint", "predicted", "progress", "train_with"]


def __getattr__(name: str) -> object:
    """Import on first use: `python -m rlhf_lib lab` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from .missing_cell import say_which_cell_to_run

    say_which_cell_to_run()
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
