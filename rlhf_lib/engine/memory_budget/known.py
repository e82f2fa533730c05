"""Shapes of models on the Hub that presets name: a budget needs nothing to be fetched, and no licence accepted."""

from __future__ import annotations

from .shape import ModelShape

PYTHIA = dict(family="gpt_neox", vocabulary=50_304)  # a quarter of each head turns
SHAPES = {
    "EleutherAI/pythia-160m-deduped": ModelShape(
        layers=12, width=768, heads=12, feed_forward=3072, rotated=16, **PYTHIA
    ),
    "EleutherAI/pythia-410m-deduped": ModelShape(
        layers=24, width=1024, heads=16, feed_forward=4096, rotated=16, **PYTHIA
    ),
    "EleutherAI/pythia-1b-deduped": ModelShape(layers=16, width=2048, heads=8, feed_forward=8192, rotated=64, **PYTHIA),
    "meta-llama/Llama-3.2-1B": ModelShape(
        layers=16, width=2048, heads=32, kv_heads=8, feed_forward=8192, vocabulary=128_256, tied=True
    ),
}  # fmt: skip
