"""Pieces of a Llama layer as single steps with their own gradients: fewer passes over memory, less kept for backward.

The values are those of the pieces one after the other, up to rounding. All states stand in a list [N, D].
"""

from __future__ import annotations

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
        mean_square = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square_().div_(states.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()
        normed = states * scale
        ctx.save_for_backward(normed, scale, gain, *weights)
        return normed @ (torch.cat(weights) * gain).T

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        normed, scale, gain, *weights = ctx.saved_tensors
        together = torch.cat(weights)
        of_normed = grad @ (together * gain)
        along = torch.linalg.vecdot(of_normed, normed).unsqueeze_(-1).div_(-normed.shape[-1])
        of_states = of_normed.addcmul_(normed, along).mul_(scale)
        of_together = grad.T @ normed
        of_gain = (of_together * together).sum(0)
        return of_states, of_gain, None, *of_together.mul_(gain).split([len(weight) for weight in weights])


def gated_product(states: Tensor, gate_and_up: Tensor, weight: Tensor) -> Tensor:
    """states + (silu(gate) * up) weight^T; keeps nothing but `gate_and_up`."""
    return _GatedProduct.apply(states, gate_and_up, weight)


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, gate_and_up, weight):
        gate, up = gate_and_up.chunk(2, -1)
        ctx.save_for_backward(gate_and_up, weight)
        return torch.addmm(states, silu(gate).mul_(up), weight.T)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate_and_up, weight = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, -1)
        of_gated, open_gate = grad @ weight, silu(gate)
        of_weight = grad.T @ (open_gate * up)
        of_both = torch.empty_like(gate_and_up)
        of_gate, of_up = of_both.chunk(2, -1)
        torch.mul(of_gated, open_gate, out=of_up)
        aten.silu_backward.grad_input(of_gated.mul_(up), gate, grad_input=of_gate)
        return grad, of_both, of_weight


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


def causal_attention(made: Tensor, place: Tensor, angles: Tensor, scaling: float, groups: int) -> Tensor:
    """What each place [B, T] brings together from itself and those before it: [B, T, heads * d].

    made     [N, (heads + 2 key heads) * d] queries, keys and values side by side; see `spread` for place and angles
    groups   heads for each key head
    It keeps the weights [B, heads, T, T]. For rows of up to about a hundred tokens, whose weights are no more numbers
    than their queries, keys and values, forward and backward pass take two thirds of the fused kernel's time on a CPU.
    """
    return _CausalAttention.apply(made, place, angles, scaling, groups)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, made, place, angles, scaling, groups):
        width = 2 * angles.shape[-1]
        key_heads = made.shape[1] // width // (groups + 2)
        turned = (groups + 1) * key_heads * width
        heads = _turn(embedding(place, made), angles, turned).unflatten(-1, (-1, width))
        counts = [groups * key_heads, key_heads, key_heads]
        queries, keys, values = map(_in_groups, heads.split(counts, 2), [key_heads] * 3)
        queries = queries.mul_(scaling)
        ahead = queries.new_full(place.shape[1:] * 2, -torch.inf).triu_(1).repeat(groups, 1)
        weights = torch.baddbmm(ahead, queries, keys.mT)
        torch.softmax(weights, -1, out=weights)
        ctx.save_for_backward(queries, keys, values, weights, place, angles)
        ctx.rest = len(made), scaling, turned
        return _in_rows(weights @ values, place).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        queries, keys, values, weights, place, angles = ctx.saved_tensors
        count, scaling, turned = ctx.rest
        grad = _in_groups(grad.unflatten(-1, (-1, values.shape[-1])), len(values) // len(place))
        of_logits = aten._softmax_backward_data(grad @ values.mT, weights, -1, weights.dtype)
        of_heads = (of_logits @ keys).mul_(scaling), of_logits.mT @ queries, weights.mT @ grad
        together = torch.cat([_in_rows(each, place) for each in of_heads], 2).flatten(2)
        back = _turn(together, angles.conj_physical(), turned)
        return aten.embedding_dense_backward(back, place, count, -1, False), None, None, None, None


def _in_groups(heads: Tensor, key_heads: int) -> Tensor:
    """[B, T, heads, d] to a copy of [B * key heads, heads for each * T, d]."""
    apart = heads.unflatten(2, (key_heads, -1)).permute(0, 2, 3, 1, 4)
    return apart.contiguous().view(-1, apart.shape[2] * apart.shape[3], apart.shape[4])


def _in_rows(grouped: Tensor, place: Tensor) -> Tensor:
    """[B * key heads, heads for each * T, d] back to [B, T, heads, d]."""
    rows, states = place.shape
    return grouped.view(rows, -1, states, grouped.shape[-1]).transpose(1, 2)


def chosen_log_probs(states: Tensor, actions: Tensor, weight: Tensor, *, temperature: float, rows: int) -> Tensor:
    """[N] log-probability of each action [N] under softmax(states weight^T / temperature), `rows` states at a time.

    It keeps the states alone. Backward makes the logits of each block again, in one buffer that becomes their gradient
    in place, and adds all blocks into one gradient of the weight [V, D].
    """
    return _ChosenLogProbs.apply(states, weight, actions, temperature, rows)


class _ChosenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, actions, temperature, rows):
        ctx.save_for_backward(states, weight, actions)
        ctx.rest = temperature, rows
        buffer = states.new_empty(min(rows, len(states)), len(weight))
        found = []
        for some, chosen in zip(states.split(rows), actions.split(rows), strict=True):
            logits = torch.mm(some, weight.T, out=buffer[: len(some)]).div_(temperature)
            torch.log_softmax(logits, -1, out=logits)
            found.append(logits.gather(-1, chosen[:, None]).squeeze(-1))
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        states, weight, actions = ctx.saved_tensors
        temperature, rows = ctx.rest
        buffer = states.new_empty(min(rows, len(states)), len(weight))
        of_states, of_weight = torch.empty_like(states), torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        grad = (grad / temperature)[:, None]
        blocks = (whole.split(rows) for whole in (states, actions[:, None], grad, of_states))
        for some, chosen, upstream, of_some in zip(*blocks, strict=True):
            logits = torch.mm(some, weight.T, out=buffer[: len(some)]).div_(temperature)
            torch.softmax(logits, -1, out=logits)
            of_logits = logits.mul_(-upstream).scatter_add_(-1, chosen, upstream)
            torch.mm(of_logits, weight, out=of_some)
            if of_weight is not None:
                of_weight.addmm_(of_logits.T, some)
        return of_states, of_weight, None, None, None


def _turn(numbers: Tensor, angles: Tensor, turned: int) -> Tensor:
    """In place; see `spread`."""
    pairs = numbers[..., :turned].unflatten(-1, (-1, angles.shape[-1], 2))
    torch.view_as_complex(pairs).mul_(angles)
    return numbers
