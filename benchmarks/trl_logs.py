"""Logs that TRL 1.12.0's PPO trainer writes of the tiny world: healthy ones, and with mistakes that its users make.

    python -m benchmarks.trl_logs                        # all of them; less than a minute of computing each
    python -m benchmarks.trl_logs --only healthy

The doctor is tested with them, and lesson 08 shows some. Each file is the `trainer_state.json` that TRL itself saves.
TRL is put into benchmarks/.peers/, beside the environment and not into it.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_lib.course.doctor.trl import RECORDED

from .against_trl import install_trl

UPDATES, BATCH = 24, 32


@dataclass
class Ingredients:
    """What a user of TRL puts together. `settings`: those that replace the ones of `settings_of`."""

    policy: object
    reference: object
    critic: object
    reward_model: object
    tokenizer: object
    settings: dict = field(default_factory=dict)


def healthy(found: Ingredients) -> None:
    """The shipped SFT model and reward model, in float32."""


def healthy_in_bfloat16(found: Ingredients) -> None:
    """All models loaded in half of the bits, and trained in them."""
    for model in (found.policy, found.reference, found.critic, found.reward_model):
        model.bfloat16()


def another_reference(found: Ingredients) -> None:
    """The model before SFT, where the SFT model is meant."""
    from rlhf_lib.engine.models import load_policy
    from rlhf_lib.worlds.tiny_tldr.world import ASSETS

    found.reference = load_policy(ASSETS / "base")


def repetition_penalty(found: Ingredients) -> None:
    """From the model's generation_config.json, where chat models often have one: generate obeys it, a pass does not."""
    found.policy.generation_config.repetition_penalty = 1.2


def padding_is_eos(found: Ingredients) -> None:
    """`tokenizer.pad_token = tokenizer.eos_token`, as many examples have it."""
    found.tokenizer.pad_token = found.tokenizer.eos_token


MISTAKES: dict[str, Callable[[Ingredients], None]] = {
    make.__name__: make
    for make in (healthy, healthy_in_bfloat16, another_reference, repetition_penalty, padding_is_eos)
}


def gather() -> Ingredients:
    """All of it as it should be."""
    from rlhf_lib.engine.models import load_policy, load_scorer
    from rlhf_lib.worlds.tiny_tldr.tokenizer import make_tokenizer
    from rlhf_lib.worlds.tiny_tldr.world import ASSETS

    policy, scorer, tokenizer = load_policy(ASSETS / "sft"), load_scorer(ASSETS / "reward_model"), make_tokenizer()
    tokenizer.padding_side = "left"
    return Ingredients(policy, copy.deepcopy(policy), copy.deepcopy(scorer), scorer, tokenizer)


def train(found: Ingredients, folder: Path, *, seed: int) -> Path:
    """Let TRL train, and save its state; returns the file."""
    from datasets import Dataset
    from transformers import set_seed
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    from rlhf_lib.worlds.tiny_tldr.world import TinyTLDR

    world = TinyTLDR(seed)
    data = Dataset.from_dict({"input_ids": world.encode_prompts(world.posts("ppo", BATCH * (UPDATES + 1)))})
    set_seed(seed)
    trainer = PPOTrainer(
        args=PPOConfig(**settings_of(folder, seed) | found.settings), processing_class=found.tokenizer,
        model=found.policy, ref_model=found.reference, reward_model=found.reward_model, value_model=found.critic,
        train_dataset=data, eval_dataset=data,
    )  # fmt: skip
    trainer.train()
    trainer.save_state()
    return folder / "trainer_state.json"


def settings_of(folder: Path, seed: int) -> dict:
    """Those that differ from TRL's defaults."""
    return dict(
        output_dir=str(folder), seed=seed, total_episodes=BATCH * UPDATES, per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1, num_ppo_epochs=2, learning_rate=3e-4, response_length=24, stop_token="eos",
        missing_eos_penalty=1.0, bf16=False, gradient_checkpointing=False, use_cpu=True, num_sample_generations=0,
        report_to=[], save_strategy="no",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MISTAKES, default=list(MISTAKES), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    sys.path.insert(0, str(install_trl()))
    for name in arguments.only:
        found = gather()
        MISTAKES[name](found)
        with tempfile.TemporaryDirectory() as folder:
            log = train(found, Path(folder), seed=arguments.seed)
            (RECORDED / f"08_trl_{name}.json").write_bytes(log.read_bytes())


if __name__ == "__main__":
    main()
