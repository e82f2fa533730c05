"""What the command line says about memory before anything runs: a preset's budget, and whether it fits a GPU."""

from __future__ import annotations

import re
from pathlib import Path

from ..engine import frozen_trunk
from ..engine.files import brief
from ..engine.loading import load_config
from ..engine.memory_budget import GIB, Budget, ModelShape, Plan, estimate, remedies
from ..engine.memory_budget.known import SHAPES
from ..worlds.tldr.world import TLDR
from .errors import InputError, SettingsError
from .scales import world_of
from .settings import Settings, load_settings

FLOAT32 = 4  # bytes
NOT_OF_LEAN = "ppo.lean=true keeps less than this in all that was measured: the budget is of the plain pass"
UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def show(preset: str, changes: list[str], model: Path | None, prompt: int | None, gpu: str | None, **rest) -> bool:
    """The `memory` command: prints the budget; whether it fits, where a GPU was named.

    rest  fields of `Plan` that no setting decides
    """
    settings = load_settings(preset, changes)
    memory = None if gpu is None else bytes_of(gpu)
    try:
        shape = shape_of(model or world_of(settings).base_folder)
        plan = plan_of(settings, shape, prompt=prompt or longest_prompt(settings), **rest)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    budget = estimate(plan)
    print(budget)
    if settings.ppo.lean:
        print(NOT_OF_LEAN)
    if memory is not None:
        print("\n".join(verdict(budget, memory)))
    return memory is None or budget.fits(memory)


def verdict(budget: Budget, memory: int) -> list[str]:
    """Whether it fits so many bytes; if not, what would help."""
    room = memory - budget.peak
    if room >= 0:
        return [f"fits {memory / GIB:.2f} GiB with {room / GIB:.2f} to spare; the CUDA context and what the allocator "
                "holds without using it come out of that"]  # fmt: skip
    help_ = [f"  {less.peak / GIB:7.2f} GiB with {what}" for what, less in remedies(budget.plan)]
    return [f"does not fit {memory / GIB:.2f} GiB: {-room / GIB:.2f} GiB too much. It would take", *help_]


def plan_of(settings: Settings, policy: ModelShape, *, prompt: int, **rest) -> Plan:
    """The plan of a run's PPO stage. `prompt`: tokens of the longest; `rest`: what no setting decides, or not it."""
    ppo, top, engine = settings.ppo, settings.world.trainable_layers, settings.engine
    rest["gradient_checkpointing"] = rest.get("gradient_checkpointing") or engine.gradient_checkpointing
    if engine.precision != "float32" and rest.get("autocast") is None:
        rest["autocast"] = engine.precision
    if top is not None and rest.get("trainable_layers") is None:  # the preset's own frozen trunk
        rest |= dict(trainable_layers=top, shared_trunk=True)
        written = ppo.batch_size * ppo.updates
        texts = dict(prompts=written // ppo.samples_per_prompt, texts=written)
        rest["remembered"] = remembered_bytes(policy, top, **texts, prompt=prompt, response=ppo.response_length)
    return Plan(
        policy=policy, batch=ppo.batch_size, written=settings.world.sampled_at_once,
        micro_batch=ppo.micro_batch_size, minibatches=ppo.minibatches,
        prompt=prompt, response=ppo.response_length, skip_unread=ppo.skip_unread, entropy=ppo.entropy_coef > 0,
        fused_attention=engine.attention != "eager", **rest,
    )  # fmt: skip


def remembered_bytes(
    shape: ModelShape, trainable_layers: int, *, prompts: int, texts: int, prompt: int, response: int
) -> int:
    """What a frozen trunk remembers in the end: states of prompts and responses, and keys and values of prompts."""
    states = (prompts * prompt + texts * response) * shape.width
    keys_and_values = prompts * prompt * 2 * shape.keys * (shape.layers - trainable_layers)
    kept = min(frozen_trunk.STATES_BYTES, FLOAT32 * states), min(frozen_trunk.PROMPTS_BYTES, FLOAT32 * keys_and_values)
    return sum(kept)


def shape_of(source: str | Path) -> ModelShape:
    """The shape of the model in a folder, or of one on the Hub that is known or was fetched before."""
    from transformers import AutoConfig

    if str(source) in SHAPES:
        return SHAPES[str(source)]
    if Path(source).suffix == ".gguf":
        return ModelShape.of(load_config(source))
    try:
        return ModelShape.of(AutoConfig.from_pretrained(source, local_files_only=True))
    except (OSError, ValueError) as error:
        if Path(source).exists():
            raise InputError(f"the config in {source} cannot be read ({brief(error)}): name another folder") from None
        raise InputError(
            f"{source} is no folder here, and was not fetched from the Hub before: give the path of a model's folder "
            "with --model FOLDER or --set world.model=FOLDER"
        ) from None


def longest_prompt(settings: Settings) -> int:
    """Tokens, of all posts that the run will write about; of data that would have to be read first, their limit."""
    world = world_of(settings)
    if isinstance(world, TLDR):
        return world.longest_prompt
    posts = world.posts("ppo", settings.ppo.batch_size * settings.ppo.updates)
    return max(map(len, world.encode_prompts(posts)))


def bytes_of(text: str) -> int:
    """15GiB, "16 GB" or 24564MiB in bytes.

    raises  SettingsError for what is none of these
    """
    found = re.fullmatch(r"([\d.]+)\s*([kmg]?i?b)", text.strip().lower())
    try:
        return int(float(found[1]) * UNITS[found[2]])
    except (TypeError, ValueError, KeyError):
        raise SettingsError(f"{text!r} is no amount of memory; write for example 15GiB") from None
