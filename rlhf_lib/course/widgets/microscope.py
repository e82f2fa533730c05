"""Lesson 02's instrument: the rows of a rollout by state and by action, and what each number was made from.

Everything is computed here, with the library's functions and with the learner's, for each position of the switches;
the page only shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby, product

import torch
from torch import Tensor

from ...algorithms.parts import Parts
from ...maths.advantages import td_errors
from ...maths.alignment import is_last
from ...maths.masking import keep
from ...maths.records import Rollout
from ..shifts import late, one_slot_later
from .instrument import Instrument, html_table, module, stylesheet
from .plain import plain, show, token_texts

STATE_TRACKS = ("states", "pad_mask", "values")
ACTION_TRACKS = (
    "actions", "log_probs", "ref_log_probs", "kl", "rewards", "reward_mask", "td_errors", "advantages", "returns",
    "recursion_mask", "action_mask",
)  # fmt: skip
MASKS = ("pad_mask", "reward_mask", "recursion_mask", "action_mask")
COMPUTED = ("kl", "rewards", "reward_mask", "td_errors", "advantages", "returns", "recursion_mask")
PLACEMENTS = ("eos", "later")
SHIFTS = ("none", "rewards", "values", "mask")
CONTEXT = 2  # tokens shown on either side of the response; the rest is folded


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The settings of PPO that rewards and advantages depend on."""

    kl_coef: float
    gamma: float
    lam: float
    score_without_eos: float


def alignment_microscope(
    rollout: Rollout,
    tokenizer,
    *,
    kl_coef: float = 0.05,
    gamma: float = 1.0,
    lam: float = 0.95,
    score_without_eos: float = -1.0,
    parts: Parts = Parts(),
    row: int = 0,
) -> AlignmentMicroscope:
    """The rows of `rollout`, state track over action track; point at a cell to see what it is made from and goes into.

    tokenizer  turns the token ids of the rollout into text
    kl_coef, gamma, lam, score_without_eos  as in `PPOConfig`
    parts      functions of your own, e.g. `replace(Parts(), gae=my_gae)`: a switch shows theirs beside the library's
    row        the one to begin with
    """
    if not 0 <= row < len(rollout.tokens):
        raise ValueError(f"row {row} of a rollout of {len(rollout.tokens)} rows")
    numbers = Numbers(kl_coef=kl_coef, gamma=gamma, lam=lam, score_without_eos=score_without_eos)
    data = {
        "numbers": vars(numbers),
        "kl_name": getattr(parts.kl, "__name__", type(parts.kl).__name__),
        "has_yours": bool(replaced(parts)),
        "tracks": [*([name, "state"] for name in STATE_TRACKS), *([name, "action"] for name in ACTION_TRACKS)],
        "masks": list(MASKS),
        "context": CONTEXT,
        "rows": _rows(rollout, tokenizer),
        "variants": list(_variants(rollout, numbers, parts)),
    }
    view = {"row": row, "functions": "library", "placement": "eos", "shift": "none", "whole": False, "cell": None}
    return AlignmentMicroscope(data=plain(data), view=view)


class AlignmentMicroscope(Instrument):
    """See `alignment_microscope`."""

    _esm = module("microscope")
    _css = stylesheet("microscope")

    def summary(self) -> str:
        rows = self.data["rows"]
        return f"{len(rows)} rows, {len(rows[0]['tokens'])} states, {len(rows[0]['tokens']) - 1} actions"

    def static_html(self) -> str:
        row = self.data["rows"][self.view["row"]]
        tracks = self._tracks()
        shown = _columns(row, self.data["context"])
        width = {"state": len(row["tokens"]), "action": len(row["tokens"]) - 1}
        tables = (
            html_table(
                f"{kind} indexing, row {self.view['row']}: {width[kind]} cells",
                ["position", *_texts(range(width[kind]), shown)],
                ([name, *_texts(tracks[name], shown)] for name, of in self.data["tracks"] if of == kind),
            )
            for kind in ("state", "action")
        )
        return "\n".join(tables)

    def _tracks(self) -> dict[str, list]:
        """The texts of the first variant for the row in view, one for each cell."""
        row = self.data["rows"][self.view["row"]]
        computed, width = self.data["variants"][0]["rows"][self.view["row"]], len(row["tokens"]) - 1
        tracks = {
            "states": row["tokens"],
            "pad_mask": [int(t < row["length"]) for t in range(width + 1)],
            "values": row["values"],
            "actions": row["tokens"][1:],
            "action_mask": [int(row["prompt"] <= t + 1 < row["length"]) for t in range(width)],
            **{name: untrimmed(row[name], width) for name in ("log_probs", "ref_log_probs")},
            **{name: untrimmed(track, width) for name, track in zip(COMPUTED, computed)},
        }
        numbers = {*ACTION_TRACKS, *STATE_TRACKS} - {*MASKS, "states", "actions"}
        return {name: [show(x) for x in track] if name in numbers else track for name, track in tracks.items()}


# ------------------------------------------------------------------------------------------------------- the variants


def replaced(parts: Parts) -> list[str]:
    """The slots that do not hold the library's own function."""
    return [field.name for field in fields(Parts) if getattr(parts, field.name) is not field.default]


def compute(rollout: Rollout, numbers: Numbers, parts: Parts, placement: str, shift: str) -> tuple[Tensor, dict]:
    """The scores that are paid [B], and the computed tracks [B, T-1] by name."""
    scores = parts.replace_score_without_eos(
        rollout.scores, rollout.has_eos, score_without_eos=numbers.score_without_eos
    )
    paid = one_slot_later(rollout.action_mask) if placement == "later" else rollout.action_mask
    kl = parts.kl(rollout.old_log_probs, rollout.ref_log_probs)
    placed = parts.place_score(scores, paid)
    rewards = parts.penalise_kl(placed, keep(kl, rollout.action_mask), paid, kl_coef=numbers.kl_coef)
    values, mask = rollout.values, paid
    rewards = late(rewards) if shift == "rewards" else rewards
    values = late(values) if shift == "values" else values
    mask = late(mask) if shift == "mask" else mask
    advantages = parts.gae(values, rewards, mask, gamma=numbers.gamma, lam=numbers.lam)
    tracks = dict(
        kl=kl, rewards=rewards, reward_mask=is_last(paid), recursion_mask=mask, advantages=advantages,
        td_errors=td_errors(values, rewards, mask, gamma=numbers.gamma),
        returns=parts.returns(advantages, values, mask),
    )  # fmt: skip
    return scores, {name: _checked(name, tracks[name], rollout.action_mask) for name in COMPUTED}


def links(placement: str, shift: str) -> list[list]:
    """[track, [[track it is made from, places to the right], ...]], for each position of the switches."""
    reward, value, mask = (-1 if shift == name else 0 for name in ("rewards", "values", "mask"))
    paid = [["action_mask", 0], ["action_mask", 1]]
    recursion = [["action_mask", mask]]
    if placement == "later":
        paid = [["action_mask", -1], ["action_mask", 0]]
        recursion = [["action_mask", mask - 1], ["action_mask", mask]]
    return [
        ["values", [["states", value]]],
        ["actions", [["states", 1]]],
        ["log_probs", [["states", 0], ["actions", 0]]],
        ["ref_log_probs", [["states", 0], ["actions", 0]]],
        ["kl", [["log_probs", 0], ["ref_log_probs", 0]]],
        ["reward_mask", paid],
        ["rewards", [["kl", reward], ["reward_mask", reward]]],
        ["recursion_mask", recursion],
        ["td_errors", [["rewards", 0], ["values", 0], ["values", 1], ["recursion_mask", 0], ["recursion_mask", 1]]],
        ["advantages", [["td_errors", 0], ["advantages", 1], ["recursion_mask", 0], ["recursion_mask", 1]]],
        ["returns", [["advantages", 0], ["values", 0], ["recursion_mask", 0]]],
    ]


def _variants(rollout: Rollout, numbers: Numbers, parts: Parts) -> Iterator[dict]:
    """The library's first: it is what the static table shows."""
    functions = {"library": Parts()} | ({"yours": parts} if replaced(parts) else {})
    for (name, own), placement, shift in product(functions.items(), PLACEMENTS, SHIFTS):
        variant = dict(functions=name, placement=placement, shift=shift, links=links(placement, shift))
        try:
            paid, tracks = compute(rollout, numbers, own, placement, shift)
        except Exception as error:  # a learner's function may fail in any way; the library's must not
            if name == "library":
                raise
            yield {**variant, "error": f"{type(error).__name__}: {error}", "paid": [], "rows": []}
            continue
        by_row = zip(*(tracks[track].detach().tolist() for track in COMPUTED))
        yield {**variant, "error": "", "paid": paid, "rows": [[trimmed(track) for track in row] for row in by_row]}


def _checked(name: str, track: Tensor, like: Tensor) -> Tensor:
    found = tuple(track.shape) if isinstance(track, Tensor) else track
    if found != tuple(like.shape):
        raise ValueError(f"{name} should be a tensor of shape {tuple(like.shape)}, got {found}")
    return track.int() if track.dtype == torch.bool else track


# ------------------------------------------------------------------------------------------------------ as plain data


def _rows(rollout: Rollout, tokenizer) -> list[dict]:
    return [
        dict(
            tokens=token_texts(rollout.tokens[b], tokenizer),
            prompt=int(rollout.prompt_lengths[b]),
            length=int(rollout.sequence_lengths[b]),
            has_eos=bool(rollout.has_eos[b]),
            score=rollout.scores[b].item(),
            values=rollout.values[b],
            log_probs=trimmed(rollout.old_log_probs[b].tolist()),
            ref_log_probs=trimmed(rollout.ref_log_probs[b].tolist()),
        )
        for b in range(len(rollout.tokens))
    ]


def trimmed(track: list[float]) -> list:
    """[place of the first entry that is not 0, [from it to the last that is not 0]]: most of a row is padding."""
    filled = [t for t, x in enumerate(track) if x != 0]  # NaN is not 0
    return [filled[0], track[filled[0] : filled[-1] + 1]] if filled else [0, []]


def untrimmed(track: list, width: int) -> list:
    first, entries = track
    return [0] * first + entries + [0] * (width - first - len(entries))


def _columns(row: dict, context: int) -> list[int | None]:
    """The positions that are shown; None where two or more are folded. The last state is always shown."""
    width = len(row["tokens"])
    shown = [row["prompt"] - context <= t < row["length"] + context or t == width - 1 for t in range(width)]
    columns: list[int | None] = []
    for is_shown, places in groupby(range(width), shown.__getitem__):
        run = list(places)
        columns += run if is_shown or len(run) == 1 else [None]
    return columns


def _texts(track: Sequence, columns: list[int | None]) -> list[str]:
    return ["⋯" if t is None else str(track[t]) if t < len(track) else "" for t in columns]
