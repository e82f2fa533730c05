"""The moments of a PPO update at which its memory is highest: sampling, scoring, backward, the optimiser's step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..models import logits_at_once
from . import operations
from .held import held_bytes
from .operations import DOUBLE, FLOAT32, INTEGER, Operation, Pass
from .plan import Plan

ROLLOUT = INTEGER + 1 + 6 * FLOAT32  # bytes of a token: id, mask, four log-probabilities and entropies, value
TARGETS = 2 * FLOAT32  # advantage and return
PASSING = "coming and going"
Rows = dict[str, int]  # bytes, by what they are


@dataclass(frozen=True)
class Phase:
    """What is alive at the highest moment of a phase."""

    name: str
    rows: Rows
    when: str  # what runs at that moment

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def total(phase: Phase) -> int:
    return phase.total


def weights(plan: Plan) -> Rows:
    """What is there all the time: four models, and Adam's moments."""
    shared = plan.trunk("policy") if plan.shared_trunk else 0
    counts = {
        "policy": plan.policy.policy, "critic": plan.shape_of("critic").scorer - shared,
        "reference": plan.policy.policy - shared, "reward model": plan.shape_of("reward_model").scorer - shared,
    }  # fmt: skip
    found = {name: count * plan.number for name, count in counts.items()}
    return found | {"Adam's moments": training(plan)["moments"], "remembered states": plan.remembered}


def training(plan: Plan) -> Rows:
    """Weights that train, their gradients and their moments, of policy and critic together."""
    trainable = plan.trainable("policy") + plan.trainable("critic")
    return held_bytes(trainable, 0, number=plan.number, moments=plan.moments)


def rollout(plan: Plan) -> Rows:
    """Its tensors and the targets, and the copy that a minibatch is; kept until the next rollout is there."""
    return {"rollout": 2 * plan.batch * plan.states * (ROLLOUT + TARGETS)}


def sampling(plan: Plan) -> Phase:
    """Reading the prompts, choosing a token, or writing the last one."""
    run, shape = plan.prompts(), plan.policy
    one = replace(run, states=1, masked=False)
    per_state = 2 * shape.layers * run.rows * shape.keys * run.inner
    full = per_state * (plan.prompt + plan.response - 1)
    logits = run.rows * shape.vocabulary * FLOAT32
    growing = full // (2 * shape.layers)  # a layer's keys, copied to where one more fits
    reading, where = looking(run, [])
    moments = {
        f"prompts: {where}": (per_state * plan.prompt, reading),
        "one more token": (full, looking(one, [])[0] + logits + growing),
        # logits, their log-softmax, and in doubles exp and its running sum; first of all rows, with a full cache last
        "choosing a token": (full, 2 * logits + 2 * logits // FLOAT32 * DOUBLE),
    }
    written = plan.batch * plan.response * (INTEGER + FLOAT32 + DOUBLE)  # with the uniform numbers
    found = [
        Phase("sampling", {"cache of keys and values": cache, "responses": written, PASSING: passing}, when)
        for when, (cache, passing) in moments.items()
    ]
    return max(found, key=total)


def scoring(plan: Plan) -> Phase:
    """Four models look at a micro-batch, one after the other, without gradients."""
    found = []
    for model in ("policy", "critic", "reward_model"):
        run = plan.a_pass(model)
        head = [operations.scorer_head(run)] if model != "policy" else policy_head(plan, run, entropy=True)
        passing, where = looking(run, head)
        found.append(Phase("scoring", {PASSING: passing}, f"{model.replace('_', ' ')}: {where}"))
    return max(found, key=total)


def looking(run: Pass, head: Iterable[Operation]) -> tuple[int, str]:
    """The most that is alive in a pass without gradients, and where."""
    within = [*operations.layer(run), operations.final_norm(run)]
    inputs = run.stream if run.shape.layers > 1 else 0  # the model holds its embeddings to the end
    highest = max(within, key=lambda operation: operation.alone)
    after = max(head, key=lambda operation: operation.alone, default=Operation(""))
    if after.alone > highest.alone + inputs + run.angles:
        return after.alone, after.name
    return highest.alone + inputs + run.angles, highest.name


def policy_head(plan: Plan, run: Pass, *, entropy: bool, trains: bool = True) -> list[Operation]:
    """In the numbers of its weights: autocast is for layers, see `engine.precision`."""
    run = replace(run, inner=run.number)
    return operations.policy_head(run, at_once=logits_at_once(plan.device), entropy=entropy, trains=trains)


def step(plan: Plan) -> Phase:
    """The square root of the second moments: of one weight after the other, or on a GPU of a whole model at once."""
    largest = max(plan.largest("policy"), plan.largest("critic"))
    trains = plan.trainable("policy"), plan.trainable("critic")
    passing = 2 * largest if plan.device == "cpu" else max(trains)
    rows = {"gradients": training(plan)["gradients"], PASSING: passing * plan.number}
    return Phase("optimiser's step", rows, "root of the second moments")


# ------------------------------------------------------------------------------------------------- the backward pass


@dataclass(frozen=True)
class Stretch:
    """Operations of one model that are kept, or made again, together: a layer, or what stands around the layers."""

    owner: str
    operations: list[Operation]
    instead: int | None = None  # bytes of the input that is kept, where the rest is made again; None: all is kept

    @property
    def whole(self) -> int:
        return sum(operation.keeps for operation in self.operations)

    @property
    def kept(self) -> int:
        return self.whole if self.instead is None else self.instead


def forward(plan: Plan, model: str) -> list[Stretch]:
    """Policy or critic with gradients, as it runs."""
    run, frozen = plan.a_pass(model), plan.frozen(model)
    layers = []
    for index in range(run.shape.layers):
        last = plan.skip_unread and index == run.shape.layers - 1
        found = operations.layer(run, mlp=operations.where_it_acts(run) if last else None)
        layers.append(operations.at_rest(found) if index < frozen else found)
    instead = run.stream if plan.gradient_checkpointing else None
    if model == "critic":
        head = [operations.scorer_head(run)]
    else:
        head = policy_head(plan, run, entropy=plan.entropy, trains=not frozen)
    below = [operations.embedding(run, also_head=model == "policy" and run.shape.tied)]
    return [
        Stretch(model, operations.at_rest(below) if frozen else below),
        *(Stretch(model, layer, None if index < frozen else instead) for index, layer in enumerate(layers)),
        Stretch(model, [operations.final_norm(run), *head]),
    ]


def backward(plan: Plan) -> Phase:
    """The highest moment on the way back through the critic and then, since it ran first, the policy."""
    stretches = [stretch for model in ("policy", "critic") for stretch in forward(plan, model)]
    gradients = (
        training(plan)["gradients"] if plan.several else 0
    )  # of earlier micro-batches: to these each new one is added, and freed
    kept = Counter[str]()
    best = Phase("backward", {}, "")
    waiting = 0

    def highest(owner: str, operation: Operation, passing: int) -> Phase:
        rows = {f"kept by the {model}": amount for model, amount in kept.items()}
        rows |= {"gradients": gradients, PASSING: passing}
        return max(best, Phase("backward", rows, f"{owner}: {operation.name}"), key=total)

    for stretch in stretches:
        for operation in stretch.operations if stretch.kept < stretch.whole or not stretch.whole else []:
            best = highest(stretch.owner, operation, operation.alone)  # on the way forward, where little is kept
        kept[stretch.owner] += stretch.kept
    for stretch in reversed(stretches):
        kept[stretch.owner] += stretch.whole - stretch.kept
        for operation in reversed(stretch.operations):
            new = operation.weights * plan.number
            best = highest(stretch.owner, operation, operation.returning + new + waiting)
            kept[stretch.owner] -= operation.keeps
            if operation.name == operations.LOGITS and plan.policy.tied:
                waiting = new  # the head's, for the embedding's, to be added to it
                continue
            waiting = 0 if operation.name == operations.EMBEDDING else waiting
            gradients += 0 if plan.several else new
    return best
