"""One process of a run: a few steps of SFT, reward model and PPO, and what they leave, in a file of its own.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29555 python -m tests.engine.one_process FOLDER [SHARDING]
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from rlhf_lib.algorithms import ppo, reward_model, sft
from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.engine import checkpoint, distributed, models
from rlhf_lib.engine.preparation import share_out
from rlhf_lib.engine.sharding import own_part, put_together
from tests.tiny import EOS, PAD, disturb, ragged_prompts, ragged_texts, tiny_llama

ROWS = 7  # not to be divided evenly by 2 or 4
EPISODES = 10  # nor are those of one of two minibatches


def in_whole(*_, **__) -> None:
    """In place of `share_out`: every process keeps all of all models."""


def sft_steps(share_out):
    config = sft.SFTConfig(steps=2, batch_size=ROWS, micro_batch_size=3, learning_rate=1e-3)
    state = sft.new_state(tiny_llama(), config)
    share_out(state.model, optimizer=state.optimizer)
    yield from sft.train_sft(state, [ragged_texts(ROWS, seed) for seed in (0, 1)], config)
    yield state.model


def reward_model_steps(share_out):
    config = reward_model.RewardModelConfig(steps=2, posts_per_batch=1, learning_rate=1e-3, head_learning_rate=1e-2)
    state = reward_model.new_state(models.scorer_from_policy(tiny_llama(), seed=0), config)
    pairs = [[0, 1], [2, 1], [3, 4], [5, 6], [6, 0]]
    batches = (
        reward_model.Comparisons(ragged_texts(ROWS, seed), *torch.tensor(pairs).T) for seed in (0, 1)
    )  # fmt: skip
    share_out(state.model, optimizer=state.optimizer)
    yield from reward_model.train_reward_model(state, batches, config)
    yield state.model


def ppo_steps(share_out):
    config = ppo.PPOConfig(
        updates=2, batch_size=EPISODES, minibatches=2, epochs=2, micro_batch_size=3, response_length=6,
        learning_rate=1e-3,
    )  # fmt: skip
    policy, scorer = tiny_llama(), models.scorer_from_policy(tiny_llama(), seed=1)
    critic = disturb(models.scorer_from_policy(tiny_llama(), seed=1))
    state = ppo.new_state(policy, critic, scorer, config, Parts(), seed=0, eos_token_id=EOS, pad_token_id=PAD)
    share_out(policy, critic, optimizer=state.optimizer)
    share_out(state.reference, state.reward_model)
    yield from ppo.train_ppo(state, [ragged_prompts(EPISODES, seed) for seed in (0, 1)], config)
    yield policy
    yield critic
    yield ppo.collect(state, ragged_prompts(EPISODES, 2), config, Parts()).tokens
    yield {"policy": policy, "critic": critic}, state.optimizer
    moments = [value for of_weight in state.optimizer.state.values() for value in of_weight.values()]
    weights = [weight for model in (policy, critic, scorer, state.reference) for weight in model.parameters()]
    print(sum(own_part(tensor).numel() for tensor in moments + weights if tensor.dim()))


def main(folder: Path, share_out: Callable[..., None]) -> None:
    distributed.begin()
    torch.set_num_threads(1)
    models.LOGITS_AT_ONCE = 256  # heads run in blocks, and in each process in another number of them
    rows, tensors = [], {}
    for name, steps in {"sft": sft_steps, "reward_model": reward_model_steps, "ppo": ppo_steps}.items():
        for number, left in enumerate(steps(share_out)):
            if isinstance(left, dict):
                rows.append({"stage": name, **left})
            elif isinstance(left, tuple):
                checkpoint.save(folder / "checkpoints", 2, *left, facts={})
            else:
                found = left.state_dict(keep_vars=True) if isinstance(left, torch.nn.Module) else {"tokens": left}
                whole = {key: put_together(value).detach().clone() for key, value in found.items()}
                tensors |= {f"{name}.{number}.{key}": value for key, value in whole.items()}
    save_file(tensors, folder / f"{distributed.rank()}.safetensors")
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), partial(share_out, how=sys.argv[2]) if sys.argv[2:] else in_whole)
