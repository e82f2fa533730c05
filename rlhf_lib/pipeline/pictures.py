"""The pictures of a run's report, as SVG that takes its colours from the page: dark lines by day, light ones by night.

Each picture is a dict: title, svg, caption, and `alt`, which says in words what the lines do.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, FIRST, SECOND = "#000001", "#000002", "#000003", "#000004"  # stand for the page's colours below
ON_PAGE = {INK: "currentColor", FAINT: "var(--faint)", FIRST: "var(--first)", SECOND: "var(--second)"}
STYLE = {
    "svg.hashsalt": "rlhf", "svg.fonttype": "none", "font.size": 10, "font.sans-serif": ["DejaVu Sans"],
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": FAINT,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "axes.titlesize": 10,
    "axes.grid": True, "grid.color": FAINT, "grid.alpha": 0.35, "grid.linewidth": 0.6, "axes.axisbelow": True,
}  # fmt: skip
GOLD_AND_SCORE = {"gold": "gold, at most 4", "score": "score of the reward model"}
SMOOTH_FROM = 60  # steps; longer curves are noise with a mean
PEOPLE = {"sft": "SFT policy", "policy": "PPO policy", "reference": "reference summaries"}
STAGES = {"reward_model": "reward model", "sft": "SFT", "ppo": "PPO"}


@dataclass(frozen=True)
class Curves:
    """One picture: some metrics of a stage over its steps, a panel each."""

    stage: str
    title: str
    panels: dict[str, str]
    caption: str


CURVES = (
    Curves(
        "ppo", "Gold and score", GOLD_AND_SCORE,
        "The score is what PPO maximises; gold is the reader's judgement, which PPO never sees. A score that climbs "
        "while gold falls is over-optimisation: the policy has found what the reward model gets wrong.",
    ),
    Curves(
        "ppo", "Distance from SFT, and entropy",
        {"kl_per_sequence": "KL, nats a summary", "entropy_per_token": "entropy, nats a token"},
        "KL starts at 0, because the policy starts as a copy of the SFT policy, and should level off. Entropy near 0 "
        "means that the policy no longer tries other words, so it can no longer learn from them.",
    ),
    Curves(
        "ppo", "Length and endings", {"response_length": "tokens a summary", "eos_rate": "share with an end"},
        "Ever longer texts, and texts without end, are classic ways to please a reward model.",
    ),
    Curves(
        "ppo", "Size of the updates", {"clip_fraction": "clip fraction", "approx_kl": "approximate KL, nats a token"},
        "How far an update moves the policy from the one that wrote the texts. Both 0: nothing is learned. A clip "
        "fraction that stays above about 0.3: the steps are too large.",
    ),
    Curves(
        "ppo", "The critic", {"value_loss": "value loss", "explained_variance": "explained variance"},
        "Explained variance is 1 for a perfect critic, 0 for one that predicts the mean, and below 0 for a worse one.",
    ),
    Curves(
        "ppo", "Gradient norms of PPO", {"grad_norm_policy": "policy", "grad_norm_value": "critic"},
        "Before any clipping. A spike that dwarfs the rest often comes just before a collapse.",
    ),
    Curves(
        "reward_model", "Reward model", {"loss": "loss", "agreement": "share of pairs ordered as the reader did"},
        "A model that knows nothing has loss log 2 ≈ 0.69 and agreement 0.5. The reader's own noise sets the ceiling.",
    ),
    Curves("sft", "SFT", {"loss": "loss, nats a token"}, "The writers choose freely, so the loss cannot reach 0."),
)  # fmt: skip


def pictures(report: dict, metrics: list[dict], samples: list[dict]) -> dict[str, list[dict]]:
    """Pictures by stage; none where the stage left no rows."""
    rows = {stage: [row for row in metrics if row.get("stage") == stage] for stage in ("ppo", "reward_model", "sft")}
    with style.context(["default", STYLE]):
        found = {stage: [curves(spec, here, report) for spec in CURVES if here and spec.stage == stage]
                 for stage, here in rows.items()}  # fmt: skip
        found["ppo"] += [against_distance(rows["ppo"])] if rows["ppo"] else []
        found["evaluation"] = [histogram(samples)] if samples else []
        found["time"] = [seconds(report)] if report.get("seconds") else []
    return found


def curves(spec: Curves, rows: list[dict], report: dict) -> dict:
    """A panel for each metric."""
    figure, panels = _panels(len(spec.panels))
    alt = []
    for axes, (metric, label) in zip(panels, spec.panels.items(), strict=True):
        values = [_float(row.get(metric)) for row in rows]
        _line(axes, values)
        _level(axes, *_levels(report).get((spec.stage, metric), ("", None)))
        axes.set_title(label)
        if metric == "eos_rate":
            axes.set_ylim(0, 1.05)
        alt.append(f"{label}: {in_words(values)}")
    panels[-1].set_xlabel("PPO update" if spec.stage == "ppo" else "step")
    return _picture(figure, spec.title, alt, spec.caption)


def against_distance(rows: list[dict]) -> dict:
    """The path of a run in the planes of over-optimisation: what is wanted and what is optimised, over sqrt(KL)."""
    distance = [math.sqrt(max(_float(row.get("kl_per_sequence")), 0)) for row in rows]
    figure, panels = _panels(2, height=1.6)
    alt = [f"√KL: {in_words(distance)}"]
    for axes, (metric, label) in zip(panels, GOLD_AND_SCORE.items(), strict=True):
        values = [_float(row.get(metric)) for row in rows]
        axes.plot(distance, values, "o-", color=FIRST, linewidth=0.8, markersize=4)
        for place, name, marker in ((0, "first update", "s"), (-1, "last update", "D")):
            axes.plot(distance[place], values[place], marker, color=SECOND, markersize=8, label=name)
        axes.set_title(label)
        alt.append(f"{label}: {in_words(values)}")
    panels[0].legend(frameon=False)
    panels[-1].set_xlabel("√KL from the SFT policy (KL in nats a summary)")
    caption = (
        "Each point is an update. How far the policy moved, against what that bought. Gao et al. (2022) found that gold"
        " rises along √KL up to some distance and then falls, however high the score still climbs."
    )
    return _picture(figure, "Gold and score against distance", alt, caption)


def histogram(samples: list[dict]) -> dict:
    """Gold scores of each writer's summaries, in bins of one point; without gold, the reward model's scores."""
    by = "gold" if "gold" in samples[0]["policy"] else "score"
    gold = {name: [_float(row[name][by]) for row in samples] for name in PEOPLE}
    finite = [value for values in gold.values() for value in values if math.isfinite(value)]
    lowest, highest = math.floor(min([-2, *finite])), 1 + math.floor(max([4, *finite]))
    figure, panels = _panels(3, height=0.95)
    alt = []
    for axes, (name, values), colour in zip(panels, gold.items(), (SECOND, FIRST, INK), strict=True):
        shares = {
            level: sum(level <= value < level + 1 for value in values) / len(values) for level in range(lowest, highest)
        }
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.bar(list(shares), [100 * share for share in shares.values()], color=colour, width=0.8)
        axes.set(title=f"{PEOPLE[name]}, % of summaries", ylim=(0, 100))
        alt.append(f"{PEOPLE[name]}: " + ", ".join(f"{100 * share:.0f} % at {at}" for at, share in shares.items()))
    label = "Gold score" if by == "gold" else "Reward-model score"
    panels[-1].set_xlabel(f"{label.lower()}, rounded down")
    return _picture(figure, f"{label} of every summary", alt, "All on the same held-out posts.")


def seconds(report: dict) -> dict:
    """A bar for each stage."""
    spent = {STAGES.get(name, name): _float(value) for name, value in report["seconds"].items() if name != "total"}
    total = sum(value for value in spent.values() if value > 0)
    labels = [f"{value:.0f} s, {100 * value / total:.0f} %" if value > 0 else "n/a" for value in spent.values()]
    figure, (axes,) = _panels(1, height=0.6 + 0.32 * len(spent))
    bars = axes.barh(list(spent), list(spent.values()), color=FIRST, height=0.6)
    axes.bar_label(bars, labels, padding=4)
    axes.invert_yaxis()
    axes.grid(False)
    axes.margins(x=0.3)
    axes.set_xlabel("seconds")
    alt = [f"{name}: {label}" for name, label in zip(spent, labels, strict=True)]
    return _picture(figure, "Where the time went", alt, "Wall-clock time of each stage on the machine that ran it.")


def in_words(values: list[float]) -> str:
    """For readers who cannot see the line."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "n/a"
    return f"from {finite[0]:.3g} to {finite[-1]:.3g}, between {min(finite):.3g} and {max(finite):.3g}"


def running_mean(values: list[float], steps: int) -> list[float]:
    """The mean of the latest `steps` values, up to each."""
    return [sum(here) / len(here) for i in range(len(values)) for here in [values[max(0, i + 1 - steps) : i + 1]]]


def _panels(count: int, *, height: float = 1.35) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.3, height * count + 0.3), layout="constrained")
    return figure, list(figure.subplots(count, sharex=True, squeeze=False)[:, 0])


def _line(axes: Axes, values: list[float]) -> None:
    """Long curves are faint, with their running mean on top."""
    is_long = len(values) >= SMOOTH_FROM
    axes.plot(values, color=FAINT if is_long else FIRST, linewidth=0.8 if is_long else 1.8)
    if is_long:
        axes.plot(running_mean(values, len(values) // 12), color=FIRST, linewidth=1.8)
    axes.locator_params(axis="y", nbins=4)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _level(axes: Axes, name: str, level: float | None) -> None:
    """A dashed line to compare with."""
    if level is not None and not math.isnan(level):
        axes.axhline(level, color=SECOND, linestyle="--", linewidth=1.2)
        axes.annotate(name, (1, level), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                      ha="right", va="bottom", color=SECOND)  # fmt: skip


def _levels(report: dict) -> dict[tuple[str, str], tuple[str, float]]:
    reference, scorer = report.get("reference") or {}, report.get("reward_model") or {}
    return {
        ("ppo", "gold"): ("reference summaries", _float(reference.get("gold"))),
        ("reward_model", "agreement"): ("ceiling", _float(scorer.get("accuracy_ceiling"))),
    }


def _picture(figure: Figure, title: str, alt: Iterable[str], caption: str) -> dict:
    """The figure as SVG that can stand inside a page: no header, ids of its own, the page's colours and font."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()[file.getvalue().index("<svg") :]
    svg = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true">', svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{re.sub('[^a-z]+', '-', title.lower())}-", svg)
    for stand_in, colour in ON_PAGE.items():
        svg = svg.replace(stand_in, colour)
    return dict(title=title, svg=Markup(svg.rstrip()), alt="; ".join(alt), caption=caption)


def _float(value: object) -> float:
    """NaN for whatever is not a finite number: lines have a gap there."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan
