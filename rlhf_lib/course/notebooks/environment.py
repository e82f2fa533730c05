"""The one environment in which the committed outputs are made and compared. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping

CELL_SECONDS = 300  # a cell that takes longer is stopped
BUDGET_SECONDS = {"notebooks": 40, "solutions": 20, "exercises": 5}  # a whole notebook, on two cores
FIXED = {
    "PYTHONHASHSEED": "0",  # the order in which sets of words are printed
    "CUDA_VISIBLE_DEVICES": "",  # nothing prints device='cuda:0'
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "80",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    # pytest sets it; where it is set, ipykernel shows only what Python itself prints, no warnings of compiled code.
    "PYTEST_CURRENT_TEST": "notebook",
}
WORK_FOLDER = "RLHF_WORK"  # where the course keeps the learner's answers; each notebook gets a fresh folder
ADDED_BY_PEOPLE = ("PYTHONWARNINGS", "FORCE_COLOR", "NO_COLOR", "MATPLOTLIBRC", "MPLCONFIGDIR", "IPYTHONDIR")


def kernel_environment(work: str, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that a notebook's kernel starts with; `work` is the folder for what the learner would write."""
    kept = {name: value for name, value in inherited.items() if name not in ADDED_BY_PEOPLE}
    return {**kept, **FIXED, WORK_FOLDER: work}
