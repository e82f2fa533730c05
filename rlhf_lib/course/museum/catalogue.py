"""All exhibits, in the order of the page `train_ppo`; later ones stand last, so that most blind cases stay the same."""

from . import in_the_rewards, in_the_rollout, in_the_targets, in_the_update
from .bug import Bug

BUGS = (*in_the_rollout.BUGS, *in_the_rewards.BUGS, *in_the_targets.BUGS, *in_the_update.BUGS, *in_the_targets.LATER)


def bug(name: str) -> Bug:
    """raises  KeyError for a name that is not in BUGS"""
    return {one.name: one for one in BUGS}[name]
