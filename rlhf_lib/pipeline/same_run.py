"""Whether the output folder holds a run with these settings, and what may be changed in it on the way.

settings.json says what holds from the latest start on; changes.jsonl, what was changed after which step of which stage.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from ..engine import checkpoint, distributed
from ..engine.files import brief
from ..engine.run_folder import read_lines
from .errors import SettingsError
from .run import Run
from .settings import Settings, from_json, keys, value_of

DRAWS = "world.sampled_at_once"  # PPO draws for each row by itself, other stages for rows that are sampled together
BY_ROUNDING = {  # what changes results by rounding only: how a run goes on that ran out of memory
    "sft.micro_batch_size", "reward_model.micro_batch_size", "ppo.micro_batch_size", "engine.gradient_checkpointing",
    "engine.device", DRAWS,
}  # fmt: skip
CHANGES = "changes.jsonl"

Changed = dict[str, tuple[object, object]]  # by key: what it was, and what it is


def changed_settings(run: Run) -> Changed:
    """What a resumed run changes in the one that the folder holds.

    raises  SettingsError if it changes more than may be: mixing two runs helps nobody
    """
    there = _settings_in(run)
    if there is None:
        return {}
    changed = {
        key: (before, now)
        for key in ["preset", *keys(there)]
        if (before := value_of(there, key)) != (now := value_of(run.settings, key))
    }
    others = [key for key in changed if not run.resume or key not in BY_ROUNDING]
    if others:
        key = others[0]
        before, now = changed[key]
        resume = "add --resume to go on with it, or choose" if changed.keys() <= BY_ROUNDING else "choose"
        if run.resume:
            resume = "give again the settings that it was started with (settings.json there has them), or choose"
        raise SettingsError(
            f"{run.out.path} holds a run with {key}={before}, not {now}: {resume} another --out; to build on that "
            f"run's output, add --from {run.out.path}"
        )
    return changed


def record(run: Run, changed: Changed, stages: Sequence[str]) -> None:
    """Write down the settings, with which these stages are about to run; say aloud what has changed in them."""
    if changed and not stages:
        return  # nothing is made with them
    if changed:
        since = {"stage": stages[0], "steps_done": checkpoint.steps_done(run.out / "checkpoints" / stages[0])}
        row = {**since, "changed": {key: list(values) for key, values in changed.items()}}
        run.out.write_lines(CHANGES, [*changes(run), row])
        if distributed.is_main():
            print(_line(changed, stages), file=sys.stderr)
    run.out.write_json("settings.json", asdict(run.settings))


def changes(run: Run) -> list[dict]:
    """What was changed so far, and after which step of which stage."""
    path = run.out / CHANGES
    return read_lines(path) if path.exists() else []


def _settings_in(run: Run) -> Settings | None:
    path = run.out / "settings.json"
    if not path.exists():
        return None
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SettingsError(
            f"{path} cannot be read as settings of this version ({brief(error)}): choose another --out"
        ) from None


def _line(changed: Changed, stages: Sequence[str]) -> str:
    words = ", ".join(f"{key}={now} (it was {before})" for key, (before, now) in changed.items())
    drawing = [stage for stage in stages if stage in ("preferences", "evaluation")]
    but = f"; texts in {' and '.join(drawing)} are other draws" if DRAWS in changed and drawing else ""
    return f"stage {stages[0]} goes on with {words}: this changes results by rounding only{but}"
