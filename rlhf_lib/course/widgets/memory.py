"""Lesson 10's instrument: a PPO update's memory, phase by phase, against a GPU; what each setting does to it."""

from __future__ import annotations

from dataclasses import replace

from ...engine.memory_budget import GIB, Budget, ModelShape, Plan, estimate
from .instrument import Instrument, html_table, module, stylesheet
from .plain import plain

SHAPES = {  # as their config.json on the Hub has them
    "SmolLM2-135M": ModelShape(
        layers=30, width=576, heads=9, kv_heads=3, feed_forward=1536, vocabulary=49_152, tied=True
    ),
    "Pythia-1B": ModelShape(
        layers=16, width=2048, heads=8, feed_forward=8192, vocabulary=50_304, rotated=64, family="gpt_neox"
    ),
    "Llama-3.2-1B": ModelShape(
        layers=16, width=2048, heads=32, kv_heads=8, feed_forward=8192, vocabulary=128_256, tied=True
    ),
}
CHOICES = {  # what the sliders step through; the plan's own numbers are added
    "batch": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    "micro_batch": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    "prompt": (16, 32, 64, 128, 256, 512, 1024, 2048),
    "response": (8, 16, 24, 53, 128, 256, 512),
    "vocabulary": (169, 4_096, 16_384, 32_000, 49_152, 50_304, 65_536, 128_256, 262_144),
    "gpu": (1, 8, 15, 24, 40, 80, 141),  # GiB
}
NUMBERS = {  # dtype and autocast, by what they are called
    "float32": ("float32", None),
    "float32, products in bfloat16": ("float32", "bfloat16"),
    "bfloat16": ("bfloat16", None),
}
GROUPS = (  # what is drawn as one piece, and the rows of a budget that are in it
    ("weights of four models", ("policy", "critic", "reference", "reward model")),
    ("Adam's moments", ("Adam's moments",)),
    ("gradients", ("gradients",)),
    ("kept for backward", ("kept by the policy", "kept by the critic")),
    ("cache of keys and values", ("cache of keys and values",)),
    ("rollout and what is remembered", ("rollout", "responses", "remembered states")),
    ("coming and going", ("coming and going",)),
)
SETTINGS = ("batch", "micro_batch", "prompt", "response")


def memory_budget(plan: Plan, *, gpu: int = 15 * GIB) -> MemoryBudget:
    """The budget of a plan as stacked bars, one a phase, with a line at a GPU's size, and a control for each setting.

    plan  where the controls are at first; its model is the first of the list, called "of the plan"
    gpu   bytes
    """
    size = round(gpu / GIB, 3)
    view = dict(
        model=0, vocabulary=plan.policy.vocabulary, trainable_layers=_trainable(plan), gpu=size,
        numbers=_numbers(plan), gradient_checkpointing=plan.gradient_checkpointing, shared_trunk=plan.shared_trunk,
        **{name: getattr(plan, name) for name in SETTINGS},
    )  # fmt: skip
    return MemoryBudget(plan, view)


class MemoryBudget(Instrument):
    """See `memory_budget`. Python computes: a control's change is answered with new data."""

    _esm = module("memory")
    _css = stylesheet("memory")

    def __init__(self, plan: Plan, view: dict):
        self.plan = plan
        self.shapes = {"of the plan": plan.policy, **SHAPES}
        self.choices = {name: sorted({*steps, view[name]}) for name, steps in CHOICES.items()}
        super().__init__(data=self._data(view), view=view)
        self.observe(self._answer, "view")

    def planned(self, view: dict) -> Plan:
        """The plan that the controls describe."""
        shape = list(self.shapes.values())[view["model"]]
        dtype, autocast = NUMBERS[view["numbers"]]
        return replace(
            self.plan, policy=replace(shape, vocabulary=view["vocabulary"]), critic=None, reward_model=None,
            dtype=dtype, autocast=autocast, trainable_layers=min(view["trainable_layers"], shape.layers),
            gradient_checkpointing=view["gradient_checkpointing"], shared_trunk=view["shared_trunk"],
            longest=None, actions=None, minibatches=1, **{name: view[name] for name in SETTINGS},
        )  # fmt: skip

    def summary(self) -> str:
        budget = estimate(self.planned(self.view))
        return f"{budget.peak / GIB:.2f} GiB in {budget.phase}, {self.view['gpu']:g} GiB"

    def static_html(self) -> str:
        names = [phase["name"] for phase in self.data["phases"]]
        columns = [phase["groups"] for phase in self.data["phases"]]
        rows = [[name, *(_gib(column[index]) for column in columns)] for index, (name, _) in enumerate(GROUPS)]
        rows.append(["all", *(_gib(sum(column)) for column in columns)])
        return html_table(self.data["says"], ["GiB", *names], rows)

    def _answer(self, change: dict) -> None:
        data = self._data(change["new"])
        if data != self.data:
            self.data = data

    def _data(self, view: dict) -> dict:
        plan = self.planned(view)
        budget = estimate(plan)
        return plain(dict(
            phases=[_as_groups(phase) for phase in budget.phases], groups=[name for name, _ in GROUPS],
            says=verdict(budget, view["gpu"]), fits=budget.fits(int(view["gpu"] * GIB)), layers=plan.policy.layers,
            models=list(self.shapes), vocabularies=[shape.vocabulary for shape in self.shapes.values()],
            choices=self.choices, numbers=list(NUMBERS),
        ))  # fmt: skip


def verdict(budget: Budget, gpu: float) -> str:
    """One sentence: does it fit so many GiB, and where is it highest?"""
    fits = "fits" if budget.fits(int(gpu * GIB)) else "does not fit"
    highest = budget.highest
    return f"{_gib(budget.peak)} GiB in {highest.name} ({highest.when}): {fits} {gpu:g} GiB"


def _as_groups(phase) -> dict:
    amounts = [sum(phase.rows.get(row, 0) for row in rows) for _, rows in GROUPS]
    return dict(name=phase.name, when=phase.when, groups=amounts)


def _trainable(plan: Plan) -> int:
    return plan.policy.layers if plan.trainable_layers is None else plan.trainable_layers


def _numbers(plan: Plan) -> str:
    """raises  ValueError for a mixture that the instrument has no name for"""
    for name, pair in NUMBERS.items():
        if pair == (plan.dtype, plan.autocast):
            return name
    raise ValueError(f"dtype {plan.dtype} with autocast {plan.autocast} is none of {', '.join(NUMBERS)}")


def _gib(amount: float) -> str:
    return f"{amount / GIB:.2f}"
