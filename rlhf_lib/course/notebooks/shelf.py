"""Where the notebooks are: the folders of a checkout, their names, and which ones are meant."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...pipeline.errors import UserError

LESSONS, EXERCISES, SOLUTIONS = "notebooks", "exercises", "solutions"
MARKS = ("pyproject.toml", "course.py", LESSONS, EXERCISES, SOLUTIONS)


@dataclass(frozen=True)
class Shelf:
    """The notebooks of one checkout. Exercises count as there when their solution is: they are built from it."""

    root: Path

    def path(self, folder: str, name: str) -> Path:
        return self.root / folder / f"{name}.ipynb"

    def names(self, folder: str) -> list[str]:
        """In the order of their numbers: 00_start_here, 01_masking, ..."""
        return sorted(path.stem for path in (self.root / folder).glob("*.ipynb"))

    def has(self, folder: str, name: str) -> bool:
        return self.path(SOLUTIONS if folder == EXERCISES else folder, name).is_file()

    def folder_of(self, path: Path) -> str | None:
        """notebooks, exercises or solutions; None for a notebook that lies elsewhere."""
        folder = path.resolve().parent
        known = (LESSONS, EXERCISES, SOLUTIONS)
        return next((name for name in known if folder == (self.root / name).resolve()), None)

    def shown(self, path: Path) -> str:
        """A path as a reader of the repository says it."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def masters(self) -> list[Path]:
        """Every lesson and every solution: what people write."""
        return [self.path(folder, name) for folder in (LESSONS, SOLUTIONS) for name in self.names(folder)]

    def chosen(self, names: list[str]) -> list[Path]:
        """The lessons and solutions meant by `03_gae`, `03` or a path; all of them by no name at all."""
        found = [path for name in names for path in self._meant_by(name)]
        return list(dict.fromkeys(found)) if names else self.masters()

    def _meant_by(self, name: str) -> list[Path]:
        if name.endswith(".ipynb") or "/" in name or os.sep in name:
            path = Path(name).resolve()
            if not path.is_file():
                raise UserError(f"there is no notebook {name}")
            if self.folder_of(path) == EXERCISES:
                raise UserError(f"{self.shown(path)} is built from {SOLUTIONS}/{path.name}: name that one")
            return [path]
        paths = [path for path in self.masters() if path.stem == name or path.stem.startswith(f"{name}_")]
        if not paths:
            there = ", ".join(sorted({path.stem for path in self.masters()})) or "none yet"
            raise UserError(f"there is no lesson or solution called {name!r}; there are: {there}")
        return paths

    @cached_property
    def repository(self) -> str | None:
        """The address in pyproject.toml, [project.urls] Repository, without .git; None while none is set."""
        try:
            import tomllib
        except ImportError:  # Python 3.10, where JupyterLab brings tomli
            import tomli as tomllib
        project = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
        address = project.get("urls", {}).get("Repository", "").rstrip("/").removesuffix(".git")
        return address or None


def find_shelf() -> Shelf:
    """The checkout that the current folder is in, or else the one that this package lies in.

    raises  UserError if there is neither: the notebooks are not part of the installed package
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[3]):
        if all((folder / mark).exists() for mark in MARKS):
            return Shelf(folder)
    raise UserError(f"{here} is not a checkout of the course: clone the repository and call this in its folder")


def require(*modules: str) -> None:
    """UserError if one of these cannot be imported: the command line works without the extra for notebooks."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f'{missing[0]} is not installed: python -m pip install -e ".[notebook]" brings it')


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or an interruption, meets the old or the new one, never half of it."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(draft).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
