"""What the settings ask of this machine, looked at before anything is written or trained."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..engine import distributed, hardware
from ..engine.lean import why_no_config_of_lean
from ..engine.loading import load_config
from .errors import SettingsError
from .settings import Settings

# What `accelerate launch` says of its own settings, by the variable in which it says so: nothing of it may be ignored
MIXED_PRECISION = {"bf16": "bfloat16", "fp16": "float16", "fp8": "float8"}
NOT_OURS = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM, and a run takes models of Transformers as they are",
}
FSDP2 = {  # what engine.sharding=fsdp2 is in these words; what is not said is not asked for
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "transformer_based_wrap",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "full_state_dict",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}
DEEPSPEED = {  # what engine.sharding=zero2 and zero3 are, likewise, but for the stage
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_GRADIENT_CLIPPING": "none",
}
LAUNCHED_BY = {"fsdp2": "fsdp2.yaml", "zero2": "deepspeed_zero2.yaml", "zero3": "deepspeed_zero3.yaml"}


def device_of(settings: Settings) -> torch.device:
    """raises SettingsError if this machine has no such device."""
    try:
        return hardware.device_of(settings.engine.device)
    except ValueError as error:
        raise SettingsError(f"engine.device={settings.engine.device}: {error}") from None


def refuse_impossible(settings: Settings) -> None:
    """raises SettingsError for settings of the engine that do not go together, or not with this machine."""
    refuse_other_launch(settings)
    refuse_contradictions(settings)
    _refuse_idle_processes(settings)
    engine, device = settings.engine, device_of(settings)
    checks = {
        f"engine.precision={engine.precision}": lambda: hardware.refuse_precision(engine.precision, device),
        f"engine.attention={engine.attention}": lambda: hardware.refuse_attention(
            engine.attention, engine.precision, device
        ),
        "engine.compile=true": lambda: engine.compile and hardware.refuse_to_compile(device),
        f"engine.sharding={engine.sharding}": lambda: _refuse_to_share_out(engine.sharding),
    }
    for setting, check in checks.items():
        try:
            check()
        except ValueError as error:
            raise SettingsError(f"{setting}: {error}") from None


def _refuse_to_share_out(sharding: str) -> None:
    """raises ValueError if what does it is not here."""
    if sharding == "fsdp2":
        hardware.refuse_to_shard()
    elif sharding != "none" and distributed.size() > 1:
        hardware.refuse_without_deepspeed()


def refuse_contradictions(settings: Settings) -> None:
    """raises SettingsError for settings that do not go together, on whatever machine."""
    for reason, holds in _contradictions(settings).items():
        if holds:
            raise SettingsError(f"{reason}: change one of the two")


def _refuse_idle_processes(settings: Settings) -> None:
    """Whoever holds a part of a model takes part in each of its passes, with a row at least."""
    rows = {
        "sft.batch_size": settings.sft.batch_size,
        "reward_model.posts_per_batch": settings.reward_model.posts_per_batch,
        "ppo.batch_size / ppo.minibatches": settings.ppo.batch_size // settings.ppo.minibatches,
    }
    for name, count in rows.items():
        if settings.engine.sharding != "none" and count < distributed.size():
            raise SettingsError(
                f"{name} = {count} is too few for {distributed.size()} processes with "
                f"engine.sharding={settings.engine.sharding}: raise it, or start fewer processes"
            )


def refuse_other_model(settings: Settings, base_folder: str | Path) -> None:
    """raises SettingsError for settings that do not go with the base model: better now than after the reward model."""
    top, lean = settings.world.trainable_layers, settings.ppo.lean
    config = load_config(base_folder) if top is not None or lean else None
    if top is not None and top > (there := getattr(config, "num_hidden_layers", top)):
        raise SettingsError(
            f"world.trainable_layers={top} is more than {base_folder} has: choose from 1 to {there}, or none to train "
            "it whole"
        )
    if lean and (reason := why_no_config_of_lean(config)):
        raise SettingsError(f"ppo.lean=true does not go with {base_folder}, {reason}: leave ppo.lean at false")


def refuse_other_launch(settings: Settings) -> None:
    """raises SettingsError if `accelerate launch` was told what this run would not do: its settings decide, alone."""
    precision = settings.engine.precision
    wanted = MIXED_PRECISION.get(os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower(), precision)
    if wanted != precision:
        raise SettingsError(
            f"accelerate launch asks for {wanted}, but engine.precision={precision}: say it with --set "
            "engine.precision=..., and leave --mixed_precision out"
        )
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if compiler != "no" and not settings.engine.compile:
        raise SettingsError(
            f"accelerate launch asks for torch.compile ({compiler}), but engine.compile=false: say it with --set "
            "engine.compile=true, and leave --dynamo_backend out"
        )
    for variable, what in NOT_OURS.items():
        if _is_on(variable):
            raise SettingsError(f"accelerate launch asks for {what}: start it as docs/processes.md says")
    if _is_on("ACCELERATE_USE_FSDP"):
        _refuse_other_parts(settings, "FSDP", ("fsdp2",), FSDP2)
    if _is_on("ACCELERATE_USE_DEEPSPEED"):
        stage = {"ACCELERATE_DEEPSPEED_ZERO_STAGE": settings.engine.sharding[-1]}
        _refuse_other_parts(settings, "DeepSpeed", ("zero2", "zero3"), stage | DEEPSPEED)


def _refuse_other_parts(settings: Settings, asked_for: str, ours: tuple[str, ...], wanted: dict[str, str]) -> None:
    sharding = settings.engine.sharding
    if sharding not in ours:
        raise SettingsError(
            f"accelerate launch asks for {asked_for}, but engine.sharding={sharding}: say it with --set "
            f"engine.sharding={' or '.join(ours)} as well, or take configs/accelerate/ddp.yaml"
        )
    for variable, value in wanted.items():
        if (asked := os.environ.get(variable, value).lower()) != value:
            raise SettingsError(
                f"accelerate launch asks for {variable.lower()}={asked}, and a run has {value}: take "
                f"configs/accelerate/{LAUNCHED_BY[sharding]}"
            )


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


def _contradictions(settings: Settings) -> dict[str, bool]:
    engine, ppo = settings.engine, settings.ppo
    parts = f"engine.sharding={engine.sharding}"
    by_deepspeed = engine.sharding in ("zero2", "zero3")
    hooks = "its hooks on the last layer are not there when that layer"
    return {
        f"ppo.lean=true computes in float32, not with engine.precision={engine.precision}": ppo.lean
        and engine.precision != "float32",
        f"ppo.lean=true brings its own attention, not engine.attention={engine.attention}": ppo.lean
        and engine.attention != "sdpa",
        "ppo.lean=true does not go with engine.gradient_checkpointing=true: it keeps less by itself": ppo.lean
        and engine.gradient_checkpointing,
        "ppo.lean=true does not go with engine.compile=true: it does not run the model's own layers": ppo.lean
        and engine.compile,
        f"ppo.skip_unread=true does not go with engine.gradient_checkpointing=true: {hooks} runs again": ppo.skip_unread
        and engine.gradient_checkpointing,
        f"ppo.skip_unread=true does not go with engine.compile=true: {hooks} has been compiled": ppo.skip_unread
        and engine.compile,
        f"ppo.lean=true does not go with {parts}: it does not run the model's own layers": ppo.lean
        and engine.sharding != "none",
        f"world.trainable_layers does not go with {parts}: all models share the layers below":
        settings.world.trainable_layers is not None and engine.sharding != "none",
        f"{parts} does not go with engine.precision=float16: DeepSpeed takes the gradients before they are unscaled":
        by_deepspeed and engine.precision == "float16",
        f"{parts} does not go with engine.compile=true: nobody has tried": by_deepspeed and engine.compile,
    }  # fmt: skip
