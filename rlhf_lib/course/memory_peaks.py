"""The memory that real PPO updates take, phase by phase as the budget names them: what predictions are held against."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import transformers
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from ..algorithms import ppo
from ..algorithms.parts import Parts
from ..algorithms.ppo_config import PPOConfig
from ..engine import optimiser
from ..engine.memory_budget import ModelShape, Plan
from ..engine.profiler import Profile, watched, watching
from ..engine.profiler.report import Entry
from ..maths.records import Prompts

PAD, BOS, EOS = 0, 1, 2  # of random models
# Before version 5 Transformers makes a mask even where no row has padding, which the budget does not count.
MAKES_A_MASK = int(transformers.__version__.split(".")[0]) < 5
STEP = "optimiser.step"


@dataclass(frozen=True)
class Peaks:
    """What some updates took above what was there before their models were made, in bytes."""

    phases: dict[str, int]  # of live tensors at the highest moment of each phase of the budget
    rss: int  # of the whole process at its highest reading
    longest: int  # tokens of the longest row that was scored
    actions: int  # of the fullest micro-batch

    @property
    def peak(self) -> int:
        return max(self.phases.values())


def measure(run: Callable[[Parts], Iterator[dict]], updates: int = 2) -> Peaks:
    """The highest moments of some updates; from the second on, Adam has its moments all the time.

    run  from the parts to an iterator over updates, `train_ppo`'s; it makes its models itself
    """
    parts, seen = Parts(), []

    def noting_sizes(model: torch.nn.Module, tokens: Tensor, action_mask: Tensor, **rest):
        seen.append((tokens.shape[1], int(action_mask.sum())))
        return parts.score_actions(model, tokens, action_mask, **rest)

    noting = watched(dataclasses.replace(parts, score_actions=noting_sizes))
    gc.collect()  # what dies meanwhile would be taken off what is measured
    with (
        Profile(memory=["tensors", "rss"]) as profile,
        watching(ppo.collect, ppo.update, optimiser.backward, optimiser.step),
    ):
        before = dict(zip(profile.quantities, profile.first_levels, strict=True))
        for _ in islice(run(noting), updates):
            pass
    (whole,) = profile.tree()
    phases = {
        name: max(call.memory["tensors"].peak for call in calls) - before["tensors"]
        for name, calls in calls_by_phase(whole).items()
    }
    longest, actions = map(max, zip(*seen))
    return Peaks(phases, whole.memory["rss"].peak - before["rss"], longest, actions)


def calls_by_phase(whole: Entry) -> dict[str, list[Entry]]:
    """The calls within a rollout, and those within the updates that follow, by the budget's names of phases."""
    rollout = [call for entry in whole.find("ppo.collect") for call in entry.children]
    training = [call for entry in whole.find("ppo.update") for call in entry.children]
    steps = [call for call in training if call.label == STEP]
    return {
        "sampling": [call for call in rollout if call.label == "sampling.sample"],
        "scoring": [call for call in rollout if call.label != "sampling.sample"],
        "backward": [call for call in training if call.label != STEP],  # and the forward passes before it
        "optimiser's step": steps,
    }


def random_run(
    config: PretrainedConfig, settings: PPOConfig, *, prompt: int, dtype: str = "float32",
    prepare: Callable[[torch.nn.Module], torch.nn.Module] = lambda model: model,
) -> Callable[[Parts], Iterator[dict]]:  # fmt: skip
    """PPO on random prompts of one length, with untrained models of this config: for `measure`.

    prepare  is given policy and critic, for example to freeze a part of them
    """
    config.pad_token_id, config.bos_token_id, config.eos_token_id, config.num_labels = PAD, BOS, EOS, 1

    def make(kind: type) -> torch.nn.Module:
        return kind.from_config(config).to(getattr(torch, dtype)).eval()

    def run(parts: Parts) -> Iterator[dict]:
        torch.manual_seed(0)
        policy = make(AutoModelForCausalLM)
        critic, reward_model = (make(AutoModelForSequenceClassification) for _ in range(2))
        state = ppo.new_state(
            prepare(policy), prepare(critic), reward_model, settings, parts, seed=0, eos_token_id=EOS, pad_token_id=PAD,
            update=0 if dtype == "float32" else 1,  # the step-0 check is one of float32
        )  # fmt: skip
        shape = settings.batch_size, prompt
        batches = (
            Prompts(torch.randint(EOS + 1, config.vocab_size, shape), torch.full(shape[:1], prompt))
            for _ in range(settings.updates)
        )
        return ppo.train_ppo(state, batches, settings, parts)

    return run


def plan_of(config: PretrainedConfig, settings: PPOConfig, *, prompt: int, found: Peaks | None = None, **rest) -> Plan:
    """The plan of PPO with these settings; `found` tells how long the rows have really been."""
    known = dict(longest=found.longest, actions=found.actions) if found else {}
    return Plan(
        policy=ModelShape.of(config), batch=settings.batch_size, micro_batch=settings.micro_batch_size,
        minibatches=settings.minibatches, prompt=prompt, response=settings.response_length,
        skip_unread=settings.skip_unread, entropy=settings.entropy_coef > 0, **known, **rest,
    )  # fmt: skip


def kept_bytes(function: Callable[[], object], *there: Tensor) -> int:
    """Bytes that autograd keeps of a call for its backward pass, each storage once; `there` is there anyway."""
    weights, kept = {tensor.untyped_storage().data_ptr() for tensor in there}, {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        function()
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in weights)


def peak_bytes(function: Callable[[], object]) -> int:
    """Bytes of tensors alive at once within a call, above what was there before it."""
    gc.collect()
    with Profile(memory=["tensors"]) as profile:
        function()
    return profile.tree()[0].memory["tensors"].peak - profile.first_levels[0]
