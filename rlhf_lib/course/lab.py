"""The learner's own copies of the exercises, and JupyterLab opened at the first lesson. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import MutableMapping
from pathlib import Path

from ..pipeline.errors import UserError
from .notebooks.shelf import EXERCISES, LESSONS, Shelf, find_shelf, replace_text, require

FIRST = "00_start_here"
MY_WORK = "my_work"
RECORD = ".copied.json"  # which version of an exercise each copy was made from


def open_lab(arguments: list[str]) -> None:
    """Copy what is missing, then be JupyterLab until it is closed."""
    shelf = find_shelf()
    require("jupyterlab")
    for line in hand_out(shelf, shelf.root / MY_WORK):
        print(line, flush=True)
    let_threads_sleep(os.environ)
    from jupyterlab.labapp import LabApp

    LabApp.launch_instance([*lab_options(shelf, arguments), *arguments])


def let_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """OpenMP's threads, which kernels inherit, sleep while they wait for each other, unless the user says otherwise.

    Spinning, they take the cores from each other and from the browser: on two busy cores one PPO update of a short run
    took 55 to 65 s instead of 13.
    """
    environment.setdefault("OMP_WAIT_POLICY", "passive")


def hand_out(shelf: Shelf, mine: Path) -> list[str]:
    """Copy the exercises that `mine` lacks, touch nothing that is there; what there is to say about it."""
    if mine.exists() and not mine.is_dir():
        raise UserError(f"{mine} is in the way: it should be the folder for your copies of the exercises")
    mine.mkdir(exist_ok=True)
    copied_from, said = _read_record(mine / RECORD), []
    for name in shelf.names(EXERCISES):
        original, copy = shelf.path(EXERCISES, name), mine / f"{name}.ipynb"
        if not copy.exists():
            shutil.copyfile(original, copy)
            copied_from[name] = version_of(original)
            said.append(f"copied {shelf.shown(original)} to {mine.name}/")
        elif name not in copied_from:
            copied_from[name] = version_of(original)  # copied by hand: changes are noticed from now on
        elif copied_from[name] != version_of(original):
            said.append(
                f"{shelf.shown(original)} has changed since your copy was made; {mine.name}/{copy.name} is left as it "
                "is. For the new one, move yours away and start again."
            )
    replace_text(mine / RECORD, json.dumps(copied_from, indent=1, sort_keys=True) + "\n")
    return said


def version_of(notebook: Path) -> str:
    """A digest of what its author wrote; new links in the generated cells do not count."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    written = [
        [cell["cell_type"], "".join(cell["source"])]
        for cell in cells
        if "generated" not in cell.get("metadata", {}).get("tags", [])
    ]
    return hashlib.sha256(json.dumps(written).encode()).hexdigest()


def lab_options(shelf: Shelf, arguments: list[str]) -> list[str]:
    """Root, settings and first page, except those that the user sets: JupyterLab takes each once."""
    first = f"{LESSONS}/{FIRST}.ipynb" if shelf.has(LESSONS, FIRST) else "README.md"
    options = {
        "--ServerApp.root_dir": str(shelf.root),
        "--LabApp.app_settings_dir": str(shelf.root / ".lab"),
        "--LabApp.default_url": f"/lab/tree/{first}",
    }
    given = {argument.split("=")[0] for argument in arguments}
    return [f"{name}={value}" for name, value in options.items() if name not in given]


def _read_record(path: Path) -> dict[str, str]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
