"""What the settings ask of this machine, looked at before anything is written or trained."""

from __future__ import annotations

from pathlib import Path

import torch

from ..engine import hardware
from ..engine.lean import why_no_config_of_lean
from ..engine.loading import load_config
from .errors import SettingsError
from .settings import Settings


def device_of(settings: Settings) -> torch.device:
    """raises SettingsError if this machine has no such device."""
    try:
        return hardware.device_of(settings.engine.device)
    except ValueError as error:
        raise SettingsError(f"engine.device={settings.engine.device}: {error}") from None


def refuse_impossible(settings: Settings) -> None:
    """raises SettingsError for settings of the engine that do not go together, or not with this machine."""
    for reason, holds in _contradictions(settings).items():
        if holds:
            raise SettingsError(f"{reason}: change one of the two")
    engine, device = settings.engine, device_of(settings)
    checks = {
        f"engine.precision={engine.precision}": lambda: hardware.refuse_precision(engine.precision, device),
        f"engine.attention={engine.attention}": lambda: hardware.refuse_attention(
            engine.attention, engine.precision, device
        ),
        "engine.compile=true": lambda: engine.compile and hardware.refuse_to_compile(device),
    }
    for setting, check in checks.items():
        try:
            check()
        except ValueError as error:
            raise SettingsError(f"{setting}: {error}") from None


def refuse_lean_elsewhere(settings: Settings, base_folder: str | Path) -> None:
    """raises SettingsError if `ppo.lean` does not go with the base model: better now than after the reward model."""
    if settings.ppo.lean and (reason := why_no_config_of_lean(load_config(base_folder))):
        raise SettingsError(f"ppo.lean=true does not go with {base_folder}, {reason}: leave ppo.lean at false")


def _contradictions(settings: Settings) -> dict[str, bool]:
    engine, ppo = settings.engine, settings.ppo
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
    }  # fmt: skip
