"""Tensors and tokens as plain data that survives JSON, and numbers as the page writes them."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal

import torch

DIGITS = 7  # what float32 holds; more would only make the page heavier
CONTROL = {code: chr(0x2400 + code) for code in range(32)} | {127: "␡", ord("\n"): "⏎", ord("\t"): "⇥", ord("\r"): "␍"}


def plain(x):
    """`x` made of dicts, lists, strings, booleans and finite numbers.

    Tensors become lists, floats keep seven digits, and NaN and the infinities become the strings that JavaScript's
    `Number` reads: JSON has no such numbers, and a browser refuses what Python would write.
    """
    if isinstance(x, torch.Tensor):
        return plain(x.detach().cpu().tolist())
    if isinstance(x, dict):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, float):
        return _plain_float(x)
    if x is None or isinstance(x, (str, int)):
        return x
    raise TypeError(f"{type(x).__name__} is not plain data: {x!r}")


def _plain_float(x: float) -> float | str:
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return "Infinity" if x > 0 else "-Infinity"
    return float(f"{x:.{DIGITS}g}")


def show(x: float | str, digits: int = 3) -> str:
    """A number as the page shows it: rounded as JavaScript's `toFixed` does, tiny ones with an exponent, 0 as 0."""
    x = float(x)
    if x == 0:
        return "0"
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    size = abs(x)
    if size < 10**-digits:
        text = f"{size:.0e}".replace("e-0", "e-")
    elif size >= 1e6:
        text = f"{size:.1e}".replace("e+0", "e+")
    else:
        text = str(Decimal(size).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))
    return ("−" if x < 0 else "") + text


def token_texts(tokens: torch.Tensor, tokenizer) -> list[str]:
    """The text of each token [T], alone; a line break or another control character as its symbol."""
    names = tokenizer.convert_ids_to_tokens(tokens.tolist())
    texts = [tokenizer.decode([token]) or str(name) for token, name in zip(tokens.tolist(), names)]
    return [text.translate(CONTROL) for text in texts]
