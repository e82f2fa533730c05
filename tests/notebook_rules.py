"""What a committed notebook must be: one function a rule, which returns its complaints."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from rlhf_lib.course.notebooks.generated import is_generated
from rlhf_lib.course.notebooks.shelf import EXERCISES, LESSONS
from rlhf_lib.course.notebooks.tidy import written

ROOT = Path(__file__).parent.parent
CELLS, WORDS, WORDS_A_CELL, CODE_LINES, MEDIAN_CODE_LINES, BYTES, IGNORED = 45, 2500, 120, 25, 8, 1_000_000, 3
IGNORE = "NBVAL_IGNORE_OUTPUT"
IGNORE_TAG = "nbval-ignore-output"
ERROR_IS_MEANT = "raises-exception"
NOT_UNDER_NBVAL = {"interact", "interactive", "interactive_output", "interact_manual", "Output", "clear_output"}
OF_A_MACHINE = re.compile(r"(?:/home/|/Users/|/root/|/tmp/|/work/|/content/|[A-Z]:\\+Users)[\w.-]*")


@dataclass(frozen=True)
class Page:
    """A notebook, and where it lies."""

    path: Path
    notebook: NotebookNode

    @property
    def folder(self) -> str:
        return self.path.parent.name

    @property
    def cells(self) -> list[NotebookNode]:
        """Without those that nobody wrote."""
        return [cell for cell in self.notebook.cells if not is_generated(cell)]

    @property
    def code(self) -> list[NotebookNode]:
        return [cell for cell in self.cells if cell.cell_type == "code"]

    @property
    def prose(self) -> list[NotebookNode]:
        return [cell for cell in self.cells if cell.cell_type == "markdown"]


def python(cell: NotebookNode) -> str:
    """The cell's source, magics turned into calls as IPython does."""
    return TransformerManager().transform_cell(cell.source)


def tree(cell: NotebookNode) -> ast.Module:
    return ast.parse(python(cell))


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def words(text: str) -> int:
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


def is_a_notebook(page: Page) -> Iterator[str]:
    """Valid, with the metadata without which JupyterLab asks for a kernel and GitHub shows no colours."""
    names = [cell.get("id") for cell in page.notebook.cells]
    if len(set(names)) < len(names) or None in names:
        yield "cells without an id of their own"
        return
    try:
        nbformat.validate(page.notebook)
    except nbformat.ValidationError as error:
        yield f"not valid: {str(error).splitlines()[0]}"
    if page.notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "no kernelspec python3"
    if page.notebook.metadata.get("language_info", {}).get("name") != "python":
        yield "no language_info"


def has_one_title(page: Page) -> Iterator[str]:
    titles = re.findall(r"^# .+", "\n".join(without_fences(cell.source) for cell in page.prose), flags=re.MULTILINE)
    if len(titles) != 1:
        yield f"{len(titles)} titles (lines that begin with one #) instead of one"
    elif not page.cells[0].source.startswith(titles[0]):
        yield "the title is not the first line"


def is_short(page: Page) -> Iterator[str]:
    """Fits in a sitting, cell by cell."""
    if len(page.cells) > CELLS:
        yield f"{len(page.cells)} cells, at most {CELLS}"
    if (total := sum(words(cell.source) for cell in page.prose)) > WORDS:
        yield f"{total} words, at most {WORDS}"
    for cell in page.prose:
        if (count := words(cell.source)) > WORDS_A_CELL:
            yield f"cell {cell.id}: {count} words, at most {WORDS_A_CELL}"
    lengths = {cell.id: len(cell.source.splitlines()) for cell in page.code}
    for name, length in lengths.items():
        if length > CODE_LINES:
            yield f"cell {name}: {length} lines, at most {CODE_LINES}"
    if lengths and median(lengths.values()) > MEDIAN_CODE_LINES:
        yield f"code cells of {median(lengths.values())} lines in the median, at most {MEDIAN_CODE_LINES}"
    if (size := len(written(page.notebook).encode())) > BYTES:
        yield f"{size} bytes, at most {BYTES}"


def has_run(page: Page) -> Iterator[str]:
    """Lessons and solutions: once, from top to bottom, in a fresh kernel, without an error. Exercises: not at all."""
    if page.folder == EXERCISES:
        yield from (f"cell {cell.id}: has run" for cell in page.code if cell.outputs or cell.execution_count)
        return
    counts = [cell.execution_count for cell in page.code]
    expected = [list(range(start, start + len(counts))) for start in (1, 2)]  # 2: the cell for Colab came first
    if counts not in expected:
        yield f"not run from top to bottom: {counts}"
    for cell in page.code:
        failed = any(output.output_type == "error" for output in cell.outputs)
        if failed != (ERROR_IS_MEANT in tags(cell)):
            yield f"cell {cell.id}: " + ("failed" if failed else f"tagged {ERROR_IS_MEANT}, but raised nothing")


def is_compared(page: Page) -> Iterator[str]:
    """Few outputs are ignored, each with an assertion in its cell or the next one; no cell is skipped."""
    ignored = [place for place, cell in enumerate(page.code) if _is_ignored(cell)]
    if len(ignored) > IGNORED:
        yield f"{len(ignored)} ignored outputs, at most {IGNORED}"
    for place in ignored:
        nearby = page.code[place : place + 2]
        if not any(isinstance(node, ast.Assert) for cell in nearby for node in ast.walk(tree(cell))):
            yield f"cell {page.code[place].id}: its output is ignored, and nothing is asserted"
    for cell in page.code:
        for line in cell.source.splitlines():
            if "NBVAL_" in line and line.strip().lstrip("# ") != IGNORE:
                yield f"cell {cell.id}: {line.strip()!r} is not {IGNORE} on a line of its own"
        for tag in tags(cell):
            if tag.lower().startswith("nbval") and tag != IGNORE_TAG:
                yield f"cell {cell.id}: the tag {tag!r} is not {IGNORE_TAG}"


def _is_ignored(cell: NotebookNode) -> bool:
    comments = (line.strip().lstrip("# ") for line in cell.source.splitlines() if line.strip().startswith("#"))
    return IGNORE in comments or IGNORE_TAG in tags(cell)


def reads_the_same_under_nbval(page: Page) -> Iterator[str]:
    """nbval shows what a semicolon hides, and knows no Output widget."""
    for cell in page.code:
        for node in tree(cell).body:
            last = (
                cell.source.splitlines()[node.end_lineno - 1] if node.end_lineno <= cell.source.count("\n") + 1 else ""
            )
            if last.split("#")[0].rstrip().endswith(";"):
                yield f"cell {cell.id}: a semicolon at the end of a line hides an output only in JupyterLab"
        used = {node.id for node in ast.walk(tree(cell)) if isinstance(node, ast.Name)}
        used |= {node.attr for node in ast.walk(tree(cell)) if isinstance(node, ast.Attribute)}
        used |= {node.name for node in ast.walk(tree(cell)) if isinstance(node, ast.alias)}
        yield from (f"cell {cell.id}: {name}" for name in sorted(used & NOT_UNDER_NBVAL))


def names_no_machine(page: Page) -> Iterator[str]:
    for cell in page.cells:
        for text in [cell.source, *_texts(cell)]:
            yield from (f"cell {cell.id}: {path}" for path in OF_A_MACHINE.findall(text))


def _texts(cell: NotebookNode) -> Iterator[str]:
    for output in cell.get("outputs", []):
        yield output.get("text", "") + "\n".join(output.get("traceback", []))
        yield from (str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def builds_on_the_library(page: Page) -> Iterator[str]:
    """A lesson imports what exists. It defines nothing under the name of a function of maths (a slow version is called
    gae_loop, a wrong one by its mistake), and no function with the body of one of maths or algorithms.
    """
    if page.folder != LESSONS:
        return
    names = {function.name for function in library_functions("maths")}
    bodies = {_body(function): function.name for function in library_functions("maths", "algorithms")}
    for cell in page.code:
        for node in ast.walk(tree(cell)):
            if isinstance(node, ast.FunctionDef):
                if node.name in names:
                    yield f"cell {cell.id}: defines {node.name}, which the library has"
                elif _body(node) in bodies:
                    yield f"cell {cell.id}: {node.name} repeats the library's {bodies[_body(node)]}"
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
                named = {target.id for target in node.targets if isinstance(target, ast.Name)}
                yield from (f"cell {cell.id}: defines {name}, which the library has" for name in named & names)


def library_functions(*shelves: str) -> Iterator[ast.FunctionDef]:
    """Public functions of the library, from their source."""
    for shelf in shelves:
        for path in sorted((ROOT / "rlhf_lib" / shelf).glob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    yield node


def _body(function: ast.FunctionDef) -> str:
    statements = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return "\n".join(ast.dump(statement) for statement in statements)


def links_lead_somewhere(page: Page) -> Iterator[str]:
    """Relative links to files, and to headings and anchors in Markdown files."""
    for cell in page.notebook.cells:
        if cell.cell_type != "markdown":
            continue
        text = without_fences(cell.source)
        for target in [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'(?:href|src)="([^"]+)"', text)]:
            if not re.match(r"[a-z]+:", target) and not _leads_somewhere(page.path, target):
                yield f"cell {cell.id}: {target}"


def _leads_somewhere(source: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    linked = source.parent / path if path else source
    if not linked.exists():
        return False
    if not anchor or linked.suffix != ".md":
        return True
    text = linked.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return anchor in slugs | set(re.findall(r'id="([^"]+)"', text))


RULES: tuple[Callable[[Page], Iterator[str]], ...] = (
    is_a_notebook,
    has_one_title,
    is_short,
    has_run,
    is_compared,
    reads_the_same_under_nbval,
    names_no_machine,
    builds_on_the_library,
    links_lead_somewhere,
)


def promises(notebook: NotebookNode) -> dict[str, tuple[str, str | None]]:
    """Signature and docstring of every function that a notebook defines at the top of a cell."""
    found = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for node in tree(cell).body:
                if isinstance(node, ast.FunctionDef):
                    returned = ast.unparse(node.returns) if node.returns else ""
                    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
                    signature = f"{decorators} {ast.unparse(node.args)} -> {returned}"
                    found[f"{cell.id} {node.name}"] = (signature, ast.get_docstring(node))
    return found


def stubs(notebook: NotebookNode) -> list[ast.FunctionDef]:
    """Functions that consist of `raise NotImplementedError`."""
    functions = (node for cell in notebook.cells if cell.cell_type == "code" for node in ast.walk(tree(cell)))
    return [node for node in functions if isinstance(node, ast.FunctionDef) and _body(node) == _body(_STUB)]


_STUB = ast.parse("def stub():\n    raise NotImplementedError").body[0]
