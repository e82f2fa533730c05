"""Pieces of a Llama layer as single steps with their own gradients: fewer passes over memory, less kept for backward.

The values are those of the pieces one after the other, up to rounding. All states stand in a list [N, D].
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding, silu

aten = torch.ops.aten


def normed_product(states: Tensor, gain: Tensor, eps: float, *weights: Tensor) -> Tensor:
    """RMSNorm, then the products with all these weights side by side: [N, sum of the weights' rows].

    The gain is multiplied into the weights, which are fewer numbers than the states.
    """
    return _NormedProduct.apply(states, gain, eps, *weights)


class _NormedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, gain, eps, *weights):
        normed, scale = _normed(states, eps)
        ctx.save_for_backward(normed, scale, gain, *weights)
        return normed @ (torch.cat(weights) * gain).T

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        normed, scale, gain, *weights = ctx.saved_tensors
        together = torch.cat(weights)
        of_states = _before_norm(grad @ (together * gain), normed, scale)
        of_together = grad.T @ normed
        of_gain = (of_together * together).sum(0)
        return of_states, of_gain, None, *of_together.mul_(gain).split([len(weight) for weight in weights])


def feed_forward(states: Tensor, gain: Tensor, eps: float, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """states + (silu(n gate^T) * (n up^T)) down^T, where n is the RMSNorm of the states.

    The two products stand in blocks of their own: side by side in rows the passes over them take twice the time.
    """
    return _FeedForward.apply(states, gain, eps, gate, up, down)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, gain, eps, gate, up, down):
        normed, scale = _normed(states, eps)
        shut, through = normed @ (gate * gain).T, normed @ (up * gain).T
        ctx.save_for_backward(normed, scale, shut, through, gain, gate, up, down)
        return torch.addmm(states, silu(shut).mul_(through), down.T)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        normed, scale, shut, through, gain, gate, up, down = ctx.saved_tensors
        of_gated, opened = grad @ down, silu(shut)
        of_down = grad.T @ (opened * through)
        of_through = opened.mul_(of_gated)
        of_shut = aten.silu_backward(of_gated.mul_(through), shut)
        of_normed = torch.mm(of_shut, gate * gain).addmm_(of_through, up * gain)
        of_gate, of_up = of_shut.T @ normed, of_through.T @ normed
        of_gain = (of_gate * gate).sum(0) + (of_up * up).sum(0)
        of_states = _before_norm(of_normed, normed, scale).add_(grad)
        return of_states, of_gain, None, of_gate.mul_(gain), of_up.mul_(gain), of_down


def _normed(states: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm of states [N, D] without its gain, and by how much each was scaled, [N, 1]."""
    mean_square = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square_().div_(states.shape[-1])
    scale = mean_square.add_(eps).rsqrt_()
    return states * scale, scale


def _before_norm(of_normed: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    """The gradient of the states from that of their norm, in its place."""
    along = torch.linalg.vecdot(of_normed, normed).unsqueeze_(-1).div_(-normed.shape[-1])
    return of_normed.addcmul_(normed, along).mul_(scale)


def spread(made: Tensor, place: Tensor, angles: Tensor, turned: int) -> Tensor:
    """The states `made` [N, W] at their places [*P, W], with the first `turned` columns rotated by the angles.

    angles   complex [*P or fewer, 1, d/2], of pairs of neighbouring columns, for heads of width d
    """
    return _Spread.apply(made, place, angles, turned)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, made, place, angles, turned):
        ctx.save_for_backward(place, angles)
        ctx.turned, ctx.count = turned, len(made)
        return _turn(embedding(place, made), angles, turned)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        place, angles = ctx.saved_tensors
        back = _turn(grad.clone(), angles.conj_physical(), ctx.turned)
        return aten.embedding_dense_backward(back, place, ctx.count, -1, False), None, None, None


def chosen_log_probs(states: Tensor, actions: Tensor, weight: Tensor, *, temperature: float, rows: int) -> Tensor:
    """[N] log-probability of each action [N] under softmax(states weight^T / temperature), `rows` states at a time.

    No logits are kept, and those of equal states are made once. The gradient of a state is the weight of its action
    less the mean weight under the softmax, which is made beside the logits. Only if the weight [V, D] learns as well
    does backward make the logits again, in one buffer that becomes their gradient in place.
    """
    distinct, which = states.detach().unique(dim=0, return_inverse=True)
    return _ChosenLogProbs.apply(states, weight, distinct, which, actions, temperature, rows)


class _ChosenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, distinct, which, actions, temperature, rows):
        ctx.rest = temperature, rows
        found, buffer = torch.empty_like(states[:, 0]), distinct.new_empty(min(rows, len(distinct)), len(weight))
        mean_weight = torch.empty_like(distinct) if ctx.needs_input_grad[:2] == (True, False) else None
        for block, some in _blocks(distinct, rows):
            log_probs = torch.mm(some, weight.T, out=buffer[: len(some)]).div_(temperature)
            torch.log_softmax(log_probs, -1, out=log_probs)
            here = _of_block(which, block)
            found[here] = log_probs[which[here] - block.start, actions[here]]
            if mean_weight is not None:
                torch.mm(log_probs.exp_(), weight, out=mean_weight[block])
        ctx.save_for_backward(weight, distinct, which, actions, mean_weight)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, distinct, which, actions, mean_weight = ctx.saved_tensors
        temperature, rows = ctx.rest
        grad, of_weight = grad / temperature, None
        if mean_weight is None:
            mean_weight, of_weight = torch.empty_like(distinct), torch.zeros_like(weight)
            buffer = distinct.new_empty(min(rows, len(distinct)), len(weight))
            sums = torch.zeros_like(distinct[:, 0]).index_add_(0, which, grad)
            for block, some in _blocks(distinct, rows):
                probs = torch.mm(some, weight.T, out=buffer[: len(some)]).div_(temperature)
                torch.softmax(probs, -1, out=probs)
                torch.mm(probs, weight, out=mean_weight[block])
                here = _of_block(which, block)
                of_logits = probs.mul_(-sums[block, None])
                of_logits.index_put_((which[here] - block.start, actions[here]), grad[here], accumulate=True)
                of_weight.addmm_(of_logits.T, some)
        of_states = embedding(actions, weight).sub_(embedding(which, mean_weight)).mul_(grad[:, None])
        return of_states, of_weight, None, None, None, None, None


def _blocks(states: Tensor, rows: int) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(states), rows):
        block = slice(start, start + rows)
        yield block, states[block]


def _of_block(which: Tensor, block: slice) -> Tensor:
    """Where `which` names a state of this block."""
    return ((which >= block.start) & (which < block.stop)).nonzero().squeeze(1)


def _turn(numbers: Tensor, angles: Tensor, turned: int) -> Tensor:
    """In place; see `spread`."""
    pairs = numbers[..., :turned].unflatten(-1, (-1, angles.shape[-1], 2))
    torch.view_as_complex(pairs).mul_(angles)
    return numbers
