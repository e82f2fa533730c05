"""What the tests share: tolerances, ragged cases, relations between runs, and slow specifications.

The specifications loop over one unpadded row at a time, with Python floats, and call nothing from the library.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jaxtyping
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from rlhf_lib.course.exercises.cases import ACTION_INDEXED, STATE_INDEXED, counted, poisoned, ragged_case
from rlhf_lib.engine import hardware

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}
GAMMA_LAM = [(1.0, 0.95), (0.9, 0.8), (0.95, 0.0), (0.99, 1.0), (0.0, 0.5)]

Case = dict[str, Tensor]


def _can_shard() -> bool:
    try:
        hardware.refuse_to_shard()
    except ValueError:
        return False
    return True


SHARDED = pytest.mark.skipif(not _can_shard(), reason="this version of torch is too old for engine.sharding=fsdp2")
DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
IN_PARTS = {"fsdp2": SHARDED, "zero2": DEEPSPEED, "zero3": DEEPSPEED}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal in shape, dtype, device, NaN and value, up to the rounding of the dtype."""
    tolerance = TOLERANCE.get(expected.dtype, 0.0)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def floats(*rows) -> Tensor:
    """A float64 tensor, for examples worked by hand."""
    return torch.tensor(rows, dtype=torch.float64)


def bools(*rows: str) -> Tensor:
    """A mask drawn as text: one string for each row, `x` where it counts."""
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


# Ragged cases


CASES = [
    ragged_case([(1, 1)], seed=1),  # T = 2: one choice
    ragged_case([(2, 3), (4, 1), (1, 6)], padding=2, seed=2),
    ragged_case([(3, 4), (1, 2), (5, 2), (2, 5)], seed=3),  # some rows full
]
ragged_cases = st.builds(
    ragged_case,
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6)), min_size=1, max_size=4),
    padding=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)


def call(fn: Callable, case: Case, names: tuple[str, ...], **hyper) -> Tensor:
    """`fn` on the tensors of the case with these names, in this order."""
    return fn(*(case[name] for name in names), **hyper)


def with_more_padding(case: Case, columns: int) -> Case:
    """The case with columns appended to every state- and action-indexed tensor, that do not count and hold 7."""

    def widen(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, columns), value=False if tensor.dtype == torch.bool else 7.0)

    widths = STATE_INDEXED | ACTION_INDEXED
    return {name: widen(tensor) if name in widths else tensor for name, tensor in case.items()}


# Relations between runs


def assert_reads_only_what_counts(fn: Callable, case: Case, names: tuple[str, ...], **hyper) -> None:
    """Poison in padding, prompt and last state changes nothing; more padding adds zeros; rows do not mix."""
    plain = call(fn, case, names, **hyper)
    for bad in (math.nan, math.inf):
        assert_close(call(fn, poisoned(case, bad), names, **hyper), plain)
    wider = call(fn, with_more_padding(case, 2), names, **hyper)
    backwards = call(fn, {name: tensor.flip(0) for name, tensor in case.items()}, names, **hyper)
    if plain.dim() == 2:
        assert_close(plain[~case["action_mask"]], torch.zeros_like(plain[~case["action_mask"]]))
        assert_close(wider, torch.nn.functional.pad(plain, (0, 2)))
        assert_close(backwards, plain.flip(0))
    else:
        assert_close(wider, plain)
        assert_close(backwards, plain)


def derivative(result: Tensor, leaf: Tensor) -> Tensor:
    """d (sum of the results) / d leaf; a result without a gradient is a failed check."""
    assert result.requires_grad, "no gradient reaches the input"
    return torch.autograd.grad(result.sum(), leaf, retain_graph=True)[0]


def gradient(fn: Callable, case: Case, names: tuple[str, ...], *, into: str, **hyper) -> Tensor:
    """d (sum of weighted results) / d case[into], with a different weight for each result."""
    leaf = case[into].clone().requires_grad_()
    result = call(fn, case | {into: leaf}, names, **hyper)
    weights = torch.arange(1.0, result.numel() + 1, dtype=result.dtype).reshape(result.shape)
    return derivative(result * weights, leaf)


def assert_gradient(fn: Callable, case: Case, names: tuple[str, ...], *, into: str, **hyper) -> None:
    """The derivative is that of the function, 0 into what does not count, and no poison there reaches it."""
    found, outside = gradient(fn, case, names, into=into, **hyper), ~counted(case, into)
    leaf = case[into].clone().requires_grad_()
    right = torch.autograd.gradcheck(
        lambda x: call(fn, case | {into: x}, names, **hyper), (leaf,), raise_exception=False, check_batched_grad=False
    )
    assert right, f"{fn.__name__} has a wrong gradient into {into}"
    assert_close(found[outside], torch.zeros_like(found[outside]))
    assert_close(gradient(fn, poisoned(case, math.nan), names, into=into, **hyper), found)


def assert_float32_agrees(fn: Callable, names: tuple[str, ...], **hyper) -> None:
    """Single precision stays single, and gives what double precision gives."""
    for case in CASES:
        single = {name: x.float() if x.is_floating_point() else x for name, x in case.items()}
        assert_close(call(fn, single, names, **hyper), call(fn, case, names, **hyper).float())


@contextmanager
def annotations_off() -> Iterator[None]:
    """At run time nobody enforces the annotations, so the library's own errors must come without them."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def assert_refuses(fn: Callable, *args, says: str = "", **hyper) -> None:
    """`fn` raises a ValueError whose message contains `says`."""
    with annotations_off():
        try:
            fn(*args, **hyper)
        except ValueError as error:
            assert says in str(error), f"the message does not say {says!r}: {error}"
        except Exception as error:
            raise AssertionError(f"{fn.__name__} failed with {error!r}, not with a ValueError of its own") from error
        else:
            raise AssertionError(f"{fn.__name__} accepted what it should refuse: {says}")


def assert_refuses_mixed_widths(fn: Callable, names: tuple[str, ...], **hyper) -> None:
    """At T = 2 an action-indexed tensor has one column and would broadcast. Every single mix-up must be refused."""
    case = ragged_case([(1, 1)] * 3)
    per_state, per_action = case["values"], case["rewards"]
    for name in names:
        wrong = per_action if name in STATE_INDEXED else per_state
        wrong = wrong > 0 if case[name].dtype == torch.bool else wrong
        mixed = case | {name: wrong}
        assert_refuses(fn, *(mixed[name] for name in names), says=str(tuple(wrong.shape)), **hyper)


# Slow specifications


def chosen(action_mask: Tensor, row: int) -> list[int]:
    return [t for t, counts in enumerate(action_mask[row].tolist()) if counts]


def per_action(action_mask: Tensor, term: Callable[[int, int], float], dtype=torch.float64) -> Tensor:
    """`term(row, t)` wherever the policy chose, 0 elsewhere."""
    out = torch.zeros(action_mask.shape, dtype=dtype)
    for row in range(len(action_mask)):
        for t in chosen(action_mask, row):
            out[row, t] = float(term(row, t))
    return out


def td_errors_spec(values, rewards, action_mask, *, gamma):
    """The value of the next state is read only if something is chosen in it."""
    return gae_spec(values, rewards, action_mask, gamma=gamma, lam=0.0)


def gae_spec(values, rewards, action_mask, *, gamma, lam):
    """The double sum of the paper's eq. 16: A_t = sum over k >= t of (gamma lam)^(k-t) delta_k. No recursion."""

    def advantage(row: int, t: int) -> float:
        response = chosen(action_mask, row)
        worth = {state: float(values[row, state]) for state in response}
        delta = {k: float(rewards[row, k]) + gamma * worth.get(k + 1, 0.0) - worth[k] for k in response}
        return sum((gamma * lam) ** (k - t) * delta[k] for k in response if k >= t)

    return per_action(action_mask, advantage, values.dtype)


def reward_to_go_spec(rewards, action_mask, *, gamma):
    """Sum over k >= t of gamma^(k-t) r_k."""
    return per_action(
        action_mask,
        lambda row, t: sum(gamma ** (k - t) * float(rewards[row, k]) for k in chosen(action_mask, row) if k >= t),
    )


def penalise_kl_spec(placed_scores, kl_per_token, action_mask, *, kl_coef):
    return per_action(action_mask, lambda row, t: float(placed_scores[row, t]) - kl_coef * float(kl_per_token[row, t]))


def approx_kl_spec(log_probs, old_log_probs, action_mask):
    """r - 1 - log r of each action's ratio r."""

    def k3(row: int, t: int) -> float:
        ratio = math.exp(log_probs[row, t] - old_log_probs[row, t])
        return ratio - 1 - math.log(ratio)

    return per_action(action_mask, k3)


def policy_loss_spec(log_probs, old_log_probs, advantages, action_mask, *, clip):
    """By cases: a good action is paid up to 1 + clip, a bad one is charged down to 1 - clip."""

    def loss(row: int, t: int) -> float:
        ratio, advantage = math.exp(log_probs[row, t] - old_log_probs[row, t]), float(advantages[row, t])
        return -advantage * (min(ratio, 1 + clip) if advantage > 0 else max(ratio, 1 - clip))

    return per_action(action_mask, loss)


def clip_fraction_spec(log_probs, old_log_probs, advantages, action_mask, *, clip):
    """By cases: only a good action above the band, or a bad one below it, is clipped."""

    def is_clipped(row: int, t: int) -> bool:
        ratio, advantage = math.exp(log_probs[row, t] - old_log_probs[row, t]), float(advantages[row, t])
        return (advantage > 0 and ratio > 1 + clip) or (advantage < 0 and ratio < 1 - clip)

    return per_action(action_mask, is_clipped)


def step_zero_spec(log_probs, old_log_probs, ref_log_probs, sampler_log_probs, action_mask):
    """Three lists of Python floats, then the mean of one and the largest of the others."""
    kl, ratio_error, gap = [], [], []
    for row, t in action_mask.nonzero().tolist():
        old = float(old_log_probs[row, t])
        kl.append(abs(old - float(ref_log_probs[row, t])))
        ratio_error.append(abs(math.exp(float(log_probs[row, t]) - old) - 1))
        gap.append(abs(float(sampler_log_probs[row, t]) - old))
    return dict(kl_before_first_update=sum(kl) / len(kl), ratio_error_before_first_update=max(ratio_error),
                sampler_forward_gap=max(gap))  # fmt: skip


def value_loss_spec(values, old_values, returns, action_mask, *, clip):
    """By cases: within `clip` of the old value the plain error counts, beyond it the larger of two errors."""

    def loss(row: int, t: int) -> float:
        now, before, target = float(values[row, t]), float(old_values[row, t]), float(returns[row, t])
        bound = min(max(now, before - clip), before + clip)
        return max(abs(now - target), abs(bound - target)) ** 2 / 2

    return per_action(action_mask, loss)


def reduced_spec(statistic: Callable[[list[float]], float], x: Tensor, mask: Tensor, dim: int | None) -> Tensor:
    """`statistic` of the entries that count: of all of them, of each row (dim=1) or of each column (dim=0)."""
    entries = {(b, t): float(x[b, t]) for b, t in mask.nonzero().tolist()}
    if dim is None:
        return torch.tensor(statistic(list(entries.values())), dtype=x.dtype)
    lines = [[v for at, v in entries.items() if at[1 - dim] == line] for line in range(x.shape[1 - dim])]
    return torch.tensor([statistic(line) for line in lines], dtype=x.dtype)
