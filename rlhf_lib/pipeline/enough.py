"""Whether a run fits its GPU and its disk, said before it starts rather than found out hours later."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..engine import checkpoint, distributed
from ..engine.memory_budget import GIB, Budget, ModelShape, Plan, estimate, remedies
from .errors import InputError, SettingsError
from .machine import refuse_contradictions
from .memory import plan_of, shape_of
from .run import Run
from .settings import Settings, change

FLOAT32 = 4  # bytes
WORTH_ASKING = GIB  # a run that needs less of its disk is let through
TRAINED = {"sft": ("policy",), "reward_model": ("critic",), "ppo": ("policy", "critic")}
IN_SETTINGS: dict[str, Callable[[Plan], str]] = {  # what a remedy changes in a plan, and how one asks for it
    "written": lambda plan: f"world.sampled_at_once={plan.written}",
    "batch": lambda plan: f"ppo.batch_size={plan.batch * distributed.size()}",
    "micro_batch": lambda plan: f"ppo.micro_batch_size={plan.micro_batch}",
    "gradient_checkpointing": lambda plan: "engine.gradient_checkpointing=true",
    "shared_trunk": lambda plan: f"world.trainable_layers={plan.trainable_layers}",
}


def refuse_too_little(run: Run, stages: Sequence[str]) -> None:
    """raises SettingsError naming what is needed, what there is and what to lower, if memory or disk cannot suffice"""
    shape = _shape_of_base(run)
    if shape is None:
        return
    if run.device.type == "cuda" and "ppo" in stages:
        free, _ = torch.cuda.mem_get_info(run.device)
        refuse_too_little_memory(run, shape, free=free, card=torch.cuda.get_device_name(run.device))
    if distributed.is_main():
        refuse_too_little_disk(run, shape, stages, free=shutil.disk_usage(run.out.path).free)


def plan_of_run(run: Run, shape: ModelShape) -> Plan:
    """The PPO stage of this process."""
    plan = plan_of(run.settings, shape, prompt=run.world.longest_prompt, device="cuda")
    return replace(plan, batch=max(plan.minibatches, plan.batch // distributed.size()))


def refuse_too_little_memory(run: Run, shape: ModelShape, *, free: int, card: str) -> None:
    """Of the PPO stage, by the estimate; `free` bytes on the `card`."""
    budget = estimate(plan_of_run(run, shape))
    if budget.fits(free):
        return
    what_helps = "; ".join(_help(run, shape, budget)) or "choose a smaller world.model"
    raise SettingsError(
        f"PPO needs {budget.peak / GIB:.1f} GiB of GPU memory by our estimate, and {card} has {free / GIB:.1f} GiB "
        f"free: {what_helps}; python -m rlhf_lib memory --preset {run.settings.preset} shows where it goes"
    )


def _help(run: Run, shape: ModelShape, budget: Budget, most: int = 3) -> Iterator[str]:
    """Settings that lower the peak, the best first, and where each leads: a trunk then remembers what it has read."""
    found = {}
    for setting in filter(None, (_in_settings(budget.plan, less.plan) for _, less in remedies(budget.plan))):
        if settings := with_change(run.settings, setting):
            found[setting] = estimate(plan_of_run(replace(run, settings=settings), shape)).peak
    for setting in sorted(found, key=found.get)[:most]:
        yield f"{setting} takes {found[setting] / GIB:.1f}"


def _in_settings(plan: Plan, less: Plan) -> str | None:
    """How one asks for what makes the one plan the other, where a setting decides it."""
    changed = [name for name in IN_SETTINGS if getattr(less, name) != getattr(plan, name)]
    return IN_SETTINGS[changed[-1]](less) if changed else None


def with_change(settings: Settings, setting: str) -> Settings | None:
    """The settings with `key=value`, or None if a run with them would be refused."""
    key, _, value = setting.partition("=")
    try:
        changed = change(settings, key, value)
        refuse_contradictions(changed)
    except SettingsError:
        return None
    return changed


def refuse_too_little_disk(run: Run, shape: ModelShape, stages: Sequence[str], *, free: int) -> None:
    """Of what the stages leave in the output folder, as far as it is not there yet; `free` bytes on its disk.

    While a checkpoint is written, the older ones are still there.
    """
    plan = plan_of_run(run, shape)
    left = sum(bytes_left_by(stage, plan) - _bytes_in(run.out / "checkpoints" / stage) for stage in stages)
    needed = left + max((_bytes_of_checkpoint(stage, plan) for stage in stages), default=0)
    if needed > max(free, WORTH_ASKING):
        raise SettingsError(
            f"the run needs {needed / GIB:.1f} GiB in {run.out.path} for models and checkpoints with their moments, "
            f"and its disk has {free / GIB:.1f} GiB free: make room, or choose an --out on another disk"
        )


def bytes_left_by(stage: str, plan: Plan) -> int:
    """Models that the stage saves, and its last checkpoints."""
    whole = {"policy": plan.policy.policy, "critic": plan.policy.scorer}
    models = sum(whole[model] for model in TRAINED.get(stage, ()))
    return FLOAT32 * models + checkpoint.KEPT * _bytes_of_checkpoint(stage, plan)


def _bytes_of_checkpoint(stage: str, plan: Plan) -> int:
    """What learns, with two moments for every weight."""
    return FLOAT32 * 3 * sum(map(plan.trainable, TRAINED.get(stage, ())))


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _shape_of_base(run: Run) -> ModelShape | None:
    """None where it cannot be known beforehand: a family whose operations nobody has counted."""
    try:
        return shape_of(run.world.base_folder)
    except (InputError, ValueError):
        return None
