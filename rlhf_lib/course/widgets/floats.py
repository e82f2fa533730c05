"""Lesson 09's instrument: a number of a real run in three float formats, bit by bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Context

import torch

from .instrument import Instrument, html_table, module, stylesheet

FORMATS = (  # name, bits of exponent, bits of fraction
    ("float32", 8, 23),
    ("bfloat16", 8, 7),
    ("float16", 5, 10),
)
SAME_WIDTH = {"float32": torch.int32, "bfloat16": torch.int16, "float16": torch.int16}
NINE_DIGITS = Context(prec=9, rounding=ROUND_HALF_UP)  # enough to tell any two float32 apart
PLAIN = range(-4, 9)  # powers of ten that are written out


def float_bits(values: Mapping[str, float], *, format: str = "float16") -> FloatBits:
    """Bits to flip, neighbours to step to, and what becomes of a number in float32, bfloat16 and float16.

    values  numbers to begin with, by what they are called: a log ratio, a ratio, a ratio times the loss scale ...
            Any float or tensor of one element; float32 is what a tensor would hold of it
    format  of the bits, at first: one of FORMATS
    raises  ValueError without values, or for another format
    """
    if not values:
        raise ValueError("no values: there is nothing to show")
    if format not in SAME_WIDTH:
        raise ValueError(f"format must be one of {', '.join(SAME_WIDTH)}, got {format!r}")
    numbers = [[name, _exact(float(torch.as_tensor(value, dtype=torch.float32)))] for name, value in values.items()]
    view = dict(format=format, chosen=0, value=numbers[0][1], pattern="")
    return FloatBits(data=dict(formats=[list(one) for one in FORMATS], values=numbers), view=view)


class FloatBits(Instrument):
    """See `float_bits`. `view["value"]` is the number, `view["pattern"]` its bits where a number cannot say them: the
    payload of a NaN, the sign of a zero.
    """

    _esm = module("floats")
    _css = stylesheet("floats")

    def summary(self) -> str:
        return f"{len(self.data['values'])} numbers, bits of {self.view['format']}"

    def static_html(self) -> str:
        format, value = self.view["format"], float(self.view["value"])
        numbers = self.data["values"]
        name = numbers[self.view["chosen"]][0]
        exponent = next(bits for other, bits, _ in FORMATS if other == format)
        bits = pattern_of(value, format)
        head = ["", *(other for other, *_ in FORMATS)]
        rows = [[title, *(line(value, other) for other, *_ in FORMATS)] for title, line in LINES.items()]
        return "\n".join((
            html_table(
                f"{name}: {digits(value)} in {format}", ["sign", "exponent", "fraction"],
                [[bits[0], bits[1 : 1 + exponent], bits[1 + exponent :]]],
            ),
            html_table("In each format", head, rows),
            html_table("Numbers to begin with", ["", ""], [[name, digits(float(x))] for name, x in numbers]),
        ))  # fmt: skip


def pattern_of(value: float, format: str) -> str:
    """The bits of the nearest number, sign first."""
    width = 32 if format == "float32" else 16
    found = torch.tensor(value, dtype=torch.float32).to(getattr(torch, format)).view(SAME_WIDTH[format])
    return f"{found.item() & (2**width - 1):0{width}b}"


def stored(value: float, format: str) -> float:
    """The nearest number of the format."""
    return float(torch.tensor(value, dtype=torch.float32).to(getattr(torch, format)))


def neighbours(value: float, format: str) -> tuple[float, float]:
    """The format's next smaller and next larger number, from where it stores the value."""
    dtype = getattr(torch, format)
    place = torch.tensor(value, dtype=torch.float32).to(dtype)
    ends = torch.tensor([-math.inf, math.inf], dtype=dtype)
    return tuple(torch.nextafter(place, end).item() for end in ends)


def state_of(value: float, format: str) -> str:
    """In words what became of a number in a format."""
    found, info = abs(stored(value, format)), torch.finfo(getattr(torch, format))
    if math.isnan(found):
        return "not a number"
    if math.isinf(found):
        return "infinity" if math.isinf(value) else "overflow"
    if found == 0:
        return "zero" if value == 0 else "rounds to 0"
    return "subnormal" if found < info.tiny else "normal"


def digits(x: float) -> str:
    """Nine significant digits without trailing zeros; far from 1 with an exponent."""
    if x == 0:
        return "0"
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else "∞" if x > 0 else "−∞"
    sign, figures, power = NINE_DIGITS.create_decimal_from_float(x).normalize().as_tuple()
    text, size = "".join(map(str, figures)), len(figures) - 1 + power
    if size not in PLAIN:
        body = f"{text[0]}{'.' if text[1:] else ''}{text[1:]}e{size}"
    elif size < 0:
        body = "0." + "0" * (-size - 1) + text
    else:
        text = text.ljust(size + 1, "0")
        body = text[: size + 1] + ("." + text[size + 1 :] if text[size + 1 :] else "")
    return ("−" if sign else "") + body.replace("e-", "e−")


def _step(value: float, format: str) -> str:
    """The distance to the next larger size, in the format."""
    above = neighbours(abs(value), format)[1]
    return digits(above - abs(stored(value, format))) if math.isfinite(above) else "none"


def _error(value: float, format: str) -> str:
    found = stored(value, format)
    return digits(abs(found - value) / abs(value)) if math.isfinite(found) and value else "none"


LINES = {
    "stored as": lambda value, format: digits(stored(value, format)),
    "which is": state_of,
    "relative error": _error,
    "step to the next": _step,
    "largest number": lambda _, format: digits(torch.finfo(getattr(torch, format)).max),
    "smallest normal": lambda _, format: digits(torch.finfo(getattr(torch, format)).tiny),
}


def _exact(x: float) -> float | str:
    """All digits, which `plain` would round to seven; NaN and infinity as JavaScript's `Number` reads them."""
    return x if math.isfinite(x) else "NaN" if math.isnan(x) else "Infinity" if x > 0 else "-Infinity"
