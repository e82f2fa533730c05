"""What a budget is made for: the models, the texts, and the settings that decide how much memory they take."""

from __future__ import annotations

from dataclasses import dataclass

from .operations import Pass
from .shape import ModelShape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One PPO update. Scorers have the policy's shape unless they are given one."""

    policy: ModelShape
    critic: ModelShape | None = None
    reward_model: ModelShape | None = None
    batch: int  # rows of a rollout
    written: int | None = None  # rows that are written at once; all by default
    micro_batch: int  # rows that are scored, or trained on, at once
    minibatches: int = 1  # optimiser steps an epoch
    prompt: int  # tokens of the longest prompt
    response: int  # tokens of a response, at most
    longest: int | None = None  # tokens of the longest row, where it is known to be less than both together
    actions: int | None = None  # in the fullest micro-batch, where they are known to be fewer
    dtype: str = "float32"  # of weights, gradients, moments, and of what is kept
    autocast: str | None = None  # dtype of matrix products, if another
    moments: int = 2  # numbers that the optimiser keeps for each weight; 2 of Adam, 0 of plain SGD
    trainable_layers: int | None = None  # at the top, of policy and critic; with less than all, embedding and head rest
    shared_trunk: bool = False  # all four models hold what is frozen once, as with engine.frozen_trunk
    remembered: int = 0  # bytes of states that such a trunk remembers, at most
    gradient_checkpointing: bool = False  # a layer keeps its input, and runs again for backward
    skip_unread: bool = False  # PPOConfig.skip_unread; with PPOConfig.lean less is kept, and the budget is not for that
    entropy: bool = False  # the loss has an entropy bonus
    fused_attention: bool = True
    device: str = "cpu"

    def __post_init__(self):
        for name in ("batch", "micro_batch", "minibatches", "prompt", "response", "written"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, value, known in (("dtype", self.dtype, BYTES), ("autocast", self.autocast, {None, *BYTES}),
                                   ("device", self.device, DEVICES)):  # fmt: skip
            if value not in known:
                raise ValueError(f"{name} {value!r} is none of {', '.join(map(str, known))}")
        if self.trainable_layers is not None and not 0 <= self.trainable_layers <= self.policy.layers:
            raise ValueError(f"trainable_layers must be from 0 to {self.policy.layers}, got {self.trainable_layers}")

    @property
    def number(self) -> int:
        """Bytes of a weight."""
        return BYTES[self.dtype]

    @property
    def states(self) -> int:
        """Of the longest row."""
        return min(self.longest or self.prompt + self.response, self.prompt + self.response)

    @property
    def rows_written(self) -> int:
        """At once."""
        return min(self.written or self.batch, self.batch)

    @property
    def rows(self) -> int:
        """Of a micro-batch; never more than there are."""
        return min(self.micro_batch, self.batch // self.minibatches)

    @property
    def several(self) -> bool:
        """Gradients of several micro-batches are added up before a step."""
        return self.batch // self.minibatches > self.micro_batch

    def shape_of(self, model: str) -> ModelShape:
        return getattr(self, model) or self.policy

    def frozen(self, model: str) -> int:
        """How many of its layers are."""
        shape = self.shape_of(model)
        return 0 if self.trainable_layers is None else max(0, shape.layers - self.trainable_layers)

    def trunk(self, model: str) -> int:
        """Frozen weights below all that trains."""
        shape, frozen = self.shape_of(model), self.frozen(model)
        return shape.embedding + frozen * shape.layer if frozen else 0

    def trainable(self, model: str) -> int:
        """Weights of policy or critic that train."""
        shape, resting = self.shape_of(model), self.trunk(model)
        if model == "critic":
            return shape.scorer - resting
        head = 0 if shape.tied or not resting else shape.embedding
        return shape.policy - resting - head

    def largest(self, model: str) -> int:
        """Numbers in the largest single weight that trains."""
        shape = self.shape_of(model)
        return shape.largest_in_a_layer if self.frozen(model) else max(shape.largest_in_a_layer, shape.embedding)

    def a_pass(self, model: str) -> Pass:
        """The longest micro-batch on its way through a model."""
        acting = self.rows * self.response
        return Pass(
            shape=self.shape_of(model), rows=self.rows, states=self.states, actions=min(self.actions or acting, acting),
            number=self.number, inner=BYTES[self.autocast or self.dtype], fused=self.fused_attention,
        )  # fmt: skip

    def prompts(self) -> Pass:
        """The prompts that are written below at once, on their way into the sampler's cache."""
        rows = self.rows_written
        return Pass(
            shape=self.policy, rows=rows, states=self.prompt, actions=rows, number=self.number,
            inner=BYTES[self.autocast or self.dtype], masked=True, cached=True, fused=self.fused_attention,
        )  # fmt: skip
