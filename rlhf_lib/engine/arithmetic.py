"""How many floating-point operations a PPO update takes, from shapes alone, and how many a device makes in a second.

    work = operations(plan, epochs=4)                 # by phase; `plan` as for the memory budget
    sum(work.values()) / matmul_rate("cuda")          # seconds that no code can beat on this device

Counted are matrix products: a multiplication and an addition each. Norms, rotations, softmax, sampling and the
optimiser come on top, in operations little, in time more than little. Every row is taken to be as long as it may be.
"""

from __future__ import annotations

import time

import torch

from .memory_budget import ModelShape, Plan

BACKWARD = 2  # passes' worth: the gradient of the inputs, and that of the weights


def operations(plan: Plan, *, epochs: int) -> dict[str, int]:
    """Operations of one update in its three phases.

    sampling  the policy reads each prompt once and then one token after the other, out of its cache
    scoring   policy, reference, critic and reward model read every text once
    training  policy and critic read every text once an epoch, and back
    """
    policy, critic, reward_model = map(plan.shape_of, ("policy", "critic", "reward_model"))
    texts = dict(rows=plan.batch, states=plan.prompt + plan.response)
    actions = plan.batch * plan.response
    acting, judging = forward(policy, heads=actions, **texts), forward(critic, **texts)
    return {
        "sampling": sampling(policy, rows=plan.batch, prompt=plan.prompt, response=plan.response),
        "scoring": 2 * acting + judging + forward(reward_model, **texts),
        "training": epochs * (1 + BACKWARD) * (acting + judging),
    }


def forward(shape: ModelShape, *, rows: int, states: int, heads: int = 0) -> int:
    """A pass over whole rows; `heads`: states in which the head of a language model is asked.

    Attention counts every pair of states. A causal kernel may leave out half of them.
    """
    attention = 4 * states**2 * shape.queries * shape.layers
    return rows * (2 * states * products(shape) + attention) + 2 * heads * shape.embedding


def sampling(shape: ModelShape, *, rows: int, prompt: int, response: int) -> int:
    """Prompts at once, then a token at a time: the last token is written but not read."""
    prompts = forward(shape, rows=rows, states=prompt, heads=rows)
    seen = sum(prompt + step for step in range(1, response))  # states that each further token looks back on
    attention = 4 * seen * shape.queries * shape.layers
    return prompts + rows * ((response - 1) * 2 * (products(shape) + shape.embedding) + attention)


def products(shape: ModelShape) -> int:
    """Weights of all layers that take part in a matrix product: all but norms and biases."""
    feed_forward = (3 if shape.family == "llama" else 2) * shape.feed_forward
    return shape.layers * shape.width * (2 * shape.queries + 2 * shape.keys + feed_forward)


def matmul_rate(device: str = "cpu", *, dtype: torch.dtype = torch.float32, size: int = 1024, tries: int = 5) -> float:
    """Operations a second at best, multiplying two square matrices; on a GPU take a `size` of 8192."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = min(_seconds(a, b) for _ in range(tries + 1))
    return 2 * size**3 / best


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    wait = torch.cuda.synchronize if a.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    a @ b
    wait()
    return time.perf_counter() - start
