"""Some PPO updates of one system in a process of its own; the last line it prints is what it measured, as JSON.

    python -m benchmarks.one_side ours --work "fixed lengths" --updates 4

Another system is `trl`; the folder that holds it must be on PYTHONPATH (`benchmarks.against_trl` sees to that).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import psutil
import torch

from .work import WORKS, Work, make_models, make_prompts, make_tokenizer

LEARNING_RATE, TEMPERATURE = 3e-6, 0.7


class Counted:
    """When updates ended, how many optimiser steps were made, and how long responses were."""

    def __init__(self):
        self.stamps: list[tuple[float, float]] = []  # on the wall, and of this process's CPU time
        self.steps = 0
        self.response_lengths: list[float] = []

    def update_ended(self, *_, **__) -> None:
        self.stamps.append((time.perf_counter(), time.process_time()))

    def step_ended(self, *_, **__) -> None:
        self.steps += 1


def run_ours(work: Work, updates: int, seed: int) -> Callable[[Counted], None]:
    """Our `train_ppo`, exactly as the pipeline calls it."""
    from rlhf_lib.algorithms import ppo

    def run(counted: Counted) -> None:
        state, batches, config = our_state_and_batches(work, updates, seed)
        state.optimizer.register_step_post_hook(counted.step_ended)
        counted.update_ended()
        for metrics in ppo.train_ppo(state, batches, config):
            counted.update_ended()
            counted.response_lengths.append(metrics["response_length"])

    return run


def our_state_and_batches(work: Work, updates: int, seed: int):
    """What `train_ppo` takes."""
    from rlhf_lib.algorithms import ppo
    from rlhf_lib.algorithms.parts import Parts
    from rlhf_lib.engine.batching import pad_rows
    from rlhf_lib.maths.records import Prompts

    models, tokenizer, config = make_models(work, seed), make_tokenizer(work), ppo_config(work, updates)
    pad = tokenizer.pad_token_id
    state = ppo.new_state(
        models.policy, models.critic, models.reward_model, config, Parts(),
        seed=seed, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad,
    )  # fmt: skip
    rows = make_prompts(work, updates, seed)
    starts = range(0, len(rows), work.batch)
    return state, [Prompts(*pad_rows(rows[at : at + work.batch], pad_token_id=pad)) for at in starts], config


def ppo_config(work: Work, updates: int):
    from rlhf_lib.algorithms.ppo import PPOConfig

    return PPOConfig(
        lean=bool(work.lean),
        updates=updates, batch_size=work.batch, minibatches=1, micro_batch_size=work.rows, epochs=work.epochs,
        response_length=work.response, learning_rate=LEARNING_RATE, temperature=TEMPERATURE,
    )  # fmt: skip


def run_trl(
    work: Work, updates: int, seed: int, *, device: str = "cpu", **changes: object
) -> Callable[[Counted], None]:  # fmt: skip
    """TRL's PPOTrainer with the same models, prompts, epochs, micro-batches and optimiser steps.

    device   on which the models are made; TRL trains on a GPU where there is one, unless told to `use_cpu`
    changes  of its config
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    def run(counted: Counted) -> None:
        with torch.device(device):
            models = make_models(work, seed)
        tokenizer = make_tokenizer(work)
        tokenizer.padding_side = "left"
        # one batch more than it needs: at the end of its data Accelerate steps after every micro-batch
        data = Dataset.from_dict({"input_ids": make_prompts(work, updates + 1, seed)})
        with tempfile.TemporaryDirectory() as folder:
            trainer = PPOTrainer(
                args=trl_config(PPOConfig, work, updates, seed, folder, **changes), processing_class=tokenizer,
                model=models.policy, ref_model=copy.deepcopy(models.policy), reward_model=models.reward_model,
                value_model=models.critic, train_dataset=data, eval_dataset=data,
                callbacks=[type("Clock", (TrainerCallback,), {"on_step_end": counted.update_ended})()],
            )  # fmt: skip
            trainer.optimizer.optimizer.register_step_post_hook(counted.step_ended)
            ppo_trainer.truncate_response = noting_lengths(ppo_trainer.truncate_response, counted)
            counted.update_ended()
            trainer.train()

    return run


def trl_config(config: type, work: Work, updates: int, seed: int, folder: str, **changes: object):
    """One minibatch of `micro_batches` pieces: TRL steps once it has accumulated them, as we do."""
    settings = dict(
        output_dir=folder, total_episodes=work.batch * updates, seed=seed, num_ppo_epochs=work.epochs,
        per_device_train_batch_size=work.rows, gradient_accumulation_steps=work.micro_batches, num_mini_batches=1,
        local_rollout_forward_batch_size=work.batch, response_length=work.response, stop_token="eos",
        temperature=TEMPERATURE, missing_eos_penalty=1.0, learning_rate=LEARNING_RATE,
        num_sample_generations=0, bf16=False, gradient_checkpointing=False, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, logging_steps=10**6,
    )  # fmt: skip
    return config(**settings | changes)


def noting_lengths(truncate: Callable, counted: Counted) -> Callable:
    """TRL's own function, and a note of how many tokens it keeps of each response."""

    def noted(stop_token_id, pad_token_id, responses):
        ends = (responses == stop_token_id).long()
        before_the_end = (ends.cumsum(1) - ends == 0).sum(1)
        counted.response_lengths.append(float(before_the_end.float().mean()))
        return truncate(stop_token_id, pad_token_id, responses)

    return noted


SYSTEMS = {"ours": run_ours, "trl": run_trl}


def measure(system: str, work: Work, updates: int, seed: int) -> dict:
    """Median seconds an update without the first, and the peak of memory above what the imports had taken."""
    from rlhf_lib.engine.run_folder import peak_memory_mib

    warm_imports()
    run, counted = SYSTEMS[system](work, updates, seed), Counted()
    after_imports = psutil.Process().memory_info().rss / 2**20
    run(counted)
    spent = [[end - start for start, end in zip(*pair)] for pair in zip(counted.stamps, counted.stamps[1:])]
    wall, cpu = (statistics.median(column) for column in zip(*spent[1:]))
    return dict(
        system=system,
        seconds=wall,
        cpu_seconds=cpu,
        mib=peak_memory_mib() - after_imports,
        mib_of_imports=after_imports,
        optimizer_steps=counted.steps / updates,
        response_length=statistics.mean(counted.response_lengths[1:]),
    )


def warm_imports() -> None:
    """Transformers imports a model's code when it is first named; that is an import, not work."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    assert all((LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--work", choices=WORKS, default="fixed lengths")
    parser.add_argument("--change", action="append", default=[], metavar="NAME=NUMBER", help="of the work")
    parser.add_argument("--updates", type=int, default=4, help="the first is not counted")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(arguments.seed)
    changes = {name: int(number) for name, _, number in (change.partition("=") for change in arguments.change)}
    work = replace(WORKS[arguments.work], **changes)
    print(json.dumps(measure(arguments.system, work, arguments.updates, arguments.seed)))


if __name__ == "__main__":
    main()
