"""What could be changed in a plan that needs too much, and how much each change would help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..frozen_trunk import REMEMBERED_BYTES
from .budget import Budget, estimate
from .plan import Plan


def remedies(plan: Plan) -> list[tuple[str, Budget]]:
    """Single changes that lower the peak, and the budget with each, the lowest first."""
    peak = estimate(plan).peak
    found = [(what, estimate(changed)) for what, changed in _changes(plan)]
    return sorted(((what, budget) for what, budget in found if budget.peak < peak), key=lambda pair: pair[1].peak)


def _changes(plan: Plan) -> Iterator[tuple[str, Plan]]:
    if plan.micro_batch > 1:
        yield f"micro-batches of {plan.micro_batch // 2}", replace(plan, micro_batch=plan.micro_batch // 2)
    if (half := plan.rows_written // 2) >= 1:
        yield f"{half} rows written at once", replace(plan, written=half)
    if plan.batch >= 2 * plan.minibatches:
        half = plan.batch // 2 // plan.minibatches * plan.minibatches
        yield f"a batch of {half}", replace(plan, batch=half)
    if not plan.gradient_checkpointing:
        yield "gradient checkpointing", replace(plan, gradient_checkpointing=True)
    if plan.dtype == "float32" and plan.autocast is None:
        yield "engine.precision=bfloat16", replace(plan, autocast="bfloat16")
    if (top := plan.policy.layers // 4) and plan.trainable_layers is None:
        less = replace(plan, trainable_layers=top)
        yield f"only the top {top} of {plan.policy.layers} layers in training", less
        yield (
            f"only the top {top} of {plan.policy.layers} layers in training, on one frozen trunk",
            replace(less, shared_trunk=True, remembered=REMEMBERED_BYTES),
        )
