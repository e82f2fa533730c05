"""The doctor: reads the log of a run and says which families of bugs fit, with the evidence.

diagnose(log)   the signs in a log
read_log(path)  a run's folder, its metrics.jsonl, or the trainer_state.json of TRL
score(seeds)    how often the diagnosis of the museum's recorded runs is right
recorded_by_trl()   logs that TRL's PPO trainer wrote of the tiny world, healthy and with mistakes of its users
"""

from .diagnosis import BROKEN_OFF, NOTHING, Diagnosis, diagnose
from .logs import Log, from_rows, read_log
from .scoring import Score, log_of, score
from .trl import TRL_DIFFERS, TRL_NAMES, recorded_by_trl

__all__ = [
    "BROKEN_OFF", "NOTHING", "TRL_DIFFERS", "TRL_NAMES", "Diagnosis", "Log", "Score", "diagnose", "from_rows",
    "log_of", "read_log", "recorded_by_trl", "score",
]  # fmt: skip
