"""Models in parts by DeepSpeed, an optional package: ZeRO-2 leaves each process its part of gradients and moments,
ZeRO-3 its part of all weights as well.

Each model gets an engine of DeepSpeed's; each that is trained an AdamW for its groups, which steps one flat part of
each. An optimiser whose models are in parts carries them; others know nothing, and DeepSpeed is imported here alone.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn

from . import distributed

MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW knows of each number
BUCKET = 2**24  # gradients that travel at once, and room for as many: 64 MiB


class Passes(nn.Module):
    """A model as DeepSpeed takes it: any function that runs its body and head is one forward pass of this."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *inputs, function: Callable, **settings):
        return function(self.model, *inputs, **settings)


@dataclass
class InParts:
    """A trained model in parts: its engine; of each of its groups the weights, and this process's flat part of them."""

    engine: nn.Module
    weights: list[list[nn.Parameter]]
    flat: list[Tensor]
    max_grad_norm: float | None = None  # of the step that is made
    norms: list[float] = field(default_factory=list)  # of each group's gradient in it, before clipping


def share_out(*models: nn.Module, stage: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    """From now on each process keeps its part of what this stage of ZeRO takes apart.

    stage      2 or 3; with 2 weights stay whole, and models without an optimiser stay what they are
    optimizer  before its first step, or with the moments of a run that goes on; its groups are those of the models,
               in their order
    """
    if optimizer is not None:
        optimizer.in_parts = [_train_in_parts(model, stage, optimizer) for model in models]
    elif stage == 3:
        for model in models:
            _engine(model, stage)


def is_in_parts(optimizer: torch.optim.Optimizer) -> bool:
    """Whether DeepSpeed has taken over what it trains."""
    return hasattr(optimizer, "in_parts")


def backward(loss: Tensor) -> None:
    """Add up the gradients over processes. DeepSpeed takes their mean, and a loss is divided by the global count."""
    (loss * distributed.size()).backward()


def step(optimizer: torch.optim.Optimizer, *, max_grad_norm: float | None) -> list[float]:
    """Clip each group's gradient norm if asked, step, clear; returns the norms before clipping, one a group.

    raises  FloatingPointError at the first group whose gradient is not finite; those before it have made their step
    """
    for part in optimizer.in_parts:
        part.max_grad_norm, part.norms = max_grad_norm, []
        part.engine.step()
    return [norm for part in optimizer.in_parts for norm in part.norms]


def moments(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """What AdamW knows of each weight, by its place among all, as if it were whole: for the main process to write."""
    found: dict[int, dict[str, Tensor]] = {}
    for part in optimizer.in_parts:
        for flat, weights in zip(part.flat, part.weights, strict=True):
            for weight in weights:
                whole = {key: _whole_moment(weight, key) for key in MOMENTS}
                found[len(found)] = {"step": optimizer.state[flat]["step"].clone(), **whole}
    return found


def is_apart(x: Tensor) -> bool:
    """Whether this is a weight of which ZeRO-3 has left a part here."""
    return hasattr(x, "ds_tensor")


def own_part(weight: Tensor) -> Tensor:
    """What of it this process holds, flat."""
    return weight.ds_tensor


def put_together(weight: Tensor) -> Tensor:
    """The whole of it; all processes must ask."""
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([weight]):
        return weight.detach().clone()


def _train_in_parts(model: nn.Module, stage: int, optimizer: torch.optim.Optimizer) -> InParts:
    own = set(map(id, model.parameters()))
    groups = [group for group in optimizer.param_groups if own & set(map(id, group["params"]))]
    weights = [group["params"] for group in groups]
    known = [_taken_out(optimizer.state, of_group) for of_group in weights]
    adam = copy.copy(optimizer)  # of the same state
    adam.param_groups = groups
    engine = _engine(model, stage, adam)
    zero = engine.optimizer
    flat = zero.single_partition_of_fp32_groups if stage == 2 else zero.fp32_partitioned_groups_flat
    part = InParts(engine, weights, flat)
    adam.register_step_pre_hook(partial(_clip, part))
    for flat, of_group in zip(part.flat, known, strict=True):
        optimizer.state[flat] = _own_moments(of_group, len(flat), stage)
    return part


def _engine(model: nn.Module, stage: int, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    """DeepSpeed's engine for this model, which from now on makes its passes through it."""
    unhooked = copy.deepcopy(model, {id(weight): nn.Parameter(torch.empty(0)) for weight in model.parameters()})
    deepspeed = _deepspeed(model.device)
    engine, *_ = deepspeed.initialize(model=Passes(model), optimizer=optimizer, config=_config(stage))
    model.pass_through = lambda function, *inputs, **settings: engine(*inputs, function=function, **settings)
    if stage == 3:
        model.with_all_weights = partial(_with_all_weights, model, unhooked)
        _keep_together(model.get_output_embeddings(), engine.module)
    return engine


def _keep_together(head: nn.Module | None, passes: Passes) -> None:
    """For all of a pass, as it runs in blocks, of which each process has as many as its tokens ask."""
    from deepspeed.runtime.zero.partition_parameters import register_external_parameter

    for weight in head.parameters() if head else ():
        register_external_parameter(passes, weight)
    for hooks in (head._forward_pre_hooks, head._forward_hooks) if head else ():
        hooks.clear()  # DeepSpeed's, which all processes must reach equally often


def _deepspeed(device: torch.device) -> ModuleType:
    """The package, which is to say nothing but warnings, and to work where the models are."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    warnings.filterwarnings("ignore", r".torch\.distributed\.\w+. is deprecated", FutureWarning)  # old names
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":  # else it looks for a compiler, and builds what gloo does as well
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _config(stage: int) -> dict:
    return {
        "train_micro_batch_size_per_gpu": 1,  # must be said, and is read by nobody
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # its own clips all groups together, at 1 where nothing is said
        "managed_gradient_accumulation": False,  # a step has as many micro-batches as it has: `step` ends it
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET,
            "sub_group_size": 2**62,  # a group has one flat part
            "stage3_param_persistence_threshold": 0,  # small weights are in parts, too
            "stage3_max_reuse_distance": 0,  # what has run is let go of
            "stage3_prefetch_bucket_size": 0,  # PPO's passes come in no fixed order
        },
    }


@contextmanager
def _with_all_weights(model: nn.Module, unhooked: nn.Module) -> Iterator[nn.Module]:
    """A copy that DeepSpeed knows nothing of, whose weights for the moment are those of the model, put together.

    Each pass of the model itself lets go of its weights, and needs all processes to put them together again.
    """
    from deepspeed.runtime.zero import GatheredParameters

    pairs = list(zip(unhooked.parameters(), model.parameters(), strict=True))
    with GatheredParameters([weight for _, weight in pairs]):
        for lent, weight in pairs:
            lent.data = weight.data
        try:
            yield unhooked
        finally:
            for lent, _ in pairs:
                lent.data = torch.empty(0)


def _clip(part: InParts, adam: torch.optim.Optimizer, *_) -> None:
    """Before AdamW makes its step: DeepSpeed has it make one for each group, on this process's flat part."""
    for flat in (flat for group in adam.param_groups for flat in group["params"]):
        norm = distributed.add_up(torch.linalg.vector_norm(flat.grad) ** 2) ** 0.5
        part.norms.append(float(norm))
        if not math.isfinite(part.norms[-1]):
            raise FloatingPointError(f"gradient norms {part.norms} are not finite")
        if part.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_([flat], part.max_grad_norm, norm)


def _taken_out(state: dict, weights: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """What AdamW knew of each weight, which its state then no longer has; zeros where no loss has been yet."""
    nothing = torch.tensor(0.0)
    return [
        state.pop(weight, None) or {"step": nothing, **dict.fromkeys(MOMENTS, nothing.to(weight).expand(weight.shape))}
        for weight in weights
    ]


def _own_moments(known: Sequence[dict[str, Tensor]], length: int, stage: int) -> dict[str, Tensor]:
    """The same of this process's part of a group, which is `length` numbers in DeepSpeed's order."""
    parts = {key: _own_part([of_weight[key] for of_weight in known], length, stage) for key in MOMENTS}
    return {"step": max(of_weight["step"] for of_weight in known).clone(), **parts}


def _own_part(tensors: Sequence[Tensor], length: int, stage: int) -> Tensor:
    """Stage 2 cuts the row of all tensors into equal pieces, with zeros behind the last; stage 3 the row of each."""
    if stage == 2:
        return _piece(torch.cat([tensor.flatten() for tensor in tensors]), length)
    return torch.cat([_piece(x.flatten(), math.ceil(x.numel() / distributed.size())) for x in tensors])


def _piece(row: Tensor, length: int) -> Tensor:
    padded = nn.functional.pad(row, (0, length * distributed.size() - len(row)))
    return padded[distributed.rank() * length :][:length].clone()


def _whole_moment(weight: nn.Parameter, key: str) -> Tensor:
    """All processes must ask; only the main one is told."""
    from deepspeed.utils import safe_get_full_optimizer_state

    whole = safe_get_full_optimizer_state(weight, key)
    return whole.cpu() if distributed.is_main() else torch.empty(0)
