"""KL(p || q): three estimators and the exact value."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lib.maths.kl import kl_exact, kl_k1, kl_k2, kl_k3
from tests.helpers import assert_close, assert_gradient, floats
from tests.maths.specifications import assert_meets_specification

log_probs = st.floats(-20, 0, width=32)


@pytest.mark.parametrize("fn", [kl_k1, kl_k2, kl_k3, kl_exact])
def test_specification(fn):
    assert_meets_specification(fn)


def test_k2_is_biased():
    """Rejects the claim that k2 is as good as the others. By hand for p = (3/4, 1/4), q = (1/4, 3/4): log 3 each way.

    KL = 3/4 log 3 - 1/4 log 3 = log(3) / 2, but E[k2] = log(3)^2 / 2.
    """
    p, q = floats([0.75, 0.25]), floats([0.25, 0.75])
    log_3 = floats(3).log()
    assert_close((p * kl_k1(p.log(), q.log())).sum(-1), log_3 / 2)
    assert_close((p * kl_k3(p.log(), q.log())).sum(-1), log_3 / 2)
    assert_close((p * kl_k2(p.log(), q.log())).sum(-1), log_3**2 / 2)


@given(log_probs, log_probs)
def test_k2_and_k3_are_never_negative(log_p, log_q):
    """Rejects the sign, the direction, and in float32 the digits that exp(x) - 1 - x loses for small x."""
    for fn in (kl_k2, kl_k3):
        assert fn(torch.tensor([[log_p]]), torch.tensor([[log_q]])) >= 0


def test_k3_keeps_small_differences_in_float32():
    """Rejects exp(x) - 1 - x. For x = -1e-3: x^2/2 + x^3/6 = 4.99833e-7, and exp(x) - 1 is only good to 6e-8."""
    found = kl_k3(torch.tensor([[0.0]]), torch.tensor([[-1e-3]]))
    assert_close((found * 1e6).round(decimals=3), torch.tensor([[0.5]]))


def test_exact_kl_has_the_right_gradient_on_both_sides():
    """Rejects a detached side."""
    generator = torch.Generator().manual_seed(0)
    case = {name: torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) for name in ("p_logits", "q_logits")}
    for into in case:
        assert_gradient(kl_exact, case, tuple(case), into=into)
