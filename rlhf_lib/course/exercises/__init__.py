"""The exercises, a module for each lesson that has some. A module says `PREAMBLE`, the imports of the notebook, and
`EXERCISES`, in the order of the notebook.
"""

from __future__ import annotations

import difflib

from ..exercise import Exercise
from . import alignment, debugging, full_run, gae, kl, masking, memory, ppo_loss, precision, sft_and_reward_model

MODULES = {
    "01_masking": masking,
    "02_state_action_alignment": alignment,
    "03_gae": gae,
    "04_kl_sanity": kl,
    "05_ppo_loss": ppo_loss,
    "06_sft_and_reward_model": sft_and_reward_model,
    "07_full_gpu_run": full_run,
    "08_debugging_lab": debugging,
    "09_mixed_precision": precision,
    "10_memory_and_speed": memory,
}
PREAMBLES = {lesson: module.PREAMBLE for lesson, module in MODULES.items()}
EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise for module in MODULES.values() for exercise in module.EXERCISES
}


def of_lesson(lesson: str) -> list[Exercise]:
    """The exercises of a lesson such as "03_gae"."""
    return [exercise for exercise in EXERCISES.values() if exercise.lesson == lesson]


def by_name(name: str) -> Exercise:
    """raises  KeyError naming the nearest exercise"""
    if name not in EXERCISES:
        close = difflib.get_close_matches(name, EXERCISES, n=1)
        meant = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(EXERCISES)}"
        raise KeyError(f"there is no exercise {name!r}; {meant}")
    return EXERCISES[name]
