"""Writing the same responses in several ways: what a cache of fixed size and compiled steps bring, and at what price.

Greedy, so that the texts can be compared token by token. The model holds its weights in the numbers that it computes
in; only "as PPO samples" has float32 weights under autocast, as a run has.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import machine
from .updates import make_policy
from .work import PAD, PROMPT_END, Work

Write = Callable[[], Tensor]


def measure(work: Work) -> dict:
    """Seconds of each way (and of its first call, which may compile), and which share of its tokens are the first's."""
    device = machine.find_device()
    machine.cap_memory(device, work.memory_gib)
    generator = torch.Generator().manual_seed(0)
    shape = work.batch, work.prompt
    prompts = torch.randint(PROMPT_END + 1, work.shape["vocab_size"], shape, generator=generator).to(device)
    found, first = {}, None
    for name, write in ways(work, prompts).items():
        try:
            found[name], tokens = timed(write, device)
        except Exception as error:  # a way that cannot be had here: no compiler, no memory
            found[name] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            continue
        first = tokens if first is None else first
        found[name]["equal_tokens"] = float((tokens == first).float().mean())
    return {"ways": found}


def ways(work: Work, prompts: Tensor) -> dict[str, Write]:
    """The first is what the others are compared with."""
    from rlhf_lib.engine.preparation import prepare

    policy = make_policy(work, prompts.device)
    plain = copy.deepcopy(policy).to(machine.DTYPES[work.precision])
    plain.generation_config.eos_token_id = None  # nobody ends early
    as_a_run = prepare(policy, device=prompts.device, precision=work.precision)
    generate = partial(write_by_generate, plain, prompts, work.response)
    return {
        "generate, growing cache": partial(generate, disable_compile=True),
        "generate, static cache": partial(generate, cache_implementation="static", disable_compile=True),
        "generate, static cache, compiled": partial(generate, cache_implementation="static", **compiling(prompts)),
        "our sampler": partial(write_by_sampler, plain, prompts, work.response),
        "as PPO samples": partial(write_by_sampler, as_a_run, prompts, work.response),
    }


@torch.no_grad()
def write_by_generate(model: torch.nn.Module, prompts: Tensor, steps: int, **how) -> Tensor:
    written = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=steps, pad_token_id=PAD, **how
    )
    return written[:, prompts.shape[1] :]


def write_by_sampler(model: torch.nn.Module, prompts: Tensor, steps: int) -> Tensor:
    """The library's sampler at temperature 0; no token is the end."""
    from rlhf_lib.engine.sampling import sample

    lengths = torch.full((len(prompts),), prompts.shape[1], device=prompts.device)
    nothing = torch.zeros(len(prompts), steps, dtype=torch.float64)
    samples = sample(model, prompts, lengths, nothing, temperature=0, eos_token_id=-1, pad_token_id=PAD)
    return samples.tokens[:, prompts.shape[1] :]


def compiling(prompts: Tensor) -> dict:
    """Transformers compiles the steps of a static cache by itself, but on a CPU only if it is told to."""
    if prompts.is_cuda:
        return {}
    from transformers.generation.configuration_utils import CompileConfig

    config = CompileConfig(mode="default")
    config._compile_all_devices = True
    return {"compile_config": config}


def timed(write: Write, device: torch.device, tries: int = 2) -> tuple[dict[str, float], Tensor]:
    """Seconds of the first call and the least of the others; and the tokens."""
    taken = []
    for _ in range(1 + tries):
        machine.wait(device)
        start = time.perf_counter()
        tokens = write()
        machine.wait(device)
        taken.append(time.perf_counter() - start)
    return {"first_call": taken[0], "seconds": min(taken[1:])}, tokens
