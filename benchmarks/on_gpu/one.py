"""One part in this process: what it measured, as JSON in a file; see `__main__`, which calls this."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path


def main(name: str, answer: str, smaller: bool) -> None:
    from . import machine, parts

    warnings.filterwarnings("ignore")
    try:
        found = {"state": "ran", **parts.run(name, smaller=smaller)}
    except machine.LeftOut as reason:
        found = {"state": "left out", "why": str(reason)}
    found |= machine.describe(machine.find_device())
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], smaller="--small" in sys.argv)
