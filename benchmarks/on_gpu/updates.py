"""PPO updates of random models: seconds by phase, memory against its budget, share of the chip's matrix rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import torch

from . import machine
from .work import EOS, PAD, PROMPT_END, Work, config_of

PEAKS = {"cuda": ("cuda allocated", "cuda reserved"), "cpu": ("tensors",)}


def measure(work: Work) -> dict:
    """The numbers of all updates but the first, which allocates and warms up."""
    from rlhf_lib.engine.memory_budget import estimate

    device = machine.find_device()
    machine.cap_memory(device, work.memory_gib)
    memory = machine.memory_of(device, work.memory_gib)
    plan = plan_that_fits(plan_of(work, device), int(machine.USABLE * memory), work.micro_batch)
    rate = machine.matrix_rate(device, work.precision)
    found = Updates(work, plan.micro_batch, device).measure()
    predicted = {phase.name: phase.total for phase in estimate(plan).phases}
    return {
        "work": asdict(work) | {"micro_batch": plan.micro_batch}, "memory": memory, "matrix_rate": rate,
        "fraction_of_rate": fractions_of_rate(plan, work, found["seconds"], rate), "predicted": predicted, **found,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- what is known before


def plan_of(work: Work, device: torch.device):
    """What the memory budget and the count of operations are told."""
    from rlhf_lib.engine.memory_budget import ModelShape, Plan
    from rlhf_lib.pipeline.memory import remembered_bytes

    shape, top = ModelShape.of(config_of(work)), work.trainable_layers
    low, texts = work.precision != "float32", dict(prompt=work.prompt, response=work.response)
    read = work.batch * work.updates
    return Plan(
        policy=shape, batch=work.batch, micro_batch=work.micro_batch or work.batch, **texts,
        written=work.sampled_at_once, autocast=work.precision if low else None, device=device.type,
        trainable_layers=top, shared_trunk=top is not None,
        remembered=0 if top is None else remembered_bytes(shape, top, prompts=read, texts=read, **texts),
    )  # fmt: skip


def plan_that_fits(plan, memory: int, fixed: int | None = None):
    """The plan with the largest micro-batch, halved from the batch, whose budget is within so many bytes.

    raises  LeftOut if not even one row is, or not so many as are `fixed`
    """
    from rlhf_lib.engine.memory_budget import GIB, estimate

    rows = fixed or plan.batch
    while rows:
        plan = replace(plan, micro_batch=rows)
        budget = estimate(plan)
        if budget.fits(memory):
            return plan
        rows = 0 if fixed else rows // 2
    raise machine.LeftOut(
        f"does not fit: its budget is {budget.peak / GIB:.1f} GiB with micro-batches of {plan.micro_batch}, highest in "
        f"{budget.phase}, and {memory / GIB:.1f} GiB may be used"
    )


def fractions_of_rate(plan, work: Work, seconds: dict[str, float], rate: float) -> dict[str, float] | None:
    """By phase and in all, what share of the matrix rate the counted products make; a shared trunk is not counted."""
    from rlhf_lib.engine.arithmetic import operations

    if work.trainable_layers is not None:
        return None
    counted = operations(plan, epochs=work.epochs)
    counted["update"] = sum(counted.values())
    return {phase: amount / seconds[phase] / rate for phase, amount in counted.items()}


# ------------------------------------------------------------------------------------------------- what is measured


class Updates:
    """Four models and a run of `train_ppo` over random prompts."""

    def __init__(self, work: Work, micro_batch: int, device: torch.device):
        self.work, self.micro_batch, self.device = work, micro_batch, device

    def measure(self) -> dict:
        """Seconds, peaks and rates, and how far the sampler was from the forward pass."""
        from rlhf_lib.engine.profiler import Profile

        names = PEAKS[self.device.type]
        meter = names[0].split()[0]
        before = levels(meter)
        updates = self._updates()
        next(updates)
        with Profile(memory=[meter], synchronize=lambda: machine.wait(self.device)) as profile:
            logged = list(updates)
        whole = profile.tree()[0]
        seconds = seconds_by_phase(whole, len(logged))
        written = self.work.batch * self.work.response
        return {
            "seconds": seconds,
            "peaks": peaks_by_phase(whole, names[0], before),
            "reserved": whole.memory[names[-1]].peak - before if len(names) > 1 else None,
            "tokens_per_second": {
                "written": written / seconds["sampling"], "of an update": self.work.texts / seconds["update"],
            },
            "sampler_forward_gap": max(metrics["sampler_forward_gap"] for metrics in logged),
        }  # fmt: skip

    def _updates(self) -> Iterator[dict]:
        from rlhf_lib.algorithms import ppo
        from rlhf_lib.algorithms.parts import Parts
        from rlhf_lib.engine import optimiser
        from rlhf_lib.engine.profiler import watched, watching

        config, parts = self._config(), watched(Parts())
        state = self._state(config, parts)
        with watching(ppo.collect, ppo.update, optimiser.backward, optimiser.step):
            yield from ppo.train_ppo(state, self._prompts(), config, parts)

    def _config(self):
        from rlhf_lib.algorithms.ppo_config import PPOConfig

        work = self.work
        return PPOConfig(
            updates=work.updates, batch_size=work.batch, micro_batch_size=self.micro_batch, epochs=work.epochs,
            response_length=work.response,
        )  # fmt: skip

    def _state(self, config, parts):
        """From the second update's number on, so that the check before the first, which is one of float32, is not."""
        from rlhf_lib.algorithms import ppo
        from rlhf_lib.engine import loss_scaling

        policy, *scorers = make_models(self.work, self.device)
        policy.sampled_at_once = self.work.sampled_at_once
        state = ppo.new_state(policy, *scorers, config, parts, seed=0, eos_token_id=EOS, pad_token_id=PAD, update=1)
        if self.work.precision == "float16":
            loss_scaling.scale_losses(state.optimizer, self.device)  # from 1 on: a step that is left out costs less
            loss_scaling.restore(state.optimizer, loss_scaling.state_of(state.optimizer) | {"scale": 1.0})
        return state

    def _prompts(self) -> Iterator:
        from rlhf_lib.maths.records import Prompts

        rows, generator = self.work.batch, torch.Generator().manual_seed(0)
        for _ in range(self.work.updates):
            words = PROMPT_END + 1, self.work.shape["vocab_size"]
            tokens = torch.randint(*words, (rows, self.work.prompt), generator=generator)
            tokens[:, -1] = PROMPT_END
            yield Prompts(tokens.to(self.device), torch.full((rows,), self.work.prompt, device=self.device))


def make_models(work: Work, device: torch.device) -> list[torch.nn.Module]:
    """Policy, critic and reward model with random weights, as a run makes them ready; all bodies begin alike."""
    from transformers import AutoModelForSequenceClassification

    from rlhf_lib.engine.frozen_trunk import FrozenTrunk
    from rlhf_lib.engine.preparation import prepare

    policy = make_policy(work, device)
    scorers = [random_model(AutoModelForSequenceClassification, work, device) for _ in range(2)]
    for scorer in scorers:
        scorer.base_model.load_state_dict(policy.base_model.state_dict())
    layers = work.trainable_layers
    trunk = layers and FrozenTrunk(trainable_layers=layers, pad_token_id=PAD, prompt_end=[PROMPT_END])
    return [prepare(model, device=device, precision=work.precision, trunk=trunk) for model in (policy, *scorers)]


def make_policy(work: Work, device: torch.device) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return random_model(AutoModelForCausalLM, work, device)


def random_model(kind: type, work: Work, device: torch.device) -> torch.nn.Module:
    """The weights are drawn on the device: of a billion, a CPU would take a minute."""
    torch.manual_seed(0)
    with device:
        return kind.from_config(config_of(work)).eval()


def levels(meter: str) -> int:
    """Bytes in use now."""
    from rlhf_lib.engine.profiler import Profile

    with Profile(memory=[meter]) as profile:
        pass
    return profile.first_levels[0]


def seconds_by_phase(whole, updates: int) -> dict[str, float]:
    """Of one update: writing, the four models' looks, the optimiser steps with all that leads to them, and the rest."""
    spent = {
        name: sum(entry.total for entry in whole.find(label)) / updates / 1e9
        for name, label in (("sampling", "sampling.sample"), ("collect", "ppo.collect"), ("training", "ppo.update"))
    }
    spent["scoring"] = spent.pop("collect") - spent["sampling"]
    rest = whole.total / updates / 1e9 - sum(spent.values())
    return spent | {"rest": rest, "update": whole.total / updates / 1e9}


def peaks_by_phase(whole, quantity: str, before: int) -> dict[str, int]:
    """Bytes of tensors above what was there before the models."""
    from rlhf_lib.course.memory_peaks import calls_by_phase

    return {
        name: max(call.memory[quantity].peak for call in calls) - before
        for name, calls in calls_by_phase(whole).items()
    }
