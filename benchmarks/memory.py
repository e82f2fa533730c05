"""The memory budget of a PPO update: predicted from shapes, then measured; live tensors, and the process beside them.

    python -m benchmarks.memory                     # the table
    python -m benchmarks.memory --record            # and the record that lesson 10 shows

Each case is a process of its own with one thread: the second update of `train_ppo` on untrained models of that shape.
The prediction knows the config, the settings and the length of the prompts; that rows may stop early is told to it
afterwards, from what was really written. No number in it was fitted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "rlhf_lib" / "course" / "recorded" / "10_memory.json"
LLAMA = dict(
    vocab_size=4096, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=4, tie_word_embeddings=True,
)  # fmt: skip
SMOLLM2 = dict(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3,
    tie_word_embeddings=True,
)  # fmt: skip
PYTHIA = dict(vocab_size=50304, hidden_size=512, intermediate_size=2048, num_attention_heads=8)  # of 70M, 160M is wider
PPO = dict(updates=2, batch_size=16, micro_batch_size=8, epochs=1, response_length=24, temperature=0.7)


@dataclass(frozen=True)
class Case:
    """A model, the settings of PPO that differ from `PPO`, and what is done to policy and critic."""

    config: dict
    settings: dict = field(default_factory=dict)
    prompt: int = 48
    family: str = "llama"
    dtype: str = "float32"
    top_layers: int | None = None
    checkpointing: bool = False


CASES = {
    "width 128, 4 layers": Case(LLAMA),
    "one micro-batch": Case(LLAMA, dict(micro_batch_size=16)),
    "long rows": Case(LLAMA, dict(batch_size=4, micro_batch_size=1, response_length=53), prompt=512),
    "wide vocabulary": Case(LLAMA | dict(vocab_size=49152, num_hidden_layers=2), prompt=32),
    "SmolLM2's shape, 4 of its layers": Case(SMOLLM2 | dict(num_hidden_layers=4)),
    "the same in bfloat16": Case(SMOLLM2 | dict(num_hidden_layers=4), dtype="bfloat16"),
    "the same, checkpointing": Case(SMOLLM2 | dict(num_hidden_layers=4), checkpointing=True),
    "the same, only the top layer trains": Case(SMOLLM2 | dict(num_hidden_layers=4), top_layers=1),
    "Pythia's shape, 4 layers": Case(PYTHIA | dict(num_hidden_layers=4), family="gpt_neox"),
}


def one(name: str) -> dict:
    """Predicted and measured bytes of one case, by phase."""
    from transformers import GPTNeoXConfig, LlamaConfig

    from rlhf_lib.algorithms.ppo_config import PPOConfig
    from rlhf_lib.course import memory_peaks
    from rlhf_lib.engine.memory_budget import estimate

    case = CASES[name]
    config = {"llama": LlamaConfig, "gpt_neox": GPTNeoXConfig}[case.family](**case.config)
    settings = PPOConfig(**PPO | case.settings)
    run = memory_peaks.random_run(config, settings, prompt=case.prompt, dtype=case.dtype, prepare=preparation(case))
    found = memory_peaks.measure(run)
    plan = memory_peaks.plan_of(
        config, settings, prompt=case.prompt, found=found, dtype=case.dtype, trainable_layers=case.top_layers,
        gradient_checkpointing=case.checkpointing,
    )  # fmt: skip
    predicted = {phase.name: phase.total for phase in estimate(plan).phases}
    return {"predicted": predicted, "measured": found.phases, "rss": found.rss}


def preparation(case: Case) -> Callable[[torch.nn.Module], torch.nn.Module]:
    from rlhf_lib.engine import models

    steps = [partial(models.train_top_layers, layers=case.top_layers)] if case.top_layers is not None else []
    steps += [models.run_layers_again] if case.checkpointing else []

    def prepare(model: torch.nn.Module) -> torch.nn.Module:
        for step in steps:
            model = step(model)
        return model

    return prepare


def in_a_process(name: str) -> dict:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.memory", "--one", name]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def line(name: str, found: dict) -> str:
    predicted, measured = (max(found[what].values()) / 2**20 for what in ("predicted", "measured"))
    phase = max(found["measured"], key=found["measured"].get)
    worst = max(abs(found["predicted"][p] / found["measured"][p] - 1) for p in found["measured"])
    return (
        f"| {name} | {phase} | {predicted:,.1f} | {measured:,.1f} | {predicted / measured - 1:+.1%} "
        f"| {worst:.1%} | {found['rss'] / 2**20:,.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=CASES, help="this case alone, in this process, as JSON")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one)))
        return
    print("| model | peak in | predicted, MiB | measured, MiB | off by | worst phase | process, MiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    record = {}
    for name in CASES:
        record[name] = in_a_process(name)
        print(line(name, record[name]), flush=True)
    if arguments.record:
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
