"""The learner's own folder: answers that passed, and how far they are. Nothing in it is ever overwritten unseen."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from datetime import datetime
from pathlib import Path

FOLDER_VARIABLE = "RLHF_WORK"  # names another folder; tests and committed notebooks use a temporary one
MARK_OF_THE_COURSE = "course.py"


def work_folder() -> Path:
    """`my_work/` at the top of the course if this is inside a checkout of it, else here; made when missing."""
    named = os.environ.get(FOLDER_VARIABLE)
    folder = Path(named) if named else _top() / "my_work"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def leave_no_trace() -> None:
    """From here on, work in a temporary folder: for solutions, which must not pass for the learner's own answers."""
    os.environ[FOLDER_VARIABLE] = tempfile.mkdtemp(prefix="rlhf-course-")


class Demonstration:
    """In a `with` block a temporary folder, the same each time, stands in for the learner's own."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="rlhf-course-")

    def __enter__(self) -> None:
        self._named = os.environ.get(FOLDER_VARIABLE)
        os.environ[FOLDER_VARIABLE] = self._folder

    def __exit__(self, *_: object) -> None:
        if self._named is None:
            os.environ.pop(FOLDER_VARIABLE, None)
        else:
            os.environ[FOLDER_VARIABLE] = self._named


def in_words(path: Path) -> str:
    """Where a file of the work folder is, so that it can be found: from the course's own folder, or in full."""
    folder = work_folder()
    inside = path.relative_to(folder).as_posix()
    if not os.environ.get(FOLDER_VARIABLE):
        return f"{folder.name}/{inside}"
    temporary = Path(tempfile.gettempdir()).resolve()
    return f"{inside} of a temporary folder" if temporary in folder.resolve().parents else f"{folder / inside}"


def write_text(path: Path, text: str) -> None:
    """Atomically: the old file stays until the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def set_aside(path: Path) -> Path:
    """Copy a file to `earlier/` beside it, under a name of its own, before it changes."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    kept = path.parent / "earlier" / f"{path.stem}-{stamp}{path.suffix}"
    write_text(kept, path.read_text(encoding="utf-8"))
    return kept


def move_aside(path: Path, why: str) -> None:
    """The same for a file that cannot be read any more; whoever is working is told."""
    kept = set_aside(path)
    path.unlink()
    place = kept.relative_to(path.parent).as_posix()
    warnings.warn(f"{path.name} cannot be read ({why}); it is now {place}, and a new one is begun", stacklevel=2)


def read_json(path: Path) -> dict:
    """The content, or {} where there is none; a damaged file is moved aside, not lost."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        move_aside(path, str(error))
        return {}


def _top() -> Path:
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / MARK_OF_THE_COURSE).exists()), here)
