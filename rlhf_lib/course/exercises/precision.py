"""Lesson 09: rounding to bfloat16 by bits, a ratio that cannot overflow, and a loss scale that finds itself."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from .. import precision
from ..exercise import Case, Exercise, Twin
from .cases import Tensors, of_every_shape, on, ragged_case, rows_of

PREAMBLE = """
import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_lib.course.precision import Flags, Scales
from rlhf_lib.maths.losses import log_ratio
from rlhf_lib.maths.masking import keep
from rlhf_lib.maths.shapes import ActionMask, PerAction
"""
LESSON = "09_mixed_precision"
LARGEST = torch.finfo(torch.bfloat16).max

# ------------------------------------------------------------------------------------------------ what is right


def round_to_bfloat16_specification(x: Tensor) -> Tensor:
    """The nearer of the two neighbours, one number at a time, with exact fractions."""
    rounded = [_nearest_bfloat16(number) for number in x.reshape(-1).tolist()]
    return torch.tensor(rounded, dtype=torch.float32).reshape(x.shape)


def _nearest_bfloat16(number: float) -> float:
    if math.isnan(number) or math.isinf(number):
        return number
    below = struct.unpack("<I", struct.pack("<f", abs(number)))[0] >> 16  # how many of its numbers lie below, from 0
    down, up = (abs(Fraction(number)) - _bfloat16(below), _bfloat16(below + 1) - abs(Fraction(number)))
    nearest = below if down < up or (down == up and below % 2 == 0) else below + 1
    size = math.inf if nearest == 0x7F80 else float(_bfloat16(nearest))
    return math.copysign(size, number)


def _bfloat16(place: int) -> Fraction:
    """The number with these 15 bits; past the last finite one, the number that would come next."""
    exponent, fraction = place >> 7, place & 127
    if exponent == 0:
        return Fraction(fraction, 128) * Fraction(2) ** -126
    return (1 + Fraction(fraction, 128)) * Fraction(2) ** (exponent - 127)


def safe_ratio_specification(log_probs: Tensor, old_log_probs: Tensor, action_mask: Tensor, *, limit: float) -> Tensor:
    """One action at a time, in double precision; 1 where nothing was chosen."""
    wide = torch.float64 if log_probs.dtype == torch.float64 else torch.float32
    found = torch.ones(action_mask.shape, dtype=wide)
    for row, places in enumerate(rows_of(action_mask)):
        for t in places:
            moved = float(log_probs[row, t]) - float(old_log_probs[row, t])
            found[row, t] = math.exp(min(max(moved, -limit), limit))
    return found


def loss_scales_specification(gradients_finite: Tensor, *, first_scale: float, growth_interval: int) -> Tensor:
    """What happened before a step decides its scale: replayed from the start for each of them."""
    flags, found = gradients_finite.tolist(), []
    for step in range(len(flags)):
        power, since = 0, 0
        for finite in flags[:step]:
            since += 1
            if not finite:
                power, since = power - 1, 0
            if since == growth_interval:
                power, since = power + 1, 0
        found.append(first_scale * 2.0**power)
    return torch.tensor(found, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ what is tried


def _bfloat16_cases() -> list[Case]:
    half_way = 2.0**-8  # from 1 to the middle of 1 and its neighbour
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(9))
    named = {
        "numbers that bfloat16 has": [1.0, -0.5, 0.0, 3.0],
        "a third, and its opposite": [1 / 3, -1 / 3],
        "half way between two numbers": [1 + half_way, 1 + 3 * half_way, 1 + 5 * half_way],
        "half way, below zero": [-1 - half_way, -1 - 3 * half_way],
        "a hair more than half way": [1 + half_way + 2.0**-20, -1 - half_way - 2.0**-20],
        "a quarter of the way, and three quarters": [1 + half_way / 2, 1 + 3 * half_way / 2],
        "the step to the next power of two": [2 - 2.0**-10, -4 + 2.0**-9],
        "the largest float32: nearer to infinity": [torch.finfo(torch.float32).max, -torch.finfo(torch.float32).max],
        "the largest bfloat16": [torch.finfo(torch.bfloat16).max],
        "infinities and NaN": [math.inf, -math.inf, math.nan],
        "large numbers, beyond those of FP16": [70000.0, -1e20, 1e38],
    }
    cases = [Case(label, {"x": torch.tensor(numbers)}) for label, numbers in named.items()]
    payload = torch.tensor([0x7F800001, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    small = torch.tensor([1.3 * 2.0**-120, -1.7 * 2.0**-128, 2.0**-134, 3 * 2.0**-134, 1e-45])
    return [
        *cases,
        Case("NaNs with other bits set", {"x": payload}),
        Case("small numbers, some of them subnormal", {"x": small}, tolerance=1e-50),
        Case("a matrix", {"x": noise}),
        Case("a matrix that does not lie in one piece", {"x": noise.T}),
    ]


RATIO = ("log_probs", "old_log_probs", "action_mask")


def _ratio_case(label: str, tensors: Tensors, limit: float, **how) -> Case:
    return Case(label, {**{name: tensors[name] for name in RATIO}, "limit": limit}, **how)


def _ratio_cases() -> list[Case]:
    trained = dict(gradients=("log_probs",))
    cases = [_ratio_case(label, x, 20.0, **trained) for label, x in of_every_shape()]
    cases += [_ratio_case(f"{label}; limit 0.1", x, 0.1, **trained) for label, x in of_every_shape()[-2:]]
    for moved in (900.0, -900.0):
        far = ragged_case([(1, 2)], seed=3)
        far["log_probs"] = far["old_log_probs"] + torch.tensor([[moved, 0.5]], dtype=torch.float64)
        cases.append(_ratio_case(f"one action {moved:+.0f} nats away", far, 5.0, **trained))
    for dtype in (torch.float16, torch.bfloat16):
        for row, moved in (([-3.0, -14.0], 0.3), ([-9.0, -13.0], 12.0)):
            old = torch.tensor([row], dtype=dtype)
            new = (old.double() + moved).to(dtype)
            half = {"log_probs": new, "old_log_probs": old, "action_mask": torch.ones(1, 2, dtype=torch.bool)}
            kind = str(dtype).removeprefix("torch.")
            cases.append(_ratio_case(f"log-probs in {kind}, {moved:g} nats away", half, 20.0, tolerance=1e-5))
    close = torch.tensor([[-0.0009765625, -8.0]], dtype=torch.float16)
    tensors = {"log_probs": close, "old_log_probs": torch.tensor([[-8.0, -0.0009765625]], dtype=torch.float16)}
    tensors["action_mask"] = torch.ones(1, 2, dtype=torch.bool)
    return [*cases, _ratio_case("float16: a difference that float16 has to round", tensors, 20.0, tolerance=1e-5)]


def _scale_cases() -> list[Case]:
    t, f = True, False
    named = {
        "one step": ([t], 3),
        "all is well for a while": ([t] * 8, 3),
        "the first step overflows": ([f, t, t, t, t], 2),
        "three overflows in a row": ([t, f, f, f, t, t], 4),
        "an overflow just before it would have grown": ([t, t, f, t, t, t, t], 3),
        "it grows, overflows, and grows again": ([t, t, t, f, t, t, t, t, t, f, t, t], 3),
        "every step counts": ([t, f, t, t], 1),
        "overflow every other step: never two clean ones in a row": ([t, f] * 4, 2),
    }
    return [
        Case(label, {"gradients_finite": torch.tensor(flags), "first_scale": 65536.0, "growth_interval": interval})
        for label, (flags, interval) in named.items()
    ] + [Case("from another scale", {"gradients_finite": torch.tensor([t, t, f, t]), "first_scale": 3.0,
                                     "growth_interval": 2})]  # fmt: skip


# ------------------------------------------------------------------------------------------------ what goes wrong


def _by_bits(change: Callable[[Tensor], Tensor], nan: bool = True) -> Callable:
    def round_to_bfloat16(x):
        found = change(x.contiguous().view(torch.int32)).view(torch.float32)
        return torch.where(x.isnan(), x, found) if nan else found

    return round_to_bfloat16


BFLOAT16_TWINS = (
    Twin("you cut the last bits off: every number moves towards 0, and sums of many drift with it",
         _by_bits(lambda bits: bits & ~0xFFFF)),
    Twin("you round what is exactly half way up: of two equally near neighbours the one that ends in 0 counts",
         _by_bits(lambda bits: (bits + 0x8000) & ~0xFFFF)),
    Twin("you round what is exactly half way down: of two equally near neighbours the one that ends in 0 counts",
         _by_bits(lambda bits: (bits + 0x7FFF) & ~0xFFFF)),
    Twin("you round up whatever is not exact", _by_bits(lambda bits: (bits + 0xFFFF) & ~0xFFFF)),
    Twin("you forgot NaN: adding to its bits can make it infinity, or carry into the sign",
         _by_bits(lambda bits: (bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF, nan=False)),
    Twin("you look at the wrong bit for a tie: what counts is the last bit that is *kept*",
         _by_bits(lambda bits: (bits + 0x7FFF + ((bits >> 17) & 1)) & ~0xFFFF)),
    Twin("you kept one bit too many: bfloat16 has 7 bits of fraction, 16 fewer than float32",
         _by_bits(lambda bits: (bits + 0x3FFF + ((bits >> 15) & 1)) & ~0x7FFF)),
    Twin("you kept one bit too few: bfloat16 has 7 bits of fraction, 16 fewer than float32",
         _by_bits(lambda bits: (bits + 0xFFFF + ((bits >> 17) & 1)) & ~0x1FFFF)),
    Twin("you rounded to the other half format: FP16 has more digits, but ends at 65,504",
         lambda x: x.half().float()),
    Twin("you stop at the largest number: from half a step beyond it, the nearest is infinity",
         lambda x: torch.where(x.isfinite(), x.bfloat16().float().clamp(-LARGEST, LARGEST), x)),
)  # fmt: skip


def _ratio_with(
    limited: Callable = lambda x, limit: x.clamp(-limit, limit),
    after: Callable = lambda r, limit: r,
    widen: Callable = lambda x: x.to(torch.promote_types(x.dtype, torch.float32)),
    widen_difference: Callable = lambda x: x,
    sign: float = 1.0,
) -> Callable:
    def safe_ratio(log_probs, old_log_probs, action_mask, *, limit):
        moved = on(action_mask, sign * (widen(log_probs) - widen(old_log_probs)))
        return after(limited(widen_difference(moved), limit).exp(), limit)

    return safe_ratio


def _as_it_comes(x: Tensor) -> Tensor:
    return x


def _not_one_off_the_mask(log_probs, old_log_probs, action_mask, *, limit):
    return on(action_mask, _ratio_with()(log_probs, old_log_probs, action_mask, limit=limit))


def _unmasked(log_probs, old_log_probs, action_mask, *, limit):
    return _ratio_with()(log_probs, old_log_probs, torch.ones_like(action_mask), limit=limit)


VERL = "verl clamps before the exponential, at 20"
RATIO_TWINS = (
    Twin("you limited the ratio, not its logarithm: the exponential has overflowed by then, the value is repaired, and "
         "its gradient is 0 * inf, NaN",
         _ratio_with(lambda x, limit: x, lambda r, limit: r.clamp(math.exp(-limit), math.exp(limit))), VERL),
    Twin("you do not limit anything: the exponential overflows", _ratio_with(lambda x, limit: x),
         "N+ and TRL, by reading: harmless as long as no token moves 88 nats"),
    Twin("you limit one side only: a ratio far below 1 stands still as well",
         _ratio_with(lambda x, limit: x.clamp(max=limit))),
    Twin("you used PPO's clip: here the logarithm is limited, and far away; the clip comes later",
         _ratio_with(lambda x, limit: x, lambda r, limit: r.clamp(1 - limit, 1 + limit))),
    Twin("you subtracted in half precision and widened afterwards: what the subtraction rounded stays lost",
         _ratio_with(widen=_as_it_comes, widen_difference=lambda x: x.to(torch.promote_types(x.dtype, torch.float32)))),
    Twin("you took the exponential in the format of the arguments: in FP16 it ends at 65,504, 11.1 nats",
         _ratio_with(widen=_as_it_comes), "the write-up's infinite gradients"),
    Twin("your ratio is upside down: it is the new probability over the old one", _ratio_with(sign=-1.0)),
    Twin("your ratio is 0 where nothing was chosen: nothing moved there, so it is 1", _not_one_off_the_mask),
    Twin("you did not mask: prompt and padding have ratios of their own", _unmasked),
    Twin("you cut the ratio off from the policy: no gradient, so nothing is learned",
         _ratio_with(after=lambda r, limit: r.detach())),
    Twin("you always answer in float32: arguments in double precision lose half their digits",
         _ratio_with(widen=lambda x: x.float())),
)  # fmt: skip


def _scales_with(
    back: float = 0.5,
    starts_again: bool = True,
    grows_once: bool = True,
    late: int = 0,
    skips_count: bool = False,
    shown_after: bool = False,
    floor: float = 0.0,
) -> Callable:
    """`loss_scales` with a mistake in it."""

    def loss_scales(gradients_finite, *, first_scale, growth_interval):
        scale, in_a_row, found = first_scale, 0, []
        for finite in gradients_finite.tolist():
            before = scale
            in_a_row += finite or skips_count
            if not finite:
                scale, in_a_row = max(scale * back, floor), 0 if starts_again else in_a_row
            if (finite or skips_count) and in_a_row >= growth_interval + late:
                scale, in_a_row = scale * 2, 0 if grows_once else in_a_row
            found.append(scale if shown_after else before)
        return torch.tensor(found, dtype=torch.float64)

    return loss_scales


SCALE_TWINS = (
    Twin("you never go back: the step is skipped, and the next one overflows again, for ever", _scales_with(back=1.0)),
    Twin("you go on counting after an overflow: the clean steps have to be in a row", _scales_with(starts_again=False)),
    Twin("you do not start to count again after growing: it doubles at every step from then on",
         _scales_with(grows_once=False)),
    Twin("you grow one step late", _scales_with(late=1)),
    Twin("you count skipped steps as clean ones", _scales_with(starts_again=False, skips_count=True)),
    Twin("you show the scale after each step: the step itself was taken with the one before",
         _scales_with(shown_after=True)),
    Twin("you never let the scale fall below its first value: it has to go as low as the gradients ask",
         _scales_with(floor=65536.0)),
    Twin("you halve twice: one overflow halves the scale once", _scales_with(back=0.25)),
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ the exercises

EXERCISES = (
    Exercise(
        lesson=LESSON,
        library=precision.round_to_bfloat16,
        specification=round_to_bfloat16_specification,
        cases=_bfloat16_cases,
        twins=BFLOAT16_TWINS,
        hints=(
            "`x.contiguous().view(torch.int32)` shows the same 32 bits as a whole number: a sign, 8 bits of exponent, "
            "23 of fraction. bfloat16 keeps the first 16 of them.",
            "Neighbouring floats are neighbouring whole numbers, also across powers of two. So add a little less than "
            "half of what will be cut off, and cut.",
            "Add 0x7FFF, and one more if the last bit that is kept, `(bits >> 16) & 1`, is set: that breaks ties "
            "towards even. `& ~0xFFFF` cuts. NaN needs a `torch.where`.",
        ),
        difficulty=4,
        importance=2,
        minutes=15,
    ),
    Exercise(
        lesson=LESSON,
        library=precision.safe_ratio,
        specification=safe_ratio_specification,
        cases=_ratio_cases,
        twins=RATIO_TWINS,
        hints=(
            "Three things can go wrong: the subtraction rounds, the exponential overflows, and backward multiplies 0 "
            "with infinity. Each has a place in the order of operations where it is prevented.",
            "`torch.promote_types(x.dtype, torch.float32)` is the wider of both. `log_ratio` masks. What has to be "
            "finite *before* the exponential?",
            "Widen both arguments, take `log_ratio`, clamp it to ±limit, then the exponential. The gradient of a clamp "
            "beyond its limits is 0.",
        ),
        difficulty=2,
        importance=4,
        minutes=10,
    ),
    Exercise(
        lesson=LESSON,
        library=precision.loss_scales,
        specification=loss_scales_specification,
        cases=_scale_cases,
        twins=SCALE_TWINS,
        hints=(
            "Two things are remembered from step to step: the scale, and how many clean steps there were in a row.",
            "Note the scale first, then look at the step: an overflow halves it and the count starts again; a clean "
            "step counts, and may be the one that doubles it.",
            "When the count reaches `growth_interval`, double the scale *and* set the count to 0.",
        ),
        difficulty=2,
        importance=3,
        minutes=10,
    ),
)  # fmt: skip
