"""Scaled losses: gradients as if they were not, and a step that overflows costs nothing but itself."""

import json
import math

import pytest
import torch
from torch import nn

from rlhf_lib.engine import loss_scaling, optimiser
from rlhf_lib.engine.optimiser import NonFiniteError

CPU = torch.device("cpu")


def one_weight(*numbers: float, kind: type = torch.optim.SGD):
    weight = nn.Parameter(torch.tensor(numbers))
    optimizer = kind([weight], lr=1.0)
    loss_scaling.scale_losses(optimizer, CPU)
    return weight, optimizer


def send_back(loss, optimizer, *, max_grad_norm=None):
    optimiser.backward("x", loss, optimizer, {})
    return optimiser.step(optimizer, max_grad_norm=max_grad_norm)


def test_gradients_are_those_of_the_loss():
    """Rejects norms and clipping of scaled gradients: a 3-4-5 triangle, clipped to 2, is 1.2 and 1.6."""
    weight, optimizer = one_weight(0.0, 0.0)
    assert send_back(3 * weight[0] + 4 * weight[1], optimizer, max_grad_norm=2.0) == [5]
    torch.testing.assert_close(weight.detach(), torch.tensor([-1.2, -1.6]), rtol=1e-6, atol=0)


def test_what_float16_would_lose():
    """Rejects a loss that is sent back as it is: half of 1e-7 is nothing in float16, unless it is scaled before."""
    weight, optimizer = one_weight(1.0)
    send_back((weight.half() * 1e-7).float().sum() / 2, optimizer)
    assert 1 - float(weight.detach()) == pytest.approx(5e-8, rel=0.3)


def test_an_overflowing_step_is_left_out():
    """Rejects a step with infinite gradients, Adam's moments spoiled by them, an error, and a scale that stays."""
    weight, optimizer = one_weight(1.0, 1.0, kind=torch.optim.AdamW)
    send_back(weight.sum(), optimizer)
    before = [weight.clone(), *(x.clone() for x in optimizer.state[weight].values())]
    norms = send_back(weight.sum() * 1e35, optimizer)
    assert not math.isfinite(norms[0])
    assert all(torch.equal(*pair) for pair in zip(before, [weight, *optimizer.state[weight].values()], strict=True))
    assert weight.grad is None
    assert loss_scaling.report(optimizer) == {"loss_scale": 2.0**15, "steps_left_out": 1}
    assert loss_scaling.report(optimizer) == {"loss_scale": 2.0**15, "steps_left_out": 0}


def test_gradients_that_overflow_at_any_scale_end_the_run():
    """Rejects a run that leaves out every step and calls it training: the slope of sqrt at 0 is infinite."""
    weight, optimizer = one_weight(0.0)
    for _ in range(16):  # from 2**16 to 1
        send_back(weight.sqrt().sum(), optimizer)
    with pytest.raises(NonFiniteError, match="float16 however small the loss is scaled"):
        send_back(weight.sqrt().sum(), optimizer)
    assert float(weight.detach()) == 0


def test_a_loss_that_is_not_finite_is_no_overflow():
    """Rejects a NaN that halves the scale 17 times before anybody hears of it."""
    weight, optimizer = one_weight(1.0)
    with pytest.raises(NonFiniteError, match="x is not finite"):
        send_back(weight.sum() * math.nan, optimizer)


def test_a_checkpoint_holds_the_scale():
    """Rejects a scale that starts anew after a resume, or that forgets how long nothing has overflowed."""
    weight, optimizer = one_weight(1.0)
    send_back(weight.sum() * 1e35, optimizer)
    send_back(weight.sum(), optimizer)
    state = json.loads(json.dumps(loss_scaling.state_of(optimizer)))
    _, resumed = one_weight(1.0)
    loss_scaling.restore(resumed, state)
    assert loss_scaling.state_of(resumed) == loss_scaling.state_of(optimizer)
    assert (state["scale"], state["_growth_tracker"]) == (2.0**15, 1)


def test_an_optimiser_without():
    """Rejects numbers in the log, and in checkpoints, of a run that scales nothing."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    loss_scaling.restore(optimizer, {})
    assert loss_scaling.report(optimizer) == loss_scaling.state_of(optimizer) == {}
