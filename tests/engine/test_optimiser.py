"""One optimiser step, and the learning rates over many."""

import math

import pytest
import torch
from torch import nn

from rlhf_lib.engine import optimiser
from rlhf_lib.engine.optimiser import NonFiniteError
from tests.helpers import assert_close, floats


def test_linear_decay_by_hand():
    """Rejects a decay that starts one step late or reaches 0 one step early: four updates run at 1, 3/4, 1/2, 1/4."""
    assert [optimiser.linear_decay(step, 4) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def test_cosine_decay_by_hand():
    """Rejects a whole cosine, a quarter, and a linear decay: (1 + cos x) / 2 at x = 0, 45, 90, 180 degrees."""
    found = [optimiser.cosine_decay(step, 4) for step in (0, 1, 2, 4)]
    assert_close(floats(*found), floats(1, (1 + math.sqrt(0.5)) / 2, 0.5, 0))


def weights_with_gradients(*gradients):
    weights = [nn.Parameter(torch.zeros(len(gradient), dtype=torch.float64)) for gradient in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = floats(*gradient)
    return weights


def test_step_clips_each_group_alone():
    """Rejects a joint norm, norms after clipping, and clipping that makes short gradients long: 3-4-5 triangles."""
    long, short = weights_with_gradients((3, 4), (0.6, 0.8))
    optimizer = torch.optim.SGD([{"params": [long]}, {"params": [short]}], lr=1.0)
    norms = optimiser.step(optimizer, max_grad_norm=2.0)
    assert_close(floats(*norms), floats(5, 1))
    torch.testing.assert_close(long.detach(), floats(-1.2, -1.6), rtol=1e-6, atol=0)  # torch divides by norm + 1e-6
    assert_close(short.detach(), floats(-0.6, -0.8))


def test_step_without_a_limit():
    """Rejects clipping that is always on (N+ does not clip), and gradients that stay for the next step."""
    (weight,) = weights_with_gradients((300, 400))
    assert optimiser.step(torch.optim.SGD([weight], lr=1.0), max_grad_norm=None) == [500]
    assert_close(weight.detach(), floats(-300, -400))
    assert weight.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("max_grad_norm", "fused"), [(None, False), (1.0, False), (None, True)])
def test_a_non_finite_gradient_changes_no_weight(bad, max_grad_norm, fused):
    """Rejects a check after the step, one of the first group only, and moments of Adam that are spoiled for good."""
    first, second = weights_with_gradients((3, 4), (1, 2))
    optimizer = optimiser.make_optimizer([[first], [second]], learning_rate=0.1, eps=1e-5, fused=fused)
    optimiser.step(optimizer, max_grad_norm=max_grad_norm)
    before = [first.clone(), second.clone(), *(x.clone() for s in optimizer.state.values() for x in s.values())]
    first.grad, second.grad = floats(1, 1), floats(1, bad)
    with pytest.raises(NonFiniteError):
        optimiser.step(optimizer, max_grad_norm=max_grad_norm)
    after = [first, second, *(x for state in optimizer.state.values() for x in state.values())]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_by_hand(fused):
    """Rejects weight decay and another eps. Adam's first step is lr * g / (|g| + eps): half of lr for g = eps."""
    (weight,) = weights_with_gradients((1e-5, 0))
    with torch.no_grad():
        weight += 1
    optimizer = optimiser.make_optimizer([[weight]], learning_rate=0.1, eps=1e-5, fused=fused)
    optimiser.step(optimizer, max_grad_norm=None)
    assert_close(weight.detach(), floats(0.95, 1))


def test_frozen_weights_are_left_out():
    """Rejects an optimiser that holds state for what never trains."""
    (weight,) = weights_with_gradients((1, 1))
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    optimizer = optimiser.make_optimizer([[frozen, weight]], learning_rate=0.1, eps=1e-5)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_learning_rates_for_all_or_each():
    """Rejects rates that reach the first group only, or in another order."""
    weights = weights_with_gradients((1,), (1,))
    optimizer = optimiser.make_optimizer([[weight] for weight in weights], learning_rate=0.1, eps=1e-5)
    for rates, expected in (((0.3,), [0.3, 0.3]), ((0.5, 0.7), [0.5, 0.7])):
        optimiser.set_learning_rates(optimizer, *rates)
        assert [group["lr"] for group in optimizer.param_groups] == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named(bad):
    """Rejects a check for NaN alone, one that keeps name or evidence to itself, and gradients that are left behind."""
    (weight,) = weights_with_gradients((1, 2))
    optimizer, terms = torch.optim.SGD([weight], lr=1.0), {"ratio": floats(1, bad)}
    with pytest.raises(NonFiniteError, match="the PPO loss is not finite") as failure:
        optimiser.backward("the PPO loss", weight.sum() * bad, optimizer, terms)
    assert failure.value.evidence["ratio"] is terms["ratio"]
    assert not torch.isfinite(failure.value.evidence["loss"])
    assert_close(failure.value.gradients[weight], floats(1, 2))  # of the micro-batches before
    assert weight.grad is None


def test_a_gradient_that_is_not_finite_is_named():
    """Rejects a check of the loss alone: sqrt(0) is 0, its slope is infinite. Fine gradients add up as ever."""
    fine, steep = weights_with_gradients((1,), (0,))
    optimizer = torch.optim.SGD([fine, steep], lr=1.0)
    optimiser.backward("x", fine.sum(), optimizer, {})
    assert_close(fine.grad, floats(2))
    with pytest.raises(NonFiniteError, match="the gradient of x is not finite") as failure:
        optimiser.backward("x", (fine + steep.sqrt()).sum(), optimizer, {"a": floats(7)})
    assert failure.value.gradients[steep].isinf().all() and fine.grad is None
    assert_close(failure.value.gradients[fine], floats(3))
    assert_close(failure.value.evidence["a"], floats(7))
