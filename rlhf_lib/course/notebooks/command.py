"""What `python -m rlhf_lib notebooks` does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm.auto import tqdm

from ...pipeline.errors import StoppedError, UserError
from .generated import refresh
from .shelf import EXERCISES, SOLUTIONS, Shelf, find_shelf, replace_text
from .stubs import exercise_from
from .tidy import read, tidy, written


def notebooks(names: list[str], check: bool, execute: bool) -> int:
    """Bring notebooks up to date, or with `check` only say which are not; the exit status."""
    if check and execute:
        raise UserError("--check changes nothing: give it without --execute")
    shelf = find_shelf()
    masters = shelf.chosen(names)
    failed = run_all(masters, shelf) if execute else []
    stale = stale_files([path for path in masters if path not in failed], shelf)
    orphans = [] if names else orphaned(shelf)
    for path in [*stale, *orphans]:
        print(f"{'out of date' if check else 'removed' if path in orphans else 'wrote'}: {shelf.shown(path)}")
    if check:
        return int(bool(stale or orphans))
    for path, text in stale.items():
        replace_text(path, text)
    for path in orphans:
        path.unlink()
    print(f"{len(masters) - len(failed)} lessons and solutions are up to date" + ("" if stale else " already"))
    return int(bool(failed))


def stale_files(masters: list[Path], shelf: Shelf) -> dict[Path, str]:
    """The files that are not as they should be, and the text that they should have."""
    wanted: dict[Path, str] = {}
    for path in masters:
        wanted.update(wanted_files(path, shelf))
    return {path: text for path, text in wanted.items() if not path.is_file() or _text(path) != text}


def wanted_files(path: Path, shelf: Shelf) -> dict[Path, str]:
    """A lesson or solution as it should be; for a solution its exercise, too."""
    notebook, folder = tidy(read(path)), shelf.folder_of(path)
    if folder is None:
        return {path: written(notebook)}
    wanted = {path: written(refresh(notebook, folder, path.stem, shelf))}
    if folder == SOLUTIONS:
        exercise = exercise_from(notebook, shelf.shown(path))
        wanted[shelf.path(EXERCISES, path.stem)] = written(refresh(exercise, EXERCISES, path.stem, shelf))
    return wanted


def orphaned(shelf: Shelf) -> list[Path]:
    """Exercises whose solution is gone."""
    return [shelf.path(EXERCISES, name) for name in shelf.names(EXERCISES) if not shelf.has(EXERCISES, name)]


def run_all(masters: list[Path], shelf: Shelf) -> list[Path]:
    """Execute each and write it; returns those that failed, which are left as they were."""
    from .execute import NotebookError, StoppedKernelError

    failed = []
    opened = {path: read(path) for path in masters}
    cells = sum(cell.cell_type == "code" for notebook in opened.values() for cell in notebook.cells)
    with tqdm(total=cells, unit="cell", dynamic_ncols=True) as bar:
        for path in masters:
            bar.set_description(shelf.shown(path))
            start = time.monotonic()
            try:
                run_one(path, shelf, bar.update)
                bar.write(f"ran: {shelf.shown(path)}, {time.monotonic() - start:.0f} s")
            except NotebookError as error:
                failed.append(path)
                bar.write(f"failed: {shelf.shown(path)}, {error}", file=sys.stderr)
                if isinstance(error, StoppedKernelError):
                    raise StoppedError("stopped; notebooks executed before this one are written") from None
    return failed


def run_one(path: Path, shelf: Shelf, after_cell: Callable[[], object]) -> None:
    """Execute one notebook, its generated cells brought up to date, and write it."""
    from .execute import execute

    notebook, folder = read(path), shelf.folder_of(path)
    if folder is not None:
        refresh(notebook, folder, path.stem, shelf)
    execute(notebook, path.parent, after_cell)
    replace_text(path, written(tidy(notebook)))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
