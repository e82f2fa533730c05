"""All exhibits, in the order of the page `train_ppo`."""

from . import in_the_rewards, in_the_rollout, in_the_targets, in_the_update
from .bug import Bug

BUGS = (*in_the_rollout.BUGS, *in_the_rewards.BUGS, *in_the_targets.BUGS, *in_the_update.BUGS)


def bug(name: str) -> Bug:
    """raises  KeyError for a name that is not in BUGS"""
    return {one.name: one for one in BUGS}[name]
