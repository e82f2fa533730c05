"""Estimators of KL(p || q) from samples of p, and the exact value from whole distributions.

The estimators are unbiased (k1, k3) only when the samples come from the very p whose log-probabilities are given:
not from p at another temperature, and not from p cut to its top-p or top-k.
Source: Schulman 2020, "Approximating KL divergence". All results are in nats, one for each action.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .shapes import PerAction


def kl_k1(log_p: PerAction, log_q: PerAction) -> PerAction:
    """log p - log q: unbiased, can be negative. The estimator that N+ and TRL pay as a penalty."""
    return log_p - log_q


def kl_k2(log_p: PerAction, log_q: PerAction) -> PerAction:
    """(log p - log q)^2 / 2: never negative, low spread, biased."""
    return (log_p - log_q) ** 2 / 2


def kl_k3(log_p: PerAction, log_q: PerAction) -> PerAction:
    """q/p - 1 - log(q/p): never negative and unbiased; its spread grows without bound where q is large and p small."""
    log_ratio = log_q - log_p
    return torch.expm1(log_ratio) - log_ratio


def kl_exact(p_logits: Float[Tensor, "... V"], q_logits: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """Sum over the vocabulary of p (log p - log q); no sampling. Infinite where p has support that q lacks."""
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    p = log_p.exp()
    return (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(-1)
