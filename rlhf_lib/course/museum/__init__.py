"""The museum: bugs that real people put into real PPO, each ready to be put into ours through one or two parts.

BUGS       the exhibits, in the order of the page `train_ppo`
bug(name)  one of them
buggy_run  a short run with it
recorded   all of them, six seeds each, and healthy runs under several settings
"""

from . import in_the_rewards, in_the_rollout, in_the_targets, in_the_update
from .bug import RUN, RUNGS, STAGES, Bug
from .runs import HEALTHY, HEALTHY_RUNS, SCORING, SEEDS, TUNING, MuseumRun, buggy_run, recorded

BUGS = (*in_the_rollout.BUGS, *in_the_rewards.BUGS, *in_the_targets.BUGS, *in_the_update.BUGS)


def bug(name: str) -> Bug:
    """raises  KeyError for a name that is not in BUGS"""
    return {one.name: one for one in BUGS}[name]


__all__ = [
    "BUGS", "HEALTHY", "HEALTHY_RUNS", "RUN", "RUNGS", "SCORING", "SEEDS", "STAGES", "TUNING",
    "Bug", "MuseumRun", "bug", "buggy_run", "recorded",
]  # fmt: skip
