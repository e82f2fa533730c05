"""Checks of a config's values, once, when the config is made. Each error names the field, the bound and the value."""

from __future__ import annotations

import math


def at_least(least: float, config: object, *names: str) -> None:
    _check(config, names, lambda value: math.isfinite(value) and value >= least, f"at least {least}")


def above_zero(config: object, *names: str) -> None:
    """Greater than 0 and finite; None, where a field allows it, means "off"."""
    _check(config, names, lambda value: value is None or (math.isfinite(value) and value > 0), "a number above 0")


def share(config: object, *names: str) -> None:
    _check(config, names, lambda value: 0 <= value <= 1, "between 0 and 1")


def finite(config: object, *names: str) -> None:
    _check(config, names, math.isfinite, "a finite number")


def divides(config: object, whole: str, part: str) -> None:
    if getattr(config, whole) % getattr(config, part):
        raise ValueError(f"{whole}={getattr(config, whole)} does not divide by {part}={getattr(config, part)}")


def _check(config: object, names: tuple[str, ...], holds, bound: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not holds(value):
            raise ValueError(f"{name} must be {bound}, got {value!r}")
