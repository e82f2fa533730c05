"""The signs the doctor knows: each looks at a few columns of a log and says, with numbers, which bugs fit.

A *certain* sign is a number that right code cannot show, whatever the model and the data. A *likely* one is a pattern
that the museum's runs show (the last one: those of the preset tiny-overoptimised) and its healthy runs do not;
hyper-parameters may show it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median

from ...algorithms import step_zero
from .curves import chance, window_means
from .logs import Log

# Ten times what rounding may do in float32, more where the log says that there were fewer bits; a bug does far more.
GAP, RATIO_ERROR, KL_AT_START = (
    10 * step_zero.LIMITS[name][0]
    for name in ("sampler_forward_gap", "ratio_error_before_first_update", "kl_before_first_update")
)
SAMPLER_KL = 2 * step_zero.LIMITS["sampler_kl"][0]  # of a mean rounding leaves next to nothing
KL_A_TEXT = 0.05  # nats: a healthy run of TRL in bfloat16 had 0.01 before its first update, the least bug 0.2
CENTRED, WHITE = 0.01, 0.05  # how far a whitened mean may be from 0, a standard deviation from 1
MOVED = 1e-5  # nats a token: an update that moved the policy


@dataclass(frozen=True)
class Sign:
    """What was seen, and which family of bugs it fits.

    evidence  numbers of the log, by name
    """

    family: str
    certain: bool
    says: str
    evidence: dict[str, float]


@dataclass(frozen=True)
class Rule:
    """A question to a log. `reads` names the columns without which it cannot be asked."""

    family: str
    certain: bool
    reads: tuple[str, ...]
    ask: Callable[[Log], tuple[str, dict[str, float]] | None]
    look_at: str

    def sign(self, log: Log) -> Sign | None:
        """The sign if it is there; None if not, and for a log that lacks a column."""
        seen = self.ask(log) if log.has(*self.reads) else None
        return None if seen is None else Sign(self.family, self.certain, *seen)


def thirds(values: list[float]) -> tuple[list[float], list[float]]:
    """The first third of a column and the last, one number each at the least."""
    size = max(1, len(values) // 3)
    return values[:size], values[-size:]


def has_risen(values: list[float]) -> bool:
    """Whether the last third is on average above the first value."""
    return mean(thirds(values)[1]) > values[0]


def score_scale(log: Log) -> float:
    """How large scores are, in their unit and wherever their zero lies: the highest mean, or the spread between texts.

    The spread is told from the mean's jumps between updates, sqrt(2 / texts) times as large when nothing is learned.
    """
    score, episodes = log["score"], log["episodes"]
    texts = episodes[1] - episodes[0] if len(episodes) > 1 else episodes[0]
    jumps = mean([(later - earlier) ** 2 for earlier, later in pairwise(score)] or [0.0])
    return max(*map(abs, score), (jumps * texts / 2) ** 0.5)


def ratios_stay_off(log: Log) -> bool | None:
    """Whether approx_kl stays where it is when the learning rate falls; None of a log that cannot tell.

    What optimiser steps do to it falls with the square of the rate; what else makes old and new log-probs differ stays.
    No sign by itself: one healthy run of 42, small and short as they are, moved as far at its last update.
    """
    moved, rates = log["approx_kl"], log["learning_rate"]
    if not moved or not rates or moved[0] < MOVED or not 0 < rates[-1] < 0.2 * rates[0]:
        return None
    return moved[-1] / moved[0] > 2 * rates[-1] / rates[0]


# --------------------------------------------------------------------------------- what right code cannot show


def _gap(log: Log):
    """The mean as well, where a log has it: with fewer bits it tells what the worst token leaves open."""
    first, (kl, *_) = log["sampler_forward_gap"][0], log["sampler_kl"] or [0.0]
    if first > GAP * log.slack:
        return f"the sampler's log-probabilities are up to {first:.3g} nats off a forward pass, before any update", {
            "sampler_forward_gap": first
        }
    if abs(kl) > SAMPLER_KL * log.slack:
        return f"the sampler's log-probabilities are {kl:.3g} nats a token off a forward pass, before any update", {
            "sampler_kl": kl
        }


def _negative_kl(log: Log):
    average = mean(log["kl_per_sequence"])
    if average < -0.1:
        return f"the KL is {average:.3g} nats a text on average; a KL cannot be negative", {"kl_per_sequence": average}


def _kl_at_start(log: Log):
    first = log["kl_per_sequence"][0]
    if log["update"][0] == 0 and abs(first) > KL_A_TEXT:
        return f"the KL is {first:.3g} nats a text before any update", {"kl_per_sequence": first}


def _sampler_at_start(log: Log):
    return None if ratios_stay_off(log) is False else _kl_at_start(log)


def _reference_at_start(log: Log):
    """Were it the sampler, the ratios, which hold its log-probabilities too, would be off 1 whatever the step."""
    return _kl_at_start(log) if ratios_stay_off(log) is False else None


def _two_references(log: Log):
    first = log["kl_before_first_update"][0]
    if first > KL_AT_START * log.slack:
        return f"policy and reference differ by {first:.3g} nats a token before any update", {
            "kl_before_first_update": first
        }


def _ratio(log: Log):
    first = log["ratio_error_before_first_update"][0]
    if first > RATIO_ERROR * log.slack:
        return f"the ratio is off 1 by up to {first:.3g} before any update", {"ratio_error_before_first_update": first}


def _reference_moves(log: Log):
    later, moved = log["kl_per_sequence"][1:], max(log["approx_kl"])
    if len(later) > 1 and moved > MOVED and max(map(abs, later)) < 1e-6:
        return (
            f"the KL stays {max(later):.3g} for {len(later)} updates, though the policy moves (approx_kl {moved:.3g})",
            {"kl_per_sequence": max(later), "approx_kl": moved},
        )


def _centred(log: Log):
    worst = max(log["advantage_mean"], key=abs)
    if abs(worst) > CENTRED and max(abs(std - 1) for std in log["advantage_std"]) < WHITE:
        return f"advantages have spread 1 but mean {worst:.3g}", {"advantage_mean": worst}


def _white(log: Log):
    widest = max(log["advantage_std"])
    if widest > 1 + WHITE:
        return f"advantages have spread {widest:.3g}, not 1", {"advantage_std": widest}


def _diluted(log: Log):
    narrowest = min(log["advantage_std"])
    if narrowest < 1 - WHITE:
        return f"advantages have spread {narrowest:.3g}, not 1: as if zeros were counted among them", {
            "advantage_std": narrowest
        }


def _schedule(log: Log):
    rates = log["learning_rate"]
    still = sum(rate <= 0 for rate in rates)
    if still > 1:
        return f"the learning rate is 0 in {still} of {len(rates)} updates", {"learning_rate": min(rates)}


# ------------------------------------------------------------------------------------------ patterns of the museum


def _nothing_arrives(log: Log):
    """Of the updates after the first third: a critic that begins at random explains nothing at the beginning."""
    explained = log["explained_variance"]
    later = explained[len(thirds(explained)[0]) :] or explained
    if mean(later) < -3:
        return (
            f"returns hardly vary beside what the critic says: explained variance {mean(later):.3g} on average",
            {"explained_variance": mean(later)},
        )


def _upside_down(log: Log):
    score, gold = log["score"], log["gold"]
    if len(score) == len(gold) > 3 and has_risen(score) and not has_risen(gold):
        together = max(_correlation(score, gold), _correlation(*(half(values) for values in (score, gold))))
        if together < -0.7:
            return (
                f"score and outside judge go opposite ways from the beginning (correlation {together:.2f})",
                {"score": mean(thirds(score)[1]), "gold": mean(thirds(gold)[1])},
            )


def _paid_many_times(log: Log):
    """Var(R) from the value loss (R - V)^2 / 2 and the explained variance 1 - Var(R - V) / Var(R)."""
    explained, scale = log["explained_variance"][0], score_scale(log)
    spread = (2 * log["value_loss"][0] / (1 - explained)) ** 0.5 if explained < 1 else 0.0
    if log["eos_rate"][0] < 0.95 and spread > 1.8 * scale > 0:
        return (
            f"returns are spread by {spread:.3g} at first, scores are no larger than {scale:.2g}, and "
            f"{1 - log['eos_rate'][0]:.0%} of the texts do not end",
            {"value_loss": log["value_loss"][0], "score_scale": scale, "eos_rate": log["eos_rate"][0]},
        )


def _unit_returns(log: Log):
    """Half of 1 is no matter of units: whitened advantages have spread 1 in any. What tells it is that it stays so."""
    lowest, highest = min(log["value_loss"]), max(log["value_loss"])
    if len(log["value_loss"]) > 3 and lowest > 0.4 and highest < 0.51:
        return (
            f"the value loss stays between {lowest:.3g} and {highest:.3g}: half the square of something of spread 1, "
            "whatever the critic learns",
            {"value_loss": highest},
        )


def _value_loss_rules(log: Log):
    """With scores in another unit the root of the loss grows as they do, and the gradient as their square."""
    pull = median(norm / loss**0.5 for norm, loss in zip(log["grad_norm_value"], log["value_loss"]) if loss > 0)
    scale = score_scale(log)
    if pull > 4 * scale > 0:
        return (
            f"the critic's gradient is {pull:.3g} times the root of its loss; scores are no larger than {scale:.2g}",
            {name: median(log[name]) for name in ("grad_norm_value", "value_loss")} | {"score_scale": scale},
        )


def _runaway(log: Log):
    late, score = mean(thirds(log["kl_per_token"])[1]), log["score"]
    if late > 1 and not has_risen(score):
        return (
            f"the KL reaches {late:.3g} nats a token, and the score has not risen for it",
            {"kl_per_token": late, "score": mean(thirds(score)[1])},
        )


def _over_optimised(log: Log):
    """Gold rises and then falls, by more than half of its rise, while the score and the KL go on rising.

    Windows of a fifth of the updates. If gold never rose, it may as well be the sign: `_upside_down` asks for that.
    """
    gold, score, kl = (log[name] for name in ("gold", "score", "kl_per_sequence"))
    width = max(3, len(gold) // 5)
    if not len(score) == len(gold) == len(kl) >= 2 * width:
        return None
    golds, scores, kls = (window_means(values, width) for values in (gold, score, kl))
    best = max(range(len(golds)), key=golds.__getitem__)
    rise, fall = golds[best] - golds[0], golds[best] - golds[-1]
    later = scores[-1] - scores[best] > chance(score, width) and kls[-1] - kls[best] > chance(kl, width)
    if later and rise > chance(gold, width) and fall > max(chance(gold, width), rise / 2):
        peak = best + width // 2
        return (
            f"gold falls from {golds[best]:.3g}, its best, about update {peak}, to {golds[-1]:.3g}; the score rises "
            f"meanwhile from {scores[best]:.3g} to {scores[-1]:.3g}, the KL from {kls[best]:.3g} to {kls[-1]:.3g} nats",
            {"gold": golds[-1], "best_gold": golds[best], "update_of_best_gold": peak, "score": scores[-1],
             "kl_per_sequence": kls[-1]},
        )  # fmt: skip


def half(values: list[float]) -> list[float]:
    """The first half of a column."""
    return values[: (len(values) + 1) // 2]


def _correlation(x: list[float], y: list[float]) -> float:
    """Pearson's; 0 if one of them never changes."""
    dx, dy = ([value - mean(values) for value in values] for values in (x, y))
    spread = (sum(a * a for a in dx) * sum(b * b for b in dy)) ** 0.5
    return sum(a * b for a, b in zip(dx, dy, strict=True)) / spread if spread else 0.0


RULES: tuple[Rule, ...] = (
    Rule("another distribution is sampled", True, ("sampler_forward_gap",), _gap,
         "temperature, top-p and top-k of the sampler; mask and positions under left padding; logits and tokens lined "
         "up without the shift; the action mask"),
    Rule("another distribution is sampled", True, ("kl_per_sequence",), _negative_kl,
         "what the log-probabilities in the KL were taken from: a forward pass under the policy that wrote the texts?"),
    Rule("another distribution is sampled", True, ("kl_per_sequence", "update"), _sampler_at_start,
         "log-probabilities from the sampler's scores, and what its generation_config does to them; policy and "
         "reference from other weights"),
    Rule("the reference differs", True, ("kl_before_first_update",), _two_references,
         "dropout; policy and reference from other weights"),
    Rule("the reference differs", True, ("kl_per_sequence", "update", "approx_kl", "learning_rate"),
         _reference_at_start, "which weights the reference was loaded from: those that the policy began with?"),
    Rule("the ratio is not 1 at the start", True, ("ratio_error_before_first_update",), _ratio,
         "dropout; masks and padding that differ between rollout and training"),
    Rule("the reference moves", True, ("kl_per_sequence", "approx_kl"), _reference_moves,
         "the reference is the policy, or shares its weights: it must be a frozen copy"),
    Rule("advantages are not centred", True, ("advantage_mean", "advantage_std"), _centred,
         "whitening that adds the mean back, or whitens minibatches, or other places than the loss reads"),
    Rule("advantages are not whitened", True, ("advantage_std",), _white,
         "whitening over padding as well"),
    Rule("means over the padding", True, ("advantage_std",), _diluted,
         "means that divide by all places, not by those that count"),
    Rule("the schedule ends early", True, ("learning_rate",), _schedule,
         "a schedule that is stepped for each epoch or minibatch; a resumed run that counts otherwise"),
    Rule("the score does not arrive", False, ("explained_variance",), _nothing_arrives,
         "where the score is paid: on the last action, or one slot late, or in the last column?"),
    Rule("the score is upside down", False, ("score", "gold"), _upside_down,
         "the sign of the reward; which of a pair the reward model was taught to prefer"),
    Rule("something is paid many times", False, ("value_loss", "explained_variance", "score", "episodes", "eos_rate"),
         _paid_many_times, "the penalty for a missing EOS: once for a text, or for each of its tokens?"),
    Rule("returns of whitened advantages", False, ("value_loss",), _unit_returns,
         "the order: returns first, from advantages as they are, and only then whitening"),
    Rule("the value loss rules", False, ("grad_norm_value", "value_loss", "score", "episodes"),
         _value_loss_rules,
         "the value coefficient that really reaches the loss; a layer that policy and critic share"),
    Rule("the KL runs away", False, ("kl_per_token", "score"), _runaway,
         "the sign of the KL penalty, its coefficient, and what it is averaged over"),
    Rule("the reward is over-optimised", False, ("score", "gold", "kl_per_sequence"), _over_optimised,
         "the reward rather than the code: samples, for what the score pays and gold does not; then a larger "
         "ppo.kl_coef, fewer ppo.updates, to stop where gold is best, or a better reward model, from more preferences "
         "and over texts of this policy"),
)  # fmt: skip
