"""The museum: bugs that real people put into real PPO, each ready to be put into ours through one or two parts.

BUGS       the exhibits, in the order of the page `train_ppo`
bug(name)  one of them
buggy_run  a short run with it
recorded   all of them, six seeds each, and healthy runs under several settings
"""

from .bug import RUN, RUNGS, STAGES, Bug
from .catalogue import BUGS, bug
from .runs import HEALTHY, HEALTHY_RUNS, SCORING, SEEDS, TUNING, MuseumRun, buggy_run, recorded

__all__ = [
    "BUGS", "HEALTHY", "HEALTHY_RUNS", "RUN", "RUNGS", "SCORING", "SEEDS", "STAGES", "TUNING",
    "Bug", "MuseumRun", "bug", "buggy_run", "recorded",
]  # fmt: skip
