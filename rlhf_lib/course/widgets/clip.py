"""Lesson 05's instrument: the actions of an update in the plane of ratio and advantage, and what the clip does."""

from __future__ import annotations

import torch
from torch import Tensor

from ...maths.alignment import check_same_actions
from ...maths.diagnostics import clip_fraction
from ...maths.losses import log_ratio, policy_loss
from ...maths.shapes import ActionMask, PerAction
from .instrument import Instrument, html_table, module, stylesheet
from .plain import plain, show

DECIMALS = 6  # of a mean that may be 0 up to rounding
# By side of the clip (below, within, above) and sign of the advantage; "neither" has no gradient anyway, or is NaN.
REGIONS = (
    ("within", "within the clip", "gradient"),
    ("high_good", "A > 0, ratio above: has gained enough", "clipped, no gradient"),
    ("low_bad", "A < 0, ratio below: has lost enough", "clipped, no gradient"),
    ("low_good", "A > 0, ratio below: went the wrong way", "gradient leads back"),
    ("high_bad", "A < 0, ratio above: went the wrong way", "gradient leads back"),
    ("neither", "outside, A = 0 or no number", "nothing to learn"),
)


def clip_explorer(
    log_probs: PerAction, old_log_probs: PerAction, advantages: PerAction, action_mask: ActionMask, *, clip: float = 0.2
) -> ClipExplorer:
    """Every action as a point: its ratio and its advantage, the region it lies in, and a point to set by hand.

    log_probs, old_log_probs  [B, T-1] nats, now and when the rollout was scored
    advantages                [B, T-1] as the loss gets them
    clip                      where the slider is at first
    raises                    ValueError unless all have one shape, some action counts, and clip is in [0, 1]
    """
    check_same_actions(log_probs, old_log_probs, advantages, action_mask)
    if not action_mask.any():
        raise ValueError("no action counts: there is nothing to show")
    if not 0 <= clip <= 1:
        raise ValueError(f"clip must be in [0, 1], got {clip}")
    ratios = log_ratio(log_probs.double(), old_log_probs.double(), action_mask).exp()[action_mask]
    data = dict(ratios=ratios, advantages=advantages[action_mask].double(), places=action_mask.nonzero())
    view = dict(clip=float(clip), ratio=1.0 + 2.0 * float(clip), advantage=1.0)
    return ClipExplorer(data=plain({**data, "regions": REGIONS}), view=view)


class ClipExplorer(Instrument):
    """See `clip_explorer`."""

    _esm = module("clip")
    _css = stylesheet("clip")

    def summary(self) -> str:
        return f"{len(self.data['places'])} actions, clip {self.view['clip']:g}"

    def static_html(self) -> str:
        ratios, advantages = (_row(self.data[name]) for name in ("ratios", "advantages"))
        clip, ratio, advantage = (self.view[name] for name in ("clip", "ratio", "advantage"))
        regions = regions_of(ratios, advantages, clip=clip)
        rows = [[title, says, regions.count(name)] for name, title, says in REGIONS]
        return "\n".join((
            html_table(f"Regions of {len(regions)} actions, clip {clip:g}", ["", "", "actions"], rows),
            html_table("Over all actions", ["", ""], self._over_all(ratios, advantages, regions)),
            html_table(f"At ratio {ratio:g} and advantage {advantage:g}", ["", ""], self._at_hand()),
        ))  # fmt: skip

    def _over_all(self, ratios: Tensor, advantages: Tensor, regions: list[str]) -> list[list[str]]:
        case = _as_actions(ratios.log(), advantages)
        outside = sum(region != "within" for region in regions) / len(regions)
        return [
            ["clip fraction", show(clip_fraction(*case, clip=self.view["clip"]).mean())],
            ["if every ratio outside counted", show(outside)],
            ["mean loss", show(round(policy_loss(*case, clip=self.view["clip"]).mean().item(), DECIMALS))],
        ]

    def _at_hand(self) -> list[list[str]]:
        log_prob = _row([self.view["ratio"]]).log().requires_grad_()
        case = _as_actions(log_prob, _row([self.view["advantage"]]))
        loss = policy_loss(*case, clip=self.view["clip"]).sum()
        slope = torch.autograd.grad(loss, log_prob)[0].item()
        return [["objective", show(-loss.item())], ["loss", show(loss.item())], ["its slope in log p", show(slope)]]


def regions_of(ratios: Tensor, advantages: Tensor, *, clip: float) -> list[str]:
    """The name of each action's region, see REGIONS."""
    return [_region(r, a, clip) for r, a in zip(ratios.tolist(), advantages.tolist(), strict=True)]


def _region(ratio: float, advantage: float, clip: float) -> str:
    if 1 - clip <= ratio <= 1 + clip:
        return "within"
    side = "high" if ratio > 1 + clip else "low" if ratio < 1 - clip else ""
    sign = "good" if advantage > 0 else "bad" if advantage < 0 else ""
    return f"{side}_{sign}" if side and sign else "neither"


def _as_actions(log_ratios: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the library's functions take: one row, everything in it counts, old log-probabilities of 0."""
    x = log_ratios[None]
    return x, torch.zeros_like(x), advantages[None], torch.ones_like(x, dtype=torch.bool)


def _row(entries: list) -> Tensor:
    return torch.tensor([float(entry) for entry in entries], dtype=torch.float64)
