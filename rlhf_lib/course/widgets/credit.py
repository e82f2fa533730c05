"""Lesson 03's instrument: gamma, lambda, and rewards and values to edit; how credit moves along a row."""

from __future__ import annotations

import torch

from ...algorithms.parts import Parts
from ...maths.advantages import gae, returns, td_errors
from ...maths.records import Rollout
from .instrument import Instrument, html_table, module, stylesheet
from .microscope import Numbers, compute
from .plain import plain, show, token_texts


def gae_explorer(
    rollout: Rollout,
    tokenizer,
    *,
    kl_coef: float = 0.05,
    gamma: float = 1.0,
    lam: float = 0.95,
    score_without_eos: float = -1.0,
    row: int = 0,
) -> GaeExplorer:
    """The choices of a row, one a line: reward and value to edit, and the TD error, advantage and return they make.

    tokenizer  turns the token ids of the rollout into text
    kl_coef, score_without_eos  as in `PPOConfig`: they make the rewards
    gamma, lam the sliders' first places
    row        the one to begin with
    """
    if not 0 <= row < len(rollout.tokens):
        raise ValueError(f"row {row} of a rollout of {len(rollout.tokens)} rows")
    numbers = Numbers(kl_coef=kl_coef, gamma=gamma, lam=lam, score_without_eos=score_without_eos)
    _, tracks = compute(rollout, numbers, Parts(), "eos", "none")
    rows = [_choices(rollout, tracks["rewards"], tokenizer, b) for b in range(len(rollout.tokens))]
    view = dict(row=row, gamma=float(gamma), lam=float(lam), rewards=[], values=[])
    return GaeExplorer(data=plain(dict(rows=rows)), view=view)


class GaeExplorer(Instrument):
    """See `gae_explorer`. `view["rewards"]` and `view["values"]` are edited ones: [place among the choices, number]."""

    _esm = module("credit")
    _css = stylesheet("credit")

    def summary(self) -> str:
        return f"{len(self.data['rows'])} rows, gamma {self.view['gamma']}, lam {self.view['lam']}"

    def static_html(self) -> str:
        row, gamma, lam = (self.view[name] for name in ("row", "gamma", "lam"))
        choices = self.data["rows"][row]
        rewards, values = (
            torch.tensor([[float(x) for x in choices[name]]], dtype=torch.float64) for name in ("rewards", "values")
        )
        values = torch.nn.functional.pad(values, (0, 1))  # the state after the last choice, which is never read
        mask = torch.ones_like(rewards, dtype=torch.bool)
        advantages = gae(values, rewards, mask, gamma=gamma, lam=lam)
        columns = [
            rewards,
            values[:, :-1],
            td_errors(values, rewards, mask, gamma=gamma),
            advantages,
            gae(values, rewards, mask, gamma=gamma, lam=1.0),
            returns(advantages, values, mask),
        ]
        table = zip(
            choices["places"], choices["actions"], *([show(x) for x in column[0].tolist()] for column in columns)
        )
        head = [
            "t",
            "action",
            "reward",
            "value",
            "TD error (λ = 0)",
            f"advantage (λ = {lam:g})",
            "Monte Carlo (λ = 1)",
            "return",
        ]
        return html_table(f"Row {row}: credit for each choice, γ = {gamma:g}, λ = {lam:g}", head, table)


def _choices(rollout: Rollout, rewards: torch.Tensor, tokenizer, b: int) -> dict:
    places = rollout.action_mask[b].nonzero()[:, 0]
    return dict(
        places=places,
        actions=token_texts(rollout.tokens[b, places + 1], tokenizer),
        rewards=rewards[b, places],
        values=rollout.values[b, places],
    )
