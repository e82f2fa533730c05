"""Does the policy degrade when one norm is clipped for policy and critic, and the value coefficient is too large?

    python -m benchmarks.joint_clip --seeds 0 1 2      # half a minute of computing for each seed and row

Runs of 48 updates, as the museum's but longer and at a constant learning rate: the write-up's policy did well for about
50 steps. Printed is gold, the mean of eight updates at a time and over the seeds.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import mean

from tqdm.auto import tqdm

from rlhf_lib.course.museum import HEALTHY, RUN, Bug, buggy_run
from rlhf_lib.course.museum.bug import always
from rlhf_lib.course.museum.joint_clip import jointly_clipped

UPDATES, TOGETHER = 48, 8
NORMS = {"not clipped": HEALTHY.start, "one, clipped": jointly_clipped}
ROWS = (
    ("not clipped", 0.1, RUN.adam_eps),
    ("one, clipped", 0.1, RUN.adam_eps),
    ("one, clipped", 1.0, RUN.adam_eps),
    ("one, clipped", 10.0, RUN.adam_eps),
    ("one, clipped", 10.0, 1e-8),
)


def constant(step: int, steps: int) -> float:
    return 1.0


def gold(norm: str, value_coef: float, eps: float, seed: int) -> list[float]:
    """The mean of each eight updates."""
    bug: Bug = replace(HEALTHY, start=NORMS[norm], plant=always(ppo_schedule=constant))
    run = buggy_run(bug, replace(RUN, updates=UPDATES, value_coef=value_coef, adam_eps=eps), seed=seed)
    curve = [row["gold"] for row in run.metrics]
    return [mean(curve[at : at + TOGETHER]) for at in range(0, UPDATES, TOGETHER)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    spans = [f"{at + 1} to {at + TOGETHER}" for at in range(0, UPDATES, TOGETHER)]
    print("| gradient norm | value coefficient | Adam's eps |", " | ".join(spans), "|")
    print("| --- |", " | ".join(["---:"] * (2 + len(spans))), "|")
    for norm, value_coef, eps in tqdm(ROWS, unit="row", dynamic_ncols=True):
        means = map(mean, zip(*(gold(norm, value_coef, eps, seed) for seed in seeds)))
        cells = norm, f"{value_coef:g}", f"{eps:.0e}", *(f"{value:.2f}" for value in means)
        print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
