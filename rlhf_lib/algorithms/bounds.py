"""Checks of a config's values, once, when the config is made. Each error names the field, the bound and the value."""

from __future__ import annotations

import math
from dataclasses import fields


def at_least(least: float, config: object, *names: str) -> None:
    """Finite, and no less than `least`."""
    _check(config, names, lambda value: math.isfinite(value) and value >= least, f"at least {least}")


def above_zero(config: object, *names: str) -> None:
    """Greater than 0 and finite."""
    _check(config, names, lambda value: math.isfinite(value) and value > 0, "a number above 0")


def share(config: object, *names: str) -> None:
    """From 0 to 1, both allowed."""
    _check(config, names, lambda value: 0 <= value <= 1, "between 0 and 1")


def finite(config: object, *names: str) -> None:
    """Neither infinite nor NaN."""
    _check(config, names, math.isfinite, "a finite number")


def divides(config: object, whole: str, part: str) -> None:
    """`whole` is a multiple of `part`."""
    if getattr(config, whole) % getattr(config, part):
        raise ValueError(f"{whole}={getattr(config, whole)} does not divide by {part}={getattr(config, part)}")


def _check(config: object, names: tuple[str, ...], holds, bound: str) -> None:
    """The field's annotation decides what may be whole or fractional, and whether None (meaning "off") may be."""
    annotations = {field.name: field.type for field in fields(config)}
    for name in names:
        value, annotation = getattr(config, name), annotations[name]
        if value is None and annotation.endswith("| None"):
            continue
        is_number = isinstance(value, int if annotation.startswith("int") else (int, float))
        if not is_number or isinstance(value, bool) or not holds(value):
            whole = "a whole number, " if annotation.startswith("int") else ""
            raise ValueError(f"{name} must be {whole}{bound}, got {value!r}")
