"""Averages over windows of a curve, and how far apart two of them may lie by chance."""

from __future__ import annotations

STANDARD_ERRORS = 4  # of a difference of two windows: chance must not look like a rise or a fall


def window_means(values: list[float], width: int) -> list[float]:
    """The mean of every `width` values in a row."""
    return [sum(values[at : at + width]) / width for at in range(len(values) - width + 1)]


def chance(values: list[float], width: int) -> float:
    """`STANDARD_ERRORS` of the difference of two windows; of three values at the least.

    The noise of an update is read from second differences, in which a steady trend cancels.
    """
    bends = [a - 2 * b + c for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    variance = sum(bend**2 for bend in bends) / len(bends) / 6  # of x - 2y + z with equal variances: 1 + 4 + 1
    return STANDARD_ERRORS * (2 * variance / width) ** 0.5
