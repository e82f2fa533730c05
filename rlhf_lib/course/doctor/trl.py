"""The log of TRL 1.12.0's PPO trainer in our names: as read in its source, and as it is in logs that it wrote.

Such logs are kept beside the museum's (`python -m benchmarks.trl_logs` makes them): `recorded_by_trl()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

RECORDED = Path(__file__).parent.parent / "recorded"

# Not read, since it measures something else: policy/entropy_avg is a mean over padding too, where the policy says what
# it would have written after its EOS; objective/entropy is a sum over a text; val/ratio is a mean, ours a maximum.
TRL_NAMES = {
    "objective/kl": "kl_per_sequence",
    "objective/scores": "score",
    "policy/clipfrac_avg": "clip_fraction",
    "policy/approxkl_avg": "approx_kl",
    "loss/policy_avg": "policy_loss",
    "loss/value_avg": "value_loss",
    "lr": "learning_rate",
    "episode": "episodes",
}
TRL_DIFFERS = {
    "objective/scores": "less missing_eos_penalty for each text without EOS",
    "policy/approxkl_avg": "padding counts with 0, so it is smaller",
    "loss/value_avg": "over one slot more: the one after the EOS",
}


def in_our_names(row: Mapping[str, object]) -> dict[str, object]:
    """A row with TRL's names exchanged for ours; other rows stay as they are.

    TRL logs once for each update and counts from 1 what we count from 0.
    """
    renamed = {TRL_NAMES.get(name, name): value for name, value in row.items()}
    if "objective/kl" in row and isinstance(row.get("step"), int):
        renamed["update"] = row["step"] - 1
    return renamed


def recorded_by_trl() -> dict[str, Path]:
    """The logs that ship, by what was done wrong ("healthy": nothing)."""
    return {
        path.stem.removeprefix("08_trl_").replace("_", " "): path for path in sorted(RECORDED.glob("08_trl_*.json"))
    }
