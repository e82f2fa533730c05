"""The doctor: reads the log of a run and says which families of bugs fit, with the evidence.

diagnose(log)   the signs in a log
read_log(path)  a run's folder, its metrics.jsonl, or the trainer_state.json of TRL
score(seeds)    how often the diagnosis of the museum's recorded runs is right
"""

from .diagnosis import BROKEN_OFF, NOTHING, Diagnosis, diagnose
from .logs import TRL_NAMES, Log, from_rows, read_log
from .scoring import Score, log_of, score

__all__ = [
    "BROKEN_OFF", "NOTHING", "TRL_NAMES", "Diagnosis", "Log", "Score", "diagnose", "from_rows", "log_of", "read_log",
    "score",
]  # fmt: skip
