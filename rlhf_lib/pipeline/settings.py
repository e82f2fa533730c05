"""All settings of a run in one record, the presets, and `key=value` changes with errors that name the nearest key."""

from __future__ import annotations

import difflib
import json
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from operator import attrgetter

from ..algorithms import bounds
from ..algorithms.ppo import PPOConfig
from ..algorithms.reward_model import RewardModelConfig
from ..algorithms.sft import SFTConfig
from ..worlds.tldr import PREFERENCE_DATA, SFT_DATA
from .errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Where a run takes place; see `scales`."""

    name: str = "tiny"  # one of scales.SCALES
    model: str | None = None  # the base model: a folder, a .gguf file or a name on the Hub; None: the world's own
    trainable_layers: int | None = None  # only so many top layers learn, the rest is held once; None: whole models
    sampled_at_once: int = 512  # rows; decides what memory sampling takes

    def __post_init__(self):
        bounds.at_least(1, self, "trainable_layers", "sampled_at_once")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the world "tldr" reads; the other worlds make their posts. See worlds/tldr/rows.py for the schema.

    Each is the name of a data set on the Hub, also as owner/name@revision, or a folder with a file for each split:
    train.jsonl, or train-00000-of-00002.parquet and so on.
    """

    references: str = SFT_DATA  # posts with a summary; splits train and test
    preferences: str = PREFERENCE_DATA  # two summaries of a post, one chosen; splits train and validation
    skip_broken: bool = False  # leave out rows that cannot be used, and name them; else the first one ends the run


@dataclass(frozen=True, kw_only=True)
class WritersConfig:
    """Who writes the reference summaries, beyond what the world's writers do anyway."""

    repetition: float = 0.0  # share of the references that say everything twice

    def __post_init__(self):
        bounds.share(self, "repetition")


@dataclass(frozen=True, kw_only=True)
class PreferencesConfig:
    """Which summaries are compared, and by whom. Where the data have the answers, only how many of them are used."""

    posts: int = 1500  # each gives samples_per_post * (samples_per_post - 1) / 2 pairs
    samples_per_post: int = 4  # summaries of one post, all compared with each other (Ouyang et al. 2022)
    temperature: float = 0.7  # of the SFT policy that writes them; the one PPO uses
    label_scale: float = 0.8  # P(a chosen over b) = sigmoid(label_scale * (gold a - gold b)); sets the ceiling
    title_bias: float = 0.0  # log-odds that readers add for agreement with the whole title; 0: they judge by gold alone
    length_bias: float = 0.0  # log-odds that readers add for each word, as people do (Stiennon et al. 2020)
    held_out_posts: int = 700  # for measuring the reward model: 4,200 pairs

    def __post_init__(self):
        bounds.at_least(1, self, "posts", "held_out_posts")
        bounds.at_least(2, self, "samples_per_post")
        bounds.above_zero(self, "temperature", "label_scale")
        bounds.at_least(0, self, "title_bias", "length_bias")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How summaries are compared at the end."""

    posts: int = 512  # held out
    temperature: float = 0.7  # of all policies; the one PPO trained at
    matched_length: int = 1  # words: pairs whose lengths differ by at most this count as matched
    bootstrap: int = 2000  # resamples of the posts for the 95 % interval

    def __post_init__(self):
        bounds.at_least(1, self, "posts", "bootstrap")
        bounds.at_least(0, self, "temperature", "matched_length")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """On what a run is computed, and in which numbers; see docs/precision.md."""

    device: str = "auto"  # cpu, cuda; auto: the GPU if there is one. Of several processes each takes its own
    precision: str = "float32"  # bfloat16, float16: products of the models' bodies; weights and losses stay float32
    attention: str = "sdpa"  # PyTorch's kernels; eager: operation by operation; flash_attention_2: package flash-attn
    gradient_checkpointing: bool = False  # layers run again for their backward pass: less memory, the same bits
    compile: bool = False  # torch.compile for the layers, but not while sampling; changes results by rounding only
    sharding: str = "none"  # fsdp2, zero2, zero3: of several processes each holds its part; see docs/processes.md

    def __post_init__(self):
        _one_of(self, "device", "auto", "cpu", "cuda")
        _one_of(self, "precision", "float32", "bfloat16", "float16")
        _one_of(self, "attention", "sdpa", "eager", "flash_attention_2")
        _one_of(self, "sharding", "none", "fsdp2", "zero2", "zero3")


def _one_of(config: object, name: str, *known: str) -> None:
    if getattr(config, name) not in known:
        raise ValueError(f"{name} must be {', '.join(known[:-1])} or {known[-1]}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a run's result."""

    preset: str = "tiny"
    seed: int = 0
    world: WorldConfig = field(default_factory=WorldConfig)
    data: DataConfig = field(default_factory=DataConfig)
    writers: WritersConfig = field(default_factory=WritersConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    preferences: PreferencesConfig = field(default_factory=PreferencesConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self):
        bounds.at_least(0, self, "seed")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


# Where the tiny world departs from N+: its model is a thousand times smaller and starts close to the task, so the
# learning rates are higher, gradients are clipped (SFT and reward model), and the loss leaves out the random posts.
TINY = Settings(
    preset="tiny",
    sft=SFTConfig(steps=150, batch_size=64, learning_rate=3e-4, max_grad_norm=1.0, imitate_query=False),
    preferences=PreferencesConfig(),
    reward_model=RewardModelConfig(
        steps=180, posts_per_batch=16, learning_rate=3e-4, head_learning_rate=3e-3, max_grad_norm=1.0
    ),
    ppo=PPOConfig(updates=30, batch_size=128, learning_rate=1e-4),
)

# Goodhart's law on purpose (Gao et al. 2022): readers who like length, and no KL penalty. The policy first learns what
# readers are right about; then it finds that saying everything twice, which a few writers do, pleases them more than it
# costs, and gold falls. Written at temperature 1, the preferences show the reward model enough of that to learn it.
TINY_OVEROPTIMISED = replace(
    TINY,
    preset="tiny-overoptimised",
    writers=WritersConfig(repetition=0.06),
    preferences=replace(TINY.preferences, temperature=1.0, length_bias=0.33),
    ppo=replace(TINY.ppo, updates=24, kl_coef=0.0),
)

# A real pretrained model on a CPU: only its top layers learn. Reading a post with the frozen rest costs as much as many
# of their steps, so eight summaries are written below each: for the preferences, where readers' noise evens out in
# 28 pairs, and for PPO. Those to compare are written at temperature 1: at 0.7 a third of the pairs are ties.
# Two layers learned the preferences sooner than four, and at 3e-3 in half as many steps as at 1e-3 (one run each). The
# critic starts from scores that are only read at an EOS, so its values may move by 5, not by N+'s 0.2. With four steps
# of an epoch it explained 0.2 to 0.7 of the returns' variance from the fifth update on (two seeds), with one step
# (another run) from the eighth.
SMOLLM2 = Settings(
    preset="smollm2",
    world=WorldConfig(name="smollm2", trainable_layers=2, sampled_at_once=64),
    sft=SFTConfig(
        steps=60, batch_size=16, micro_batch_size=16, learning_rate=5e-4, max_grad_norm=1.0, imitate_query=False
    ),
    preferences=PreferencesConfig(posts=512, samples_per_post=8, temperature=1.0, held_out_posts=64),
    reward_model=RewardModelConfig(
        steps=160, posts_per_batch=8, micro_batch_size=224, learning_rate=3e-3, head_learning_rate=3e-3,
        max_grad_norm=1.0,
    ),
    ppo=PPOConfig(
        updates=12, batch_size=256, samples_per_prompt=8, minibatches=4, micro_batch_size=64, learning_rate=1e-4,
        value_clip=5.0, response_length=16, lean=True,
    ),
    evaluation=EvaluationConfig(posts=256),
)  # fmt: skip

# The TL;DR of N+ (Huang et al. 2024): what is not said here is a default, and the defaults are those of N+.
TLDR_PYTHIA_1B = Settings(
    preset="tldr-pythia-1b",
    world=WorldConfig(name="tldr", model="EleutherAI/pythia-1b-deduped", sampled_at_once=128),
    sft=SFTConfig(steps=912, batch_size=128, micro_batch_size=8),  # one pass over 116,722 posts
    preferences=PreferencesConfig(posts=92_858, held_out_posts=83_802),  # all
    reward_model=RewardModelConfig(steps=1451, posts_per_batch=64, micro_batch_size=4),  # one pass
    ppo=PPOConfig(updates=1953, batch_size=512, micro_batch_size=8, response_length=53),  # a million episodes
    evaluation=EvaluationConfig(posts=6_553, temperature=0.01, matched_length=3),  # all of the split "test"
    engine=EngineConfig(precision="bfloat16"),
)
TLDR_LLAMA_1B = replace(
    TLDR_PYTHIA_1B,
    preset="tldr-llama-1b",
    world=replace(TLDR_PYTHIA_1B.world, model="meta-llama/Llama-3.2-1B"),
)

# For 15 GiB and no bfloat16, as on a free Colab: a smaller Pythia, so that token counts are still those of N+, and a
# twentieth of the episodes.
TLDR_T4 = replace(
    TLDR_PYTHIA_1B,
    preset="tldr-t4",
    world=WorldConfig(name="tldr", model="EleutherAI/pythia-160m-deduped", sampled_at_once=64),
    preferences=replace(TLDR_PYTHIA_1B.preferences, held_out_posts=8_192),
    ppo=replace(TLDR_PYTHIA_1B.ppo, updates=390, batch_size=128),
    evaluation=replace(TLDR_PYTHIA_1B.evaluation, posts=1024),
    engine=EngineConfig(precision="float16"),
)

PRESETS = {
    settings.preset: settings
    for settings in (TINY, TINY_OVEROPTIMISED, SMOLLM2, TLDR_PYTHIA_1B, TLDR_LLAMA_1B, TLDR_T4)
}


def load_settings(preset: str, overrides: list[str] | None = None, *, seed: int | None = None) -> Settings:
    """A preset with `key=value` changes, for example "ppo.kl_coef=0.1".

    raises  SettingsError for an unknown preset or key (naming the nearest) and for an impossible value
    """
    if preset not in PRESETS:
        raise SettingsError(f"there is no preset {preset!r}{_nearest(preset, list(PRESETS))}")
    settings = PRESETS[preset] if seed is None else change(PRESETS[preset], "seed", str(seed))
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals:
            raise SettingsError(f"{override!r} should read key=value, for example ppo.kl_coef=0.1")
        settings = change(settings, key.strip(), value.strip())
    return settings


def change(settings: Settings, key: str, value: str) -> Settings:
    """The settings with one dotted key set from text."""
    if key not in (known := keys(settings)) or key == "preset":
        raise SettingsError(f"there is no setting {key!r}{_nearest(key, known)}")
    *path, name = key.split(".")
    owner = getattr(settings, path[0]) if path else settings
    try:
        changed = replace(owner, **{name: _read(value, typing.get_type_hints(type(owner))[name])})
        return replace(settings, **{path[0]: changed}) if path else changed
    except ValueError as error:
        raise SettingsError(f"{key}={value}: {error}") from None


def keys(settings: Settings) -> list[str]:
    """All dotted keys."""
    found = []
    for part in fields(settings):
        value = getattr(settings, part.name)
        inner = fields(value) if is_dataclass(value) else []
        found += [f"{part.name}.{leaf.name}" for leaf in inner] or [part.name]
    return [key for key in found if key != "preset"]


def value_of(settings: Settings, key: str) -> object:
    """The value behind a dotted key."""
    return attrgetter(key)(settings)


def from_json(text: str) -> Settings:
    """The settings written by `Settings.to_json`."""
    hints, data = typing.get_type_hints(Settings), json.loads(text)
    return Settings(**{k: hints[k](**v) if isinstance(v, dict) else v for k, v in data.items()})


def _read(text: str, kind: type) -> object:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in options and text.lower() in ("none", "off"):
        return None
    if bool in options:
        if text.lower() not in ("true", "false"):
            raise ValueError("must be true or false")
        return text.lower() == "true"
    try:
        return int(text) if int in options else float(text) if float in options else text
    except ValueError:
        raise ValueError(f"must be {'a whole number' if int in options else 'a number'}") from None


def _nearest(name: str, known: list[str]) -> str:
    leaves = {key.rpartition(".")[2]: key for key in known}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    close = close or [leaves[leaf] for leaf in difflib.get_close_matches(name.rpartition(".")[2], leaves, n=1)]
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"
