"""Tests of the tests: the library passes every check, and every deliberate mistake is rejected by the same check."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import huber_loss, logsigmoid, pad

from rlhf_lib.maths import advantages, alignment, diagnostics, kl, losses, masking, records, rewards
from tests.helpers import annotations_off
from tests.maths import specifications

TRAINED = ("keep", "masked_sum", "masked_mean", "masked_var", "masked_softmax", "whiten", "sft_loss", "preference_loss",
           "log_ratio", "policy_loss", "value_loss", "entropy", "kl_exact", "td_errors", "gae",
           "action_log_probs")  # fmt: skip
MODULES = (masking, alignment, rewards, advantages, kl, losses, diagnostics, records)
LIBRARY: dict[str, Callable] = {
    name: fn
    for module in MODULES
    for name, fn in vars(module).items()
    if inspect.isfunction(fn) and fn.__module__ == module.__name__ and not name.startswith("_")
} | {"select": records.Rows.select}
CHECKS = {name.removeprefix("check_"): fn for name, fn in vars(specifications).items() if name.startswith("check_")}
Mutants = dict[str, Callable]


# Parts of mistakes


def on(mask, x):
    return torch.where(mask, x, 0.0)


def follows(mask):
    return mask & pad(mask[:, 1:], (0, 1))


def mean_of(x, mask):
    return on(mask, x).sum() / mask.sum()


def var_of(x, mask):
    return mean_of((on(mask, x) - mean_of(x, mask)) ** 2, mask)


def along(reduce: Callable) -> Callable:
    """A reduction with the library's signature from `reduce(x, mask, dim)` with a tuple for `dim`."""
    return lambda x, mask, dim=None: reduce(x, mask, (0, 1) if dim is None else dim)


def td_with(next_values: Callable = lambda v, m: on(follows(m), v[:, 1:]), reward: Callable = lambda r: r) -> Callable:
    return lambda v, r, m, *, gamma: on(m, reward(r) + gamma * next_values(v, m) - v[:, :-1])


def gae_with(delta=None, decay=lambda gamma, lam: gamma * lam, last=lambda a, m: on(m, a), backwards=True) -> Callable:
    def fn(values, rewards, action_mask, *, gamma, lam):
        deltas = (delta or td_with())(values, rewards, action_mask, gamma=gamma)
        found, carried, times = torch.zeros_like(deltas), 0.0, range(deltas.shape[1])
        for t in reversed(times) if backwards else times:
            carried = torch.where(action_mask[:, t], deltas[:, t] + decay(gamma, lam) * carried, 0.0)
            found = found + pad(carried[:, None], (t, deltas.shape[1] - 1 - t))
        return last(found, action_mask)

    return fn


def whiten_with(mean=mean_of, var=var_of, eps_inside=1e-8, eps_outside=0.0, add=lambda x, m: 0.0) -> Callable:
    def fn(x, mask):
        spread = (var(x, mask) + eps_inside).sqrt() + eps_outside
        return on(mask, (on(mask, x) - mean(x, mask)) / spread + add(x, mask))

    return fn


def policy_with(worse=torch.maximum, clamp=None, ratio=lambda x: x.exp(), sign=-1, off=0.0) -> Callable:
    def fn(log_probs, old_log_probs, advantages, action_mask, *, clip):
        r = ratio(on(action_mask, log_probs - old_log_probs))
        clipped = (clamp or (lambda r, clip: r.clamp(1 - clip, 1 + clip)))(r, clip)
        loss = worse(sign * advantages * r, sign * advantages * clipped)
        return torch.where(action_mask, loss, off)

    return fn


def value_with(worse=torch.maximum, factor=0.5, centre=lambda now, old, target: old, at=slice(None, -1)) -> Callable:
    def fn(values, old_values, returns, action_mask, *, clip):
        now, old, target = (on(action_mask, x) for x in (values[:, at], old_values[:, at], returns))
        middle = centre(now, old, target)
        clipped = middle + (now - middle).clamp(-clip, clip)
        return on(action_mask, factor * worse((now - target) ** 2, (clipped - target) ** 2))

    return fn


def clip_fraction_with(is_clipped: Callable) -> Callable:
    def fn(log_probs, old_log_probs, advantages, action_mask, *, clip):
        ratio = on(action_mask, log_probs - old_log_probs).exp()
        return on(action_mask, is_clipped(ratio, on(action_mask, advantages), clip).double())

    return fn


def of_ratio(estimate: Callable) -> Callable:
    return lambda new, old, mask: on(mask, estimate(on(mask, new - old)))


def gaps_with(number: str, wrong: Callable) -> Callable:
    """`step_zero_gaps` with one of its numbers made otherwise, from `wrong(new, old, ref, sampler, mask)`."""
    return lambda *args: diagnostics.step_zero_gaps(*args) | {number: wrong(*args)}


KL, RATIO, GAP = "kl_before_first_update", "ratio_error_before_first_update", "sampler_forward_gap"


def scored(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def cut(record, width: Callable):
    parts = {name: x if x.dim() == 1 else x[:, : width(name, x)] for name, x in vars(record).items()}
    return type(record)(**parts)


def per_field(function: Callable) -> Callable:
    return lambda record, index: type(record)(**{name: function(name, x, index) for name, x in vars(record).items()})


# The mistakes. Those of MUTANTS refuse bad arguments as the library does; those of UNGUARDED do not

MUTANTS: dict[str, Mutants] = {
    "mask_from_lengths": {
        "one place too many": lambda n, width: torch.arange(width) <= n[:, None],
        "padding on the left": lambda n, width: torch.arange(width) >= width - n[:, None],
    },
    "keep": {
        "multiplies": lambda x, mask, otherwise=0.0: x * mask + (~mask) * otherwise,
        "hides every NaN": lambda x, mask, otherwise=0.0: torch.where(mask, x.nan_to_num(), otherwise),
        "ignores `otherwise`": lambda x, mask, otherwise=0.0: torch.where(mask, x, 0.0),
        "mask the wrong way round": lambda x, mask, otherwise=0.0: torch.where(mask, otherwise, x),
    },
    "masked_sum": {
        "multiplies": along(lambda x, m, dim: (x * m).sum(dim)),
        "hides every NaN": along(lambda x, m, dim: (x.nan_to_num() * m).sum(dim)),
        "ignores the mask": along(lambda x, m, dim: x.sum(dim)),
        "ignores dim": lambda x, m, dim=None: on(m, x).sum(),
    },
    "masked_mean": {
        "divides by the size": along(lambda x, m, dim: on(m, x).mean(dim)),
        "multiplies": along(lambda x, m, dim: (x * m).sum(dim) / m.sum(dim)),
        "mean of row means": lambda x, m, dim=None: (
            (on(m, x).sum(1) / m.sum(1)).mean() if dim is None else on(m, x).sum(dim) / m.sum(dim)
        ),
        "0 where nothing counts": along(lambda x, m, dim: on(m, x).sum(dim) / m.sum(dim).clamp(min=1)),
        "eps in the denominator": along(lambda x, m, dim: on(m, x).sum(dim) / (m.sum(dim) + 1e-8)),
    },
    "masked_var": {
        "count - 1": lambda x, m, dim=None: (
            masking.masked_var(x, m, dim) * (m.sum() if dim is None else m.sum(dim))
            / ((m.sum() if dim is None else m.sum(dim)) - 1)
        ),
        "masked after the square": lambda x, m, dim=None: masking.masked_mean(
            (x - (mean_of(x, m) if dim is None else masking.masked_mean(x, m, dim).unsqueeze(dim))) ** 2, m, dim
        ),
        "second moment": lambda x, m, dim=None: masking.masked_mean(on(m, x) ** 2, m, dim),
        "standard deviation": lambda x, m, dim=None: masking.masked_var(x, m, dim).sqrt(),
    },
    "masked_softmax": {
        "masked after, not renormalised": lambda x, m, dim=-1: on(m, x.softmax(dim)),
        "zero logits, not none": lambda x, m, dim=-1: on(m, on(m, x).softmax(dim)),
        "-inf in an empty row": lambda x, m, dim=-1: x.masked_fill(~m, -torch.inf).softmax(dim),
        "adds a penalty": lambda x, m, dim=-1: on(m, (x + (~m) * -1e9).softmax(dim)),
        "no care for large logits": lambda x, m, dim=-1: on(m, x.exp()) / on(m, x.exp()).sum(dim, keepdim=True),
        "ignores dim": lambda x, m, dim=-1: masking.masked_softmax(x, m),
    },
    "whiten": {
        "count - 1": whiten_with(var=lambda x, m: var_of(x, m) * m.sum() / (m.sum() - 1).clamp(min=1)),
        "mean added back": whiten_with(add=mean_of),
        "mean left in": whiten_with(mean=lambda x, m: 0.0),
        "mean over padding as well": whiten_with(mean=lambda x, m: on(m, x).mean()),
        "eps outside the root": whiten_with(eps_inside=0.0, eps_outside=1e-8),
        "another eps": whiten_with(eps_inside=1e-5),
        "not scaled": whiten_with(var=lambda x, m: torch.ones(())),
        "variance for deviation": whiten_with(var=lambda x, m: var_of(x, m) ** 2),
        "row by row": lambda x, m: on(
            m, torch.stack([whiten_with()(row[None], counts[None])[0] for row, counts in zip(x, m)])
        ),
        "junk off the mask": lambda x, m: (x - mean_of(x, m)) / (var_of(x, m) + 1e-8).sqrt(),
        "poisoned gradient": lambda x, m: on(m, (x - mean_of(x, m)) * (var_of(x, m) + 1e-8).rsqrt()),
    },
    "actions_of": {"the states": lambda tokens: tokens[:, :-1], "one wide": lambda tokens: tokens.roll(-1, 1)},
    "acting_states": {"one late": lambda x: x[:, 1:], "last axis": lambda x: x[..., :-1]},
    "action_log_probs": {
        "each token by the state that has read it": lambda x, y: scored(x[:, 1:], y[:, 1:]),
        "each state asked for the token it holds": lambda x, y: scored(x[:, :-1], y[:, :-1]),
        "as wide as the tokens": lambda x, y: scored(x, y.roll(-1, 1)),
        "logits": lambda x, y: x[:, :-1].gather(-1, y[:, 1:, None]).squeeze(-1),
        "probabilities": lambda x, y: scored(x[:, :-1], y[:, 1:]).exp(),
        "over the states": lambda x, y: x[:, :-1].log_softmax(1).gather(-1, y[:, 1:, None]).squeeze(-1),
        "cross-entropy": lambda x, y: -scored(x[:, :-1], y[:, 1:]),
        "the likeliest token": lambda x, y: x[:, :-1].log_softmax(-1).amax(-1),
        "no care for large logits": lambda x, y: (
            (x.exp() / x.exp().sum(-1, keepdim=True))[:, :-1].gather(-1, y[:, 1:, None]).squeeze(-1).log()
        ),
    },
    "values_before": {"after": lambda v: v[:, 1:], "all": lambda v: v},
    "values_after": {"before": lambda v: v[:, :-1], "two later": lambda v: v.roll(-1, 1)[:, 1:]},
    "action_mask_from_lengths": {
        "not shifted": lambda p, s, n: ((torch.arange(n) >= p[:, None]) & (torch.arange(n) < s[:, None]))[:, :-1],
        "without EOS": lambda p, s, n: ((torch.arange(n) >= p[:, None]) & (torch.arange(n) < s[:, None] - 1))[:, 1:],
        "with the prompt": lambda p, s, n: (torch.arange(n) < s[:, None])[:, 1:].expand(len(p), -1),
        "with the padding": lambda p, s, n: (torch.arange(n) >= p[:, None])[:, 1:],
        "sequence_lengths taken for response_lengths": lambda p, s, n: (
            (torch.arange(n) >= p[:, None]) & (torch.arange(n) < (p + s)[:, None])
        )[:, 1:],
    },
    "another_follows": {
        "wraps round": lambda m: m & m.roll(-1, 1),
        "something follows a full row": lambda m: m & pad(m[:, 1:], (0, 1), value=True),
        "one was before": lambda m: m & pad(m[:, :-1], (1, 0)),
    },
    "is_last": {
        "one slot late": lambda m: pad((m & ~follows(m))[:, :-1], (1, 0)),
        "the first": lambda m: m & ~pad(m[:, :-1], (1, 0)),
        "last column": lambda m: m & (torch.arange(m.shape[1]) == m.shape[1] - 1),
        "where padding starts, lost in a full row": lambda m: m & pad(~m[:, 1:], (0, 1)),
    },
    "replace_score_without_eos": {
        "subtracts": lambda s, e, *, score_without_eos: torch.where(e, s, s + score_without_eos),
        "the other way round": lambda s, e, *, score_without_eos: torch.where(e, score_without_eos, s),
        "always -1": lambda s, e, *, score_without_eos: torch.where(e, s, -1.0),
        "at most": lambda s, e, *, score_without_eos: torch.where(e, s, s.clamp(max=score_without_eos)),
        "multiplies": lambda s, e, *, score_without_eos: s * e + score_without_eos * ~e,
    },
    "place_score": {
        "one slot late": lambda s, m: pad(on(m & ~follows(m), s[:, None].expand(m.shape))[:, :-1], (1, 0)),
        "one slot early": lambda s, m: pad(on(m & ~follows(m), s[:, None].expand(m.shape))[:, 1:], (0, 1)),
        "every choice": lambda s, m: on(m, s[:, None].expand(m.shape)),
        "spread evenly": lambda s, m: on(m, s[:, None] / m.sum(1, keepdim=True)),
        "last column": lambda s, m: pad(s[:, None], (m.shape[1] - 1, 0)),
        "by count, not by place": lambda s, m: torch.zeros(m.shape, dtype=s.dtype).scatter(
            1, (m.sum(1, keepdim=True) - 1).clamp(min=0), s[:, None]
        ),
        "a row without a choice is paid": lambda s, m: torch.zeros(m.shape, dtype=s.dtype).scatter(
            1, (m * torch.arange(m.shape[1])).argmax(1, keepdim=True), s[:, None]
        ),
    },
    "penalise_kl": {
        "pays for KL": lambda s, k, m, *, kl_coef: on(m, s + kl_coef * k),
        "padding pays": lambda s, k, m, *, kl_coef: s - kl_coef * k,
        "no coefficient": lambda s, k, m, *, kl_coef: on(m, s - k),
        "all KL at every token": lambda s, k, m, *, kl_coef: on(m, s - kl_coef * on(m, k).sum(1, keepdim=True)),
        "KL without its sign": lambda s, k, m, *, kl_coef: on(m, s - kl_coef * k.abs()),
    },
    "td_errors": {
        "bootstraps from the state after the last choice": td_with(lambda v, m: v[:, 1:]),
        "no next value": td_with(lambda v, m: torch.zeros_like(v[:, 1:])),
        "values one late": td_with(lambda v, m: on(follows(m), v[:, :-1])),
        "reward one late": td_with(reward=lambda r: pad(r[:, :-1], (1, 0))),
        "gamma on the reward": lambda v, r, m, *, gamma: on(m, gamma * td_with()(v, r, m, gamma=1.0)),
        "no gamma": lambda v, r, m, *, gamma: td_with()(v, r, m, gamma=1.0),
        "junk off the mask": lambda v, r, m, *, gamma: r + gamma * on(follows(m), v[:, 1:]) - v[:, :-1],
    },
    "gae": {
        "bootstraps from the state after the last choice": gae_with(td_with(lambda v, m: v[:, 1:])),
        "no lam": gae_with(decay=lambda gamma, lam: gamma),
        "no gamma in the decay": gae_with(decay=lambda gamma, lam: lam),
        "one step": gae_with(decay=lambda gamma, lam: 0.0),
        "runs forwards": gae_with(backwards=False),
        "reward one late": gae_with(td_with(reward=lambda r: pad(r[:, :-1], (1, 0)))),
        "whitened inside": gae_with(last=lambda a, m: whiten_with()(a, m)),
        "returns, not advantages": lambda v, r, m, **hyper: on(m, gae_with()(v, r, m, **hyper) + v[:, :-1]),
        "value masked after multiplication": gae_with(td_with(lambda v, m: v[:, 1:] * follows(m))),
    },
    "returns": {
        "from whitened advantages": lambda a, v, m: on(m, whiten_with()(a, m) + v[:, :-1]),
        "value after": lambda a, v, m: on(m, a + v[:, 1:]),
        "advantage only": lambda a, v, m: on(m, a),
        "minus": lambda a, v, m: on(m, a - v[:, :-1]),
        "junk off the mask": lambda a, v, m: a + v[:, :-1],
    },
    "kl_k1": {
        "KL(q || p)": lambda p, q: q - p,
        "absolute": lambda p, q: (p - q).abs(),
        "k2": lambda p, q: (p - q) ** 2 / 2,
        "k3": lambda p, q: (q - p).expm1() - (q - p),
        "weighted by p": lambda p, q: p.exp() * (p - q),
    },
    "kl_k2": {"no half": lambda p, q: (p - q) ** 2, "k1": lambda p, q: p - q, "k3": kl.kl_k3},
    "kl_k3": {
        "k1": lambda p, q: p - q,
        "k2": lambda p, q: (p - q) ** 2 / 2,
        "KL(q || p)": lambda p, q: (p - q).expm1() - (p - q),
        "sign of the log turned": lambda p, q: (q - p).expm1() + (q - p),
        "no -1": lambda p, q: (q - p).exp() - (q - p),
    },
    "kl_exact": {
        "KL(q || p)": lambda p, q: kl.kl_exact(q, p),
        "mean over the vocabulary": lambda p, q: kl.kl_exact(p, q) / p.shape[-1],
        "takes logits for log-probabilities": lambda p, q: (p.exp() * (p - q)).sum(-1),
        "0 log 0 is NaN": lambda p, q: (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1),
        "NaN in the gradient": lambda p, q: torch.where(
            p.softmax(-1) > 0, p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1)), 0.0
        ).sum(-1),
        "hides infinity": lambda p, q: kl.kl_exact(p, q.clamp(min=-50)),
    },
    "sft_loss": {
        "wrong sign": lambda x, m: on(m, x),
        "padding trains": lambda x, m: -x,
        "multiplies": lambda x, m: -x * m,
        "reduced": lambda x, m: mean_of(-x, m),
        "row mean": lambda x, m: on(m, -x) / m.sum(1, keepdim=True),
        "probability, not its log": lambda x, m: on(m, -x.exp()),
    },
    "preference_loss": {
        "rejected preferred": lambda c, r: -logsigmoid(r - c),
        "overflows": lambda c, r: -torch.sigmoid(c - r).log(),
        "reduced": lambda c, r: -logsigmoid(c - r).mean(),
        "each on its own": lambda c, r: -logsigmoid(c) - logsigmoid(-r),
        "hinge": lambda c, r: (1 - (c - r)).clamp(min=0),
        "probability, not its log": lambda c, r: 1 - torch.sigmoid(c - r),
        "regularised": lambda c, r: -logsigmoid(c - r) + 0.01 * (c + r) ** 2,
    },
    "log_ratio": {
        "old over new": lambda new, old, m: on(m, old - new),
        "ratio": lambda new, old, m: on(m, (new - old).exp()),
        "multiplies": lambda new, old, m: (new - old) * m,
        "junk off the mask": lambda new, old, m: new - old,
        "1 off the mask": lambda new, old, m: torch.where(m, new - old, 1.0),
    },
    "policy_loss": {
        "min for max": policy_with(worse=torch.minimum),
        "an objective, not a loss": policy_with(worse=torch.minimum, sign=1),
        "never clipped": policy_with(worse=lambda unclipped, clipped: unclipped),
        "clipped always": policy_with(worse=lambda unclipped, clipped: clipped),
        "upper bound only": policy_with(clamp=lambda r, clip: r.clamp(max=1 + clip)),
        "band of log ratios": policy_with(clamp=lambda r, clip: r.log().clamp(-clip, clip).exp()),
        "band around 0": policy_with(clamp=lambda r, clip: r.clamp(-clip, clip)),
        "1 + log ratio for ratio": policy_with(ratio=lambda x: 1 + x),
        "old over new": policy_with(ratio=lambda x: (-x).exp()),
        "-A off the mask": policy_with(off=-1.0),
        "no gradient through the ratio": policy_with(ratio=lambda x: x.exp().detach()),
        "ratio masked too late": lambda new, old, a, m, *, clip: policy_with()(
            (new - old).exp().log(), torch.zeros_like(old), a, m, clip=clip
        ),
        "multiplies": lambda new, old, a, m, *, clip: m * torch.maximum(
            -a * (new - old).exp(), -a * (new - old).exp().clamp(1 - clip, 1 + clip)
        ),
        "whitens again": lambda new, old, a, m, *, clip: policy_with()(new, old, whiten_with()(a, m), m, clip=clip),
        "reduced": lambda new, old, a, m, *, clip: mean_of(policy_with()(new, old, a, m, clip=clip), m),
    },
    "value_loss": {
        "min for max": value_with(worse=torch.minimum),
        "no half": value_with(factor=1.0),
        "never clipped": value_with(worse=lambda now, clipped: now),
        "clipped always": value_with(worse=lambda now, clipped: clipped),
        "kept near the return": value_with(centre=lambda now, old, target: target),
        "value after": value_with(at=slice(1, None)),
        "huber": lambda v, o, r, m, *, clip: huber_loss(on(m, v[:, :-1]), on(m, r), reduction="none"),
        "clip as a share": lambda v, o, r, m, *, clip: torch.maximum(
            on(m, v[:, :-1] - r) ** 2, on(m, o[:, :-1] * (v[:, :-1] / o[:, :-1]).clamp(1 - clip, 1 + clip) - r) ** 2
        ) / 2,
        "NaN padding reaches the gradient": lambda v, o, r, m, *, clip: on(m, torch.maximum(
            (v[:, :-1] - r) ** 2, (o[:, :-1] + (v - o)[:, :-1].clamp(-clip, clip) - r) ** 2) / 2),
        "the state after the last choice is trained": lambda v, o, r, m, *, clip: (
            value_with()(v, o, r, m, clip=clip) + on(m & ~follows(m), 1e-3 * v[:, 1:] ** 2)
        ),
        "reduced": lambda v, o, r, m, *, clip: mean_of(value_with()(v, o, r, m, clip=clip), m),
    },
    "entropy": {
        "negative": lambda x: (x.softmax(-1) * x.log_softmax(-1)).sum(-1),
        "NaN at -inf": lambda x: -(x.softmax(-1) * x.log_softmax(-1)).sum(-1),
        "NaN in the gradient at -inf": lambda x: -torch.where(
            x > -torch.inf, x.softmax(-1) * x.log_softmax(-1), 0.0
        ).sum(-1),
        "bits": lambda x: losses.entropy(x) / math.log(2),
        "mean over the vocabulary": lambda x: losses.entropy(x) / x.shape[-1],
        "takes logits for log-probabilities": lambda x: -(x.softmax(-1) * x.clamp(min=-1e9)).sum(-1),
        "relative to uniform": lambda x: losses.entropy(x) / math.log(x.shape[-1]),
    },
    "combine_losses": {
        "entropy punished": lambda p, v, e, *, value_coef, entropy_coef: p + value_coef * v + entropy_coef * e,
        "coefficients swapped": lambda p, v, e, *, value_coef, entropy_coef: p + entropy_coef * v - value_coef * e,
        "value subtracted": lambda p, v, e, *, value_coef, entropy_coef: p - value_coef * v - entropy_coef * e,
        "no entropy": lambda p, v, e, *, value_coef, entropy_coef: p + value_coef * v,
    },
    "approx_kl": {
        "k1": of_ratio(lambda x: -x),
        "k2": of_ratio(lambda x: x**2 / 2),
        "KL(current || old)": of_ratio(lambda x: (-x).expm1() + x),
        "junk off the mask": lambda new, old, m: (new - old).expm1() - (new - old),
        "multiplies": lambda new, old, m: m * ((new - old).expm1() - (new - old)),
        "mean over padding": lambda new, old, m: of_ratio(lambda x: x.expm1() - x)(new, old, m).mean(),
    },
    "clip_fraction": {
        "any ratio outside the band": clip_fraction_with(lambda r, a, clip: (r - 1).abs() > clip),
        "only above the band": clip_fraction_with(lambda r, a, clip: (a > 0) & (r > 1 + clip)),
        "where the unclipped term is larger": clip_fraction_with(
            lambda r, a, clip: -a * r > -a * r.clamp(1 - clip, 1 + clip)
        ),
        "ties count": clip_fraction_with(lambda r, a, clip: -a * r.clamp(1 - clip, 1 + clip) >= -a * r),
        "band of log ratios": clip_fraction_with(
            lambda r, a, clip: ((a > 0) & (r.log() > clip)) | ((a < 0) & (r.log() < -clip))
        ),
        "zero advantage counts": clip_fraction_with(
            lambda r, a, clip: ((a >= 0) & (r > 1 + clip)) | ((a < 0) & (r < 1 - clip))
        ),
        "mean over padding": lambda *args, clip: diagnostics.clip_fraction(*args, clip=clip).mean(),
        "junk off the mask": lambda new, old, a, m, *, clip: (
            -a * (new - old).exp().clamp(1 - clip, 1 + clip) > -a * (new - old).exp()
        ).double(),
    },
    "step_zero_gaps": {
        "terms cancel in the mean": gaps_with(KL, lambda new, old, ref, s, m: mean_of(old - ref, m)),
        "KL of the policy in training": gaps_with(KL, lambda new, old, ref, s, m: mean_of((new - ref).abs(), m)),
        "KL over padding": gaps_with(KL, lambda new, old, ref, s, m: on(m, (old - ref).abs()).mean()),
        "the largest KL": gaps_with(KL, lambda new, old, ref, s, m: on(m, (old - ref).abs()).max()),
        "ratio of the rollout with itself": gaps_with(
            RATIO, lambda new, old, ref, s, m: (on(m, old - old).exp() - 1).abs().max()
        ),
        "the ratio upside down": gaps_with(RATIO, lambda new, old, ref, s, m: (on(m, old - new).exp() - 1).abs().max()),
        "only ratios above 1": gaps_with(RATIO, lambda new, old, ref, s, m: (on(m, new - old).exp() - 1).max()),
        "log ratio": gaps_with(RATIO, lambda new, old, ref, s, m: on(m, new - old).abs().max()),
        "masked after the exponential": gaps_with(
            RATIO, lambda new, old, ref, s, m: (((new - old).exp() - 1) * m).abs().max()
        ),
        "sampler against the policy in training": gaps_with(
            GAP, lambda new, old, ref, s, m: on(m, (s - new).abs()).max()
        ),
        "mean gap": gaps_with(GAP, lambda new, old, ref, s, m: mean_of((s - old).abs(), m)),
        "gap without its sign": gaps_with(GAP, lambda new, old, ref, s, m: on(m, s - old).max()),
    },
    "explained_variance": {
        "not centred": lambda v, r, m: 1 - mean_of((on(m, r) - on(m, v[:, :-1])) ** 2, m) / var_of(r, m),
        "value after": lambda v, r, m: 1 - var_of(r - v[:, 1:], m) / var_of(r, m),
        "padding counts": lambda v, r, m: 1 - (r - v[:, :-1]).var() / r.var(),
        "share of the critic's variance": lambda v, r, m: 1 - var_of(r - v[:, :-1], m) / var_of(v[:, :-1], m),
        "unexplained": lambda v, r, m: var_of(r - v[:, :-1], m) / var_of(r, m),
        "-inf if R is constant": lambda v, r, m: 1 - var_of(r - v[:, :-1], m) / var_of(r, m),
        "eps in the denominator": lambda v, r, m: 1 - var_of(r - v[:, :-1], m) / (var_of(r, m) + 1e-8),
    },
    "select": {
        "sorted": lambda record, index: records.Rows.select(record, index.sort().values),
        "no repeats": lambda record, index: records.Rows.select(record, index.unique()),
        "columns": per_field(lambda name, x, index: x[..., index]),
        "lengths left behind": per_field(lambda name, x, index: x[: len(index)] if "lengths" in name else x[index]),
        "another type": lambda record, index: records.Texts(
            **{name: x[index] for name, x in vars(record).items() if name in vars(specifications_texts())}
        ),
    },
    "trim": {
        "one width for all": lambda record, states: cut(record, lambda name, x: states),
        "one too short": lambda record, states: cut(
            record, lambda name, x: states - 1 if name in ("tokens", "values") else states - 2
        ),
        "first field taken for state-indexed": lambda record, states: cut(
            record, lambda name, x: x.shape[1] - next(iter(vars(record).values())).shape[1] + states
        ),
        "values one short": lambda record, states: cut(record, lambda name, x: states - (name != "tokens")),
        "from the left": lambda record, states: type(record)(
            **{name: x if x.dim() == 1 else x.flip(1)[:, : states - (name not in ("tokens", "values"))].flip(1)
               for name, x in vars(record).items()}
        ),
    },
}  # fmt: skip

UNGUARDED: dict[str, Mutants] = {
    "keep": {"broadcasts": lambda x, mask, otherwise=0.0: torch.where(mask, x, otherwise)},
    "masked_sum": {"broadcasts": along(lambda x, m, dim: on(m, x).sum(dim))},
    "masked_mean": {"broadcasts": along(lambda x, m, dim: on(m, x).sum(dim) / m.sum(dim))},
    "whiten": {"broadcasts": whiten_with()},
    "action_mask_from_lengths": {
        "accepts everything": lambda p, s, n: ((torch.arange(n) >= p[:, None]) & (torch.arange(n) < s[:, None]))[:, 1:]
    },
    "check_one_wider": {
        "accepts everything": lambda per_state, per_action: None,
        "columns only": lambda per_state, per_action: alignment.check_one_wider(per_state[:1], per_action[:1]),
        "one wider or equal": lambda per_state, per_action: (
            None if per_state.shape == per_action.shape else alignment.check_one_wider(per_state, per_action)
        ),
    },
    "check_same_actions": {
        "accepts everything": lambda *tensors: None,
        "first two only": lambda *tensors: alignment.check_same_actions(*tensors[:2]),
        "columns only": lambda *tensors: alignment.check_same_actions(*(tensor[:1] for tensor in tensors)),
    },
    "penalise_kl": {"broadcasts": lambda s, k, m, *, kl_coef: on(m, s - kl_coef * k)},
    "td_errors": {"broadcasts": td_with()},
    "gae": {"broadcasts": gae_with()},
    "returns": {"broadcasts": lambda a, v, m: on(m, a + v[:, :-1])},
    "sft_loss": {"broadcasts": lambda x, m: on(m, -x)},
    "log_ratio": {"broadcasts": lambda new, old, m: on(m, new - old)},
    "policy_loss": {"broadcasts": policy_with()},
    "value_loss": {"broadcasts": value_with()},
    "approx_kl": {"broadcasts": of_ratio(lambda x: x.expm1() - x)},
    "clip_fraction": {
        "broadcasts": clip_fraction_with(lambda r, a, clip: -a * r.clamp(1 - clip, 1 + clip) > -a * r)
    },
    "step_zero_gaps": {
        "broadcasts": lambda new, old, ref, sampler, m: dict(
            kl_before_first_update=mean_of((old - ref).abs(), m),
            ratio_error_before_first_update=(on(m, new - old).exp() - 1).abs().max(),
            sampler_forward_gap=on(m, (sampler - old).abs()).max(),
        )
    },
    "explained_variance": {
        "broadcasts": lambda v, r, m: (
            1 - var_of(r - v[:, :-1], m) / torch.where(var_of(r, m) > 0, var_of(r, m), math.nan)
        )
    },
}  # fmt: skip


def specifications_texts():
    rollout = specifications.example_rollout()
    return records.Texts(rollout.tokens, rollout.prompt_lengths, rollout.sequence_lengths, rollout.has_eos)


def guarded(right: Callable, wrong: Callable) -> Callable:
    """`wrong`, but with the errors of `right`, so that only what it computes can give it away."""

    def fn(*args, **hyper):
        right(*args, **hyper)
        return wrong(*args, **hyper)

    return fn


def blunt_mutants(right: Callable) -> Mutants:
    """Mistakes that any function can make. The last two are close to the truth: no sloppy tolerance lets them pass."""

    def after(change: Callable) -> Callable:
        def fn(*args, **hyper):
            result = right(*args, **hyper)
            return {name: change(x) for name, x in result.items()} if isinstance(result, dict) else change(result)

        return fn

    return {
        "says 12345": after(lambda result: torch.full_like(result, 12345)),
        "says 0": after(torch.zeros_like),
        "off by 1e-5": after(lambda result: ~result if result.dtype == torch.bool else result + 1e-5),
        "1e-5 of itself too large": after(lambda result: ~result if result.dtype == torch.bool else result * 1.00001),
    }


def all_mutants() -> list:
    """Every mistake as a parameter `(name, wrong function)`."""
    found = {(name, wrong): guarded(LIBRARY[name], fn) for name in MUTANTS for wrong, fn in MUTANTS[name].items()}
    found |= {(name, wrong): fn for name in UNGUARDED for wrong, fn in UNGUARDED[name].items()}
    without_numbers = {"check_one_wider", "check_same_actions", "select", "trim"}
    for name in LIBRARY.keys() - without_numbers - {"actions_of", "mask_from_lengths"}:
        found |= {(name, wrong): fn for wrong, fn in blunt_mutants(LIBRARY[name]).items()}
    for name in TRAINED:
        found[name, "no gradient"] = lambda *args, right=LIBRARY[name], **hyper: right(*args, **hyper).detach()
    return [pytest.param(name, found[name, wrong], id=f"{name}: {wrong}") for name, wrong in sorted(found)]


@pytest.mark.parametrize("name", LIBRARY)
def test_every_function_has_a_check_and_mutants(name: str) -> None:
    """Rejects a function that joined the maths without a specification."""
    assert name in CHECKS
    assert len(MUTANTS.get(name, {})) + len(UNGUARDED.get(name, {})) >= 2


@pytest.mark.parametrize(("name", "wrong"), all_mutants())
def test_mutant_is_rejected(name: str, wrong: Callable) -> None:
    """Rejects a check that would let this mistake pass. The annotations are off: values alone must give it away."""
    with annotations_off(), pytest.raises(AssertionError):
        CHECKS[name](wrong)
