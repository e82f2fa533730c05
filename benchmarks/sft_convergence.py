"""Would a longer SFT make better summaries? Trains with the preset's steps and with 50 % more, and compares.

    python -m benchmarks.sft_convergence --seeds 0 1 2

Both policies write under the same randomness on the same posts; the standard error is that of the paired difference.
"""

from __future__ import annotations

import argparse
import tempfile

import torch

from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.engine import models
from rlhf_lib.engine.run_folder import RunFolder
from rlhf_lib.pipeline.command import progress_bar
from rlhf_lib.pipeline.run import Run
from rlhf_lib.pipeline.settings import change, load_settings
from rlhf_lib.pipeline.stages import run_sft
from rlhf_lib.pipeline.texts import write_summaries
from rlhf_lib.worlds.tiny_tldr.world import TinyTLDR


def gold_after(steps: int, seed: int, posts: int) -> torch.Tensor:
    """[posts] gold scores of an SFT policy trained for so many steps."""
    settings = change(load_settings("tiny", seed=seed), "sft.steps", str(steps))
    with tempfile.TemporaryDirectory() as folder:
        out = RunFolder(folder)
        run = Run(settings, TinyTLDR(seed), out, out, Parts(), progress_bar)
        run_sft(run)
        policy = models.freeze(models.load_policy(out / "sft"))
    temperature = settings.evaluation.temperature
    written = write_summaries(run, policy, run.world.posts("test", posts), "convergence", temperature=temperature)
    return torch.tensor([summary.gold for summary in written])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--posts", type=int, default=4096)
    arguments = parser.parse_args()
    steps = load_settings("tiny").sft.steps
    pairs = [[gold_after(n, seed, arguments.posts) for n in (steps, steps * 3 // 2)] for seed in arguments.seeds]
    for seed, (usual, longer) in zip(arguments.seeds, pairs, strict=True):
        print(f"seed {seed}: gold {usual.mean():.3f} after {steps} steps, {longer.mean():.3f} after {steps * 3 // 2}")
    usual, longer = (torch.cat(column) for column in zip(*pairs, strict=True))
    gain = (longer - usual) / usual.mean()
    print(f"all: 50 % more steps gain {gain.mean():+.1%} (standard error {gain.std() / len(gain) ** 0.5:.1%})")


if __name__ == "__main__":
    main()
