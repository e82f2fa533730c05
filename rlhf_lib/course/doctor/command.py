"""The `doctor` command: what is known about a run's log, as text or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from .diagnosis import diagnose
from .logs import read_log


def examine(path: Path, *, as_json: bool) -> bool:
    """Print the diagnosis of a run's folder or log; whether any bug fits.

    raises  UserError if there is no log, or a damaged one
    """
    diagnosis = diagnose(read_log(path))
    print(json.dumps(diagnosis.as_json(), indent=2) if as_json else f"{path}\n{diagnosis}")
    return bool(diagnosis.signs)
