"""What a page says, read as a number."""

from __future__ import annotations

from rlhf_lib.course.widgets.plain import show

ROUNDING = 2e-6  # of what travels with seven digits and is added up


def says(text: str, value: float) -> bool:
    """Whether the page's text is this number, rounded as the page rounds, up to what may lie on either side."""
    return text in {show(value - ROUNDING), show(value), show(value + ROUNDING)} or (
        abs(value) < ROUNDING and abs(float(text.replace("−", "-"))) < ROUNDING
    )
