"""The scales: what each world brings along, and what the pipeline puts in where it brings nothing.

One code path runs them all; `settings.world.name` picks a line of SCALES, and the presets in `settings` do the rest.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..worlds.smollm2 import SmolTLDR
from ..worlds.tiny_tldr.world import TinyTLDR
from ..worlds.tldr.world import TLDR
from ..worlds.world import World
from . import comparisons, evaluation, given
from .comparisons import Preferences
from .errors import SettingsError
from .evaluation import Judge
from .run import Run
from .settings import Settings, value_of


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How a world is made, where its preferences come from, and who judges in the evaluation.

    look_at_data  reads what the stages will need, before anything long starts; returns what is to be kept of it
    hold_against  holds a report against the numbers of others; returns what it shall say of them
    ignores       settings that mean nothing here, and whose they are
    """

    world: Callable[[Settings], World]
    collect_preferences: Callable[[Run], None]
    load_preferences: Callable[[Run], Preferences]
    judge: Judge
    look_at_data: Callable[[Run, Sequence[str]], dict] = lambda run, stages: {}
    hold_against: Callable[[Run, dict], dict] = lambda run, report: {}
    ignores: Mapping[str, str] = field(default_factory=dict)


def tiny_world(settings: Settings) -> World:
    return TinyTLDR(settings.seed, repetition=settings.writers.repetition)


def smol_world(settings: Settings) -> World:
    return SmolTLDR(settings.seed, model=settings.world.model, repetition=settings.writers.repetition)


def tldr_world(settings: Settings) -> World:
    data, model = settings.data, settings.world.model
    if model is None:
        raise SettingsError("world.model=none: the world tldr has no model of its own, name a folder or one on the Hub")
    return TLDR(
        settings.seed, model=model, references=data.references, preferences=data.preferences,
        skip_broken=data.skip_broken,
    )  # fmt: skip


OF_TLDR = dict.fromkeys(("data.references", "data.preferences", "data.skip_broken"), "tldr")
SCALES = {
    "smollm2": Scale(
        world=smol_world,
        collect_preferences=comparisons.collect,
        load_preferences=comparisons.load,
        judge=evaluation.by_gold,
        ignores=OF_TLDR,
    ),
    "tiny": Scale(
        world=tiny_world,
        collect_preferences=comparisons.collect,
        load_preferences=comparisons.load,
        judge=evaluation.by_gold,
        ignores={**OF_TLDR, "world.model": "smollm2 and tldr"},
    ),
    "tldr": Scale(
        world=tldr_world,
        collect_preferences=given.say_where_from,
        load_preferences=given.load,
        judge=evaluation.by_reward_model,
        look_at_data=given.look_at_data,
        hold_against=given.hold_against,
        ignores={"writers.repetition": "tiny and smollm2"},
    ),
}


def scale_of(settings: Settings) -> Scale:
    """raises SettingsError if there is no such world, with the nearest name."""
    if (name := settings.world.name) not in SCALES:
        nearest = difflib.get_close_matches(name, SCALES, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(SCALES)}"
        raise SettingsError(f"world.name={name}: there is no such world; {hint}")
    return SCALES[name]


def world_of(settings: Settings) -> World:
    """The world in which a run with these settings takes place.

    raises  SettingsError if one of them would have no effect in it
    """
    scale = scale_of(settings)
    for key, whose in scale.ignores.items():
        if value_of(settings, key) != value_of(Settings(), key):
            raise SettingsError(
                f"{key}={value_of(settings, key)} has no effect in the world {settings.world.name}, only in {whose}: "
                "leave it out, or choose a preset of that world"
            )
    return scale.world(settings)
