"""How much memory a PPO update takes, from the shapes alone: nothing is run, and no number is fitted to a machine.

    from rlhf_lib.engine.memory_budget import GIB, ModelShape, Plan, estimate

    shape = ModelShape.of(AutoConfig.from_pretrained(folder))      # or ModelShape(layers=16, width=2048, ...)
    plan = Plan(policy=shape, batch=64, micro_batch=8, prompt=512, response=53, autocast="bfloat16", device="cuda")
    budget = estimate(plan)      # estimate(replace(plan, micro_batch=4)) for another
    budget.peak, budget.phase    # bytes of live tensors at the highest moment, and the phase it is in
    budget.fits(15 * GIB)        # whether they are less than that
    budget.phases, budget.rows   # each phase with what is alive at its highest moment; (phase, what, bytes)
    print(budget)                # a table; in a notebook `budget` alone
    remedies(plan)               # single changes that need less: [(what, budget), ...], the lowest first

What is counted are the bytes of tensors: weights, gradients, Adam's moments, what autograd keeps for the backward pass
(`operations.py` says what, operation by operation), logits, the cache of keys and values, the rollout, and what comes
and goes within an operation. What is not: the scratch memory within kernels, what an allocator holds without using it,
the CUDA context (some hundred MiB), Python and the libraries. So a budget that just fits a GPU does not.

It is the budget of `algorithms.ppo`: policy and critic train, each with its own weights; one backward pass for a
micro-batch through both; a policy that writes `written` rows at once; a head that runs only where something was
chosen. It is the second optimiser step's, from which on Adam has its moments. Every row is taken to be as long as it
may be; `longest` and `actions` tell what is known better.

Held against the peak of live tensors on a CPU: `benchmarks/memory.py`. The numbers for device="cuda" (a step that
takes all weights at once) are read from torch's source and have not been measured.
"""

from .budget import GIB, MIB, Budget, estimate
from .held import held_bytes
from .operations import layer_bytes
from .phases import Phase
from .plan import Plan
from .remedies import remedies
from .shape import ModelShape

__all__ = [
    "GIB", "MIB", "Budget", "ModelShape", "Phase", "Plan", "estimate", "held_bytes", "layer_bytes", "remedies",
]  # fmt: skip
