"""Runs that are very small: a step or three a stage, a handful of posts, all of it real."""

from __future__ import annotations

from pathlib import Path

from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.engine.run_folder import RunFolder
from rlhf_lib.pipeline.run import Run
from rlhf_lib.pipeline.settings import load_settings
from rlhf_lib.worlds.tiny_tldr.world import TinyTLDR

SMALL = (
    "sft.steps=2", "sft.batch_size=8",
    "preferences.posts=6", "preferences.samples_per_post=3", "preferences.held_out_posts=4",
    "reward_model.steps=3", "reward_model.posts_per_batch=2",
    "ppo.updates=2", "ppo.batch_size=8", "ppo.epochs=2", "ppo.response_length=12",
    "evaluation.posts=12", "evaluation.bootstrap=50", "engine.device=cpu",
)  # fmt: skip


def silent(stage, steps, total, done=0):
    return steps


def small_run(
    out: Path, *changes: str, source: Path | None = None, seed: int = 0, parts: Parts = Parts(), **rest
) -> Run:
    settings = load_settings("tiny", [*SMALL, *changes], seed=seed)
    return Run(settings, TinyTLDR(seed), RunFolder(out), RunFolder(source or out), parts, silent, **rest)
