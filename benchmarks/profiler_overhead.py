"""What profiling costs a PPO update of the tiny world: entries x cost of one / time of the update.

    python -m benchmarks.profiler_overhead

The cost of one entry is the median over blocks of calls of an empty function, less that of the same calls unmarked; the
update is the second of a short run (the first warms up), with all verbs and all parts recorded. Seconds are those of
the processor on one thread, and the cases alternate, so that what else the machine does hardly matters. For the meter
of tensors, whose cost is that of every operation of torch, the update is timed with it and without.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable

import torch

from rlhf_lib.algorithms import ppo
from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.algorithms.ppo_config import PPOConfig
from rlhf_lib.course.short_runs import short_run
from rlhf_lib.engine.profiler import Profile, profiled, watched, watching

VERBS = (ppo.collect, ppo.token_rewards, ppo.estimate_targets, ppo.minibatches, ppo.ppo_loss, ppo.update, ppo.measure)
CALLS = 2_000  # in a block
LIMIT = 0.01
MODES: dict[str, dict | None] = {"off": None, "time": {}, "time and rss": {"memory": ["rss"]}}


def empty() -> None: ...


def block_seconds(function: Callable[[], None], settings: dict | None) -> float:
    """A call of the function, in seconds, while such a profile is active."""
    with contextlib.nullcontext() if settings is None else Profile(**settings):
        started = time.process_time()
        for _ in range(CALLS):
            function()
        return (time.process_time() - started) / CALLS


def costs(repeats: int) -> dict[str, float]:
    """Seconds that one entry adds, by mode."""
    marked = profiled(empty)
    rounds = [
        [block_seconds(empty, None), *(block_seconds(marked, settings) for settings in MODES.values())]
        for _ in range(repeats)
    ]
    bare, *others = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {mode: cost - bare for mode, cost in zip(MODES, others, strict=True)}


def update_seconds(config: PPOConfig, settings: dict | None) -> tuple[float, int]:
    """The second update of a short run, and how many entries it has in a profile."""
    with watching(*VERBS) if settings is not None else contextlib.nullcontext():
        run = short_run(watched(Parts()) if settings is not None else Parts(), config)
        next(run)
        with contextlib.nullcontext() if settings is None else Profile(**settings) as profile:
            started = time.process_time()
            next(run)
            seconds = time.process_time() - started
    return seconds, sum(entry.slices for _, entry in profile.tree()[0].walk()) - 1 if profile else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = PPOConfig(updates=5, batch_size=32, epochs=2, learning_rate=5e-4)
    rounds = [
        [update_seconds(config, settings) for settings in (None, {}, {"memory": ["tensors"]})]
        for _ in range(arguments.repeats)
    ]
    plain, timed, counted = (
        statistics.median(seconds for seconds, _ in column) for column in zip(*rounds, strict=True)
    )
    entries = rounds[0][1][1]
    print(f"an update of {config.batch_size} episodes, {config.epochs} epochs: {plain:.2f} s, {entries} entries")
    for mode, cost in costs(arguments.repeats * 4).items():
        share = entries * cost / plain
        verdict = "below" if share < LIMIT else "ABOVE"
        print(f"{mode:13} {1e6 * cost:6.2f} us an entry, {share:.4%} of the update, {verdict} {LIMIT:.0%}")
    print(f"the update with time recorded: {timed / plain:.2f} of that without; with tensors: {counted / plain:.2f}")


if __name__ == "__main__":
    main()
