"""Cells that nobody writes: links, where to work, the way into Colab. They carry a tag and an id of their own."""

from __future__ import annotations

from urllib.parse import urlparse

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from .shelf import EXERCISES, LESSONS, SOLUTIONS, Shelf
from .tidy import OURS

TAG = "generated"
NAVIGATION, OWN_COPY = "generated-navigation", "generated-own-copy"
BADGE, COLAB = "generated-colab-badge", "generated-colab-setup"
BADGE_PICTURE = "https://colab.research.google.com/assets/colab-badge.svg"
COLAB_OPENS = "https://colab.research.google.com/github"
BRANCH = "main"
IN_COLAB = """import sys

if "google.colab" in sys.modules:  # elsewhere the course is installed already
"""
INSTALL = '    %pip install -q "rlhf-from-scratch @ git+{repository}"'
CLONE = """    !git clone -q --depth 1 {repository} /content/course
    %pip install -q /content/course
    %cd -q /content/course/{folder}"""


def is_generated(cell: NotebookNode) -> bool:
    return TAG in cell.metadata.get("tags", [])


def refresh(notebook: NotebookNode, folder: str, name: str, shelf: Shelf) -> NotebookNode:
    """In place: the generated cells of notebook `name` in `folder` as they should be now.

    A notebook that reads files of the repository says so in its metadata, {"course": {"needs": "repository"}}: in
    Colab it gets a clone instead of the package alone.
    """
    ran = {cell.id: cell.execution_count for cell in notebook.cells if is_generated(cell) and cell.cell_type == "code"}
    cells = [cell for cell in notebook.cells if not is_generated(cell)]
    if folder == EXERCISES:
        cells.insert(1, _markdown(OWN_COPY, own_copy(name)))  # below the title
    if shelf.repository:
        first_code = next((i for i, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
        needs_files = notebook.metadata.get(OURS, {}).get("needs") == "repository"
        setup = _code(COLAB, colab_setup(shelf.repository, folder, needs_files))
        setup.execution_count = ran.get(COLAB)
        cells.insert(first_code, setup)
        badge = colab_badge(shelf.repository, folder, name)
        cells[:0] = [_markdown(BADGE, badge)] if badge else []
    links = navigation(folder, name, shelf)
    notebook.cells = cells + ([_markdown(NAVIGATION, links)] if links else [])
    return notebook


def own_copy(name: str) -> str:
    """Where to write, for whoever came by a link to the page that is built from the solution."""
    return (
        f"*Work in your own copy, `my_work/{name}.ipynb`: `python3 course.py lab` makes it and never overwrites it. "
        f"The page in `{EXERCISES}/` is built anew with every change.*"
    )


def navigation(folder: str, name: str, shelf: Shelf) -> str:
    """Links to the other notebooks of this number, and to the lessons before and after it: those that exist."""
    lessons = shelf.names(LESSONS)
    before = [lesson for lesson in lessons if lesson < name]
    after = [lesson for lesson in lessons if lesson > name]
    places = [
        ("Before", LESSONS, before[-1] if before and folder == LESSONS else None),
        ("Lesson", LESSONS, name),
        ("Exercise", EXERCISES, name),
        ("Solution", SOLUTIONS, name),
        ("Next", LESSONS, after[0] if after else None),
    ]
    shown = [
        f"{label}: [{target}]({'' if there == folder else f'../{there}/'}{target}.ipynb)"
        for label, there, target in places
        if target and shelf.has(there, target) and (there, target) != (folder, name)
    ]
    if folder == LESSONS and shelf.has(EXERCISES, name):
        shown.append(f"(`python3 course.py lab` puts your own copy of the exercise at `my_work/{name}.ipynb`)")
    return "---\n" + " · ".join(shown) if shown else ""


def colab_badge(repository: str, folder: str, name: str) -> str | None:
    """A picture that opens the notebook in Colab; Colab reads from GitHub only."""
    address = urlparse(repository)
    if address.hostname != "github.com":
        return None
    return f"[![Open in Colab]({BADGE_PICTURE})]({COLAB_OPENS}{address.path}/blob/{BRANCH}/{folder}/{name}.ipynb)"


def colab_setup(repository: str, folder: str, needs_files: bool) -> str:
    """Installs the course in Colab, and does nothing elsewhere."""
    return IN_COLAB + (CLONE if needs_files else INSTALL).format(repository=repository, folder=folder)


def _markdown(cell_id: str, source: str) -> NotebookNode:
    return new_markdown_cell(source, id=cell_id, metadata={"tags": [TAG]})


def _code(cell_id: str, source: str) -> NotebookNode:
    return new_code_cell(source, id=cell_id, metadata={"tags": [TAG]})
