"""`python -m rlhf_lib notebooks` and the conftest of nbval, on small notebooks in a checkout of their own."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import get_sanitize_patterns

from rlhf_lib import cli
from rlhf_lib.course.notebooks import generated, stubs
from rlhf_lib.course.notebooks.environment import BUDGET_SECONDS, FIXED, kernel_environment
from rlhf_lib.course.notebooks.shelf import Shelf
from rlhf_lib.course.notebooks.tidy import RANDOM, tidy, written
from rlhf_lib.pipeline.errors import UserError

ROOT = Path(__file__).parents[2]
LESSON = """
import os, sys, warnings
from pathlib import Path
print(Path.cwd().name, sorted({"b", "a"}) == sorted({"a", "b"}), list({"red", "green", "blue"}))
print([os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "COLUMNS")])
---
work = Path(os.environ["RLHF_WORK"])
print(list(work.iterdir()))
_ = (work / "answers.json").write_text("{}")
---
print("one", flush=True); print("two", file=sys.stderr); print("three")
warnings.warn("careful")
---
os.system("echo not from Python")
object()
---
import matplotlib.pyplot as plt
plt.plot([1, 2])
"""
SOLUTION = '''
import math
---
def masked_mean(x: list, mask: list) -> float:
    """The mean where the mask is True."""
    ### BEGIN SOLUTION
    kept = [value for value, counts in zip(x, mask) if counts]
    return sum(kept) / len(kept)
    ### END SOLUTION
---
# solution-only
print(masked_mean([1, 5], [True, False]))
'''


def notebook(title: str, source: str) -> nbformat.NotebookNode:
    """Cells between lines of ---; one that begins with "# solution-only" gets that tag."""
    cells = [new_markdown_cell(f"# {title}", id="title")]
    for place, text in enumerate(source.strip().split("\n---\n")):
        tags = {"tags": ["solution-only"]} if text.startswith("# solution-only") else {}
        cells.append(new_code_cell(text, id=f"code-{place}", metadata=tags))
    return new_notebook(cells=cells)


class Checkout:
    """A folder like the repository, with notebooks put into it by the tests."""

    def __init__(self, root: Path):
        self.root, self.shelf = root, Shelf(root)
        for folder in ("notebooks", "exercises", "solutions", "tests"):
            (root / folder).mkdir()
        (root / "course.py").touch()
        for name in ("pyproject.toml", "conftest.py", "tests/nbval_sanitize.cfg"):
            shutil.copyfile(ROOT / name, root / name)

    def put(self, where: str, source: str = "x = 1", printed: str = "") -> Path:
        """A notebook; with `printed` as if each cell had printed that."""
        path = self.root / f"{where}.ipynb"
        page = notebook(path.stem, source)
        for count, cell in enumerate(page.cells[1:] if printed else [], 1):
            cell.execution_count, cell.outputs = count, [new_output("stream", name="stdout", text=printed)]
        path.write_text(nbformat.writes(page), encoding="utf-8")
        return path

    def call(self, *arguments: str) -> subprocess.CompletedProcess:
        """`python -m rlhf_lib notebooks ARGUMENTS` in this folder, in this process: its imports take a second."""
        out, err, here, argv = io.StringIO(), io.StringIO(), Path.cwd(), sys.argv
        os.chdir(self.root)
        sys.argv = ["rlhf_lib", "notebooks", *arguments]
        try:
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as leaving:
                cli.main()
        finally:
            os.chdir(here)
            sys.argv = argv
        return subprocess.CompletedProcess(arguments, leaving.value.code or 0, out.getvalue(), err.getvalue())

    def python(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess:
        """`python -m ARGUMENTS` in this folder."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **extra}
        del environment["PYTEST_CURRENT_TEST"]  # a shell has none
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, encoding="utf-8", timeout=300
        )

    def files(self) -> dict[str, bytes]:
        return {self.shelf.shown(path): path.read_bytes() for path in sorted(self.root.glob("*/*.ipynb"))}

    def cells(self, where: str) -> dict[str, nbformat.NotebookNode]:
        return {cell.id: cell for cell in nbformat.read(self.root / f"{where}.ipynb", as_version=4).cells}

    def set_repository(self, address: str) -> None:
        path = self.root / "pyproject.toml"
        urls = f'[project.urls]\nRepository = "{address}"\n\n[project.scripts]'
        path.write_text(path.read_text(encoding="utf-8").replace("[project.scripts]", urls), encoding="utf-8")


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "checkout").mkdir()
    return Checkout(tmp_path / "checkout")


def test_executed_twice_is_the_same_file_and_nbval_agrees(checkout):
    """Rejects outputs that carry an address, a time, a process id, a widget id, or the order in which prints arrived; a
    work folder that two notebooks share; and an nbval that runs in another environment than the one that wrote them,
    that overlooks a stale output, or that judges what a learner has written.
    """
    checkout.put("notebooks/00_start_here", LESSON.split("\n---\nprint")[0])
    checkout.put("notebooks/01_masking", LESSON)
    checkout.put("solutions/01_masking", SOLUTION)
    hostile = {"MPLBACKEND": "agg", "PYTHONHASHSEED": "7", "COLUMNS": "31", "PYTHONWARNINGS": "error::UserWarning"}
    assert checkout.python("rlhf_lib", "notebooks", "--execute", **hostile).returncode == 0
    first = checkout.files()
    assert set(first) == {
        "notebooks/00_start_here.ipynb", "notebooks/01_masking.ipynb", "solutions/01_masking.ipynb",
        "exercises/01_masking.ipynb",
    }  # fmt: skip
    assert checkout.call("--execute", "01").returncode == 0
    assert checkout.files() == first
    cells = checkout.cells("notebooks/01_masking")
    assert "[]" in cells["code-1"].outputs[0].text
    assert [output.name for output in cells["code-2"].outputs] == ["stdout", "stderr"]
    assert "image/png" in cells["code-4"].outputs[1].data

    checkout.put("notebooks/02_stale", "print(1)", printed="2")
    (checkout.root / "my_work").mkdir()
    checkout.put("my_work/01_masking", "1 / 0")
    hostile["PYTHONWARNINGS"] = "ignore"  # or pytest itself would stop
    compared = checkout.python("pytest", "--nbval", "-q", ".", **hostile)
    assert compared.returncode == 1, compared.stdout
    assert "1 failed" in compared.stdout and "FAILED notebooks/02_stale.ipynb::Cell 0" in compared.stdout
    assert "my_work" not in compared.stdout
    assert "seconds per notebook" in compared.stdout
    assert "of  40  notebooks/01_masking.ipynb" in compared.stdout
    assert "of   5  exercises/01_masking.ipynb" in compared.stdout


def test_a_notebook_that_fails_is_left_as_it_was(checkout):
    """Rejects half a file, an error that does not say where, and one that keeps the other notebooks from running."""
    bad = checkout.put("notebooks/00_start_here", "print(1)\n---\nraise ValueError('too large')")
    good = checkout.put("notebooks/01_masking", "print(1)")
    before = bad.read_bytes()
    done = checkout.call("--execute")
    assert done.returncode == 1
    assert "notebooks/00_start_here.ipynb, code cell 2 (id code-1): ValueError: too large" in done.stderr
    assert bad.read_bytes() == before
    assert '"execution_count": 1' in good.read_text(encoding="utf-8")


def test_a_killed_kernel_ends_the_run(checkout):
    """Rejects going on, after Ctrl-C or out of memory, as if nothing had happened."""
    path = checkout.put("notebooks/00_start_here", "import os\n---\nos._exit(1)")
    before = path.read_bytes()
    done = checkout.call("--execute")
    assert done.returncode == 130 and "code cell 2" in done.stderr and "Traceback" not in done.stderr
    assert path.read_bytes() == before


def test_only_the_named_notebooks_run(checkout):
    """Rejects a name that is taken for a path, a number that is taken for a prefix of another, and a silent typo."""
    for name in ("01_masking", "02_gae"):
        checkout.put(f"notebooks/{name}"), checkout.put(f"solutions/{name}")
    shelf = checkout.shelf
    both = [shelf.path("notebooks", "01_masking"), shelf.path("solutions", "01_masking")]
    assert shelf.chosen(["01_masking"]) == shelf.chosen(["01"]) == shelf.chosen(["01", "01_masking"]) == both
    assert shelf.chosen([str(both[1])]) == both[1:]
    assert shelf.chosen([]) == shelf.masters() and len(shelf.masters()) == 4
    for name in ("0", "gae", "notebooks/07_no.ipynb", str(shelf.path("exercises", "01_masking"))):
        with pytest.raises(UserError):
            shelf.chosen([name])
    done = checkout.call("07")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "01_masking, 02_gae" in done.stderr


def test_check_changes_nothing_and_names_what_is_stale(checkout):
    """Rejects a check that repairs, one that is content with a stale exercise, and a build that is never content."""
    solution = checkout.put("solutions/01_masking", SOLUTION)
    checkout.put("notebooks/01_masking")
    assert checkout.call().returncode == 0
    assert checkout.call("--check").returncode == 0
    built = checkout.files()
    assert checkout.call().returncode == 0 and checkout.files() == built

    text = solution.read_text(encoding="utf-8")
    solution.write_text(text.replace("where the mask is True", "of what counts"), encoding="utf-8")
    before = checkout.files()
    done = checkout.call("--check")
    assert done.returncode == 1 and checkout.files() == before
    assert done.stdout.splitlines() == ["out of date: exercises/01_masking.ipynb"]

    solution.write_text(text.replace("len(kept)", "len(kept) + 0"), encoding="utf-8")  # another body, the same stub
    assert checkout.call("--check").returncode == 0

    solution.unlink()
    done = checkout.call("--check")
    assert done.returncode == 1 and "out of date: exercises/01_masking.ipynb" in done.stdout
    checkout.call()
    assert set(checkout.files()) == {"notebooks/01_masking.ipynb"}


def test_an_exercise_is_its_solution_with_stubs(checkout):
    """Rejects an exercise that gives the answer away, loses a signature or docstring, or renames its cells."""
    checkout.put("solutions/01_masking", SOLUTION, printed="the answer")
    checkout.call()
    cells = checkout.cells("exercises/01_masking")
    assert list(cells) == ["title", "generated-own-copy", "code-0", "code-1", "generated-navigation"]
    assert "`my_work/01_masking.ipynb`" in cells["generated-own-copy"].source
    assert cells["code-1"].source == (
        "def masked_mean(x: list, mask: list) -> float:\n"
        '    """The mean where the mask is True."""\n'
        "    raise NotImplementedError"
    )
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells.values())


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    ### BEGIN SOLUTION\n    return 1",
        "def f():\n    return 1\n    ### END SOLUTION",
        "def f():\n    ### END SOLUTION\n    return 1\n    ### BEGIN SOLUTION",
        "def f():\n    ### BEGIN SOLUTION\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION",
        "def f():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION",
        "### BEGIN SOLUTION\nx = 1\n### END SOLUTION",
    ],
)
def test_markers_that_do_not_pair_up_are_refused(source):
    """Rejects an answer that slips into the exercise, and a cell that raises as soon as it runs."""
    with pytest.raises(UserError, match=r"solutions/01\.ipynb, cell code-0"):
        stubs.exercise_from(notebook("x", source), "solutions/01.ipynb")


def test_navigation_links_to_what_exists(checkout):
    """Rejects a link to a missing notebook, to itself, or to a neighbour that is none."""
    for where in ("notebooks/00_start_here", "notebooks/01_masking", "notebooks/03_gae", "solutions/01_masking"):
        checkout.put(where)
    found = {where: generated.navigation(*where.split("/"), checkout.shelf) for where in (
        "notebooks/00_start_here", "notebooks/01_masking", "notebooks/03_gae", "exercises/01_masking",
        "solutions/01_masking",
    )}  # fmt: skip
    assert links(found["notebooks/00_start_here"]) == {"Next": "01_masking.ipynb"}
    assert links(found["notebooks/01_masking"]) == {
        "Before": "00_start_here.ipynb",
        "Exercise": "../exercises/01_masking.ipynb",
        "Solution": "../solutions/01_masking.ipynb",
        "Next": "03_gae.ipynb",
    }
    assert "`my_work/01_masking.ipynb`" in found["notebooks/01_masking"]
    assert links(found["notebooks/03_gae"]) == {"Before": "01_masking.ipynb"}
    assert links(found["exercises/01_masking"]) == {
        "Lesson": "../notebooks/01_masking.ipynb",
        "Solution": "../solutions/01_masking.ipynb",
        "Next": "../notebooks/03_gae.ipynb",
    }
    assert links(found["solutions/01_masking"])["Exercise"] == "../exercises/01_masking.ipynb"


def links(navigation: str) -> dict[str, str]:
    parts = [part.split(": ") for part in navigation.removeprefix("---\n").split(" · ") if ": [" in part]
    return {label: link.split("](")[1].rstrip(")") for label, link in parts}


def test_without_a_repository_nothing_speaks_of_colab(checkout):
    """Rejects a badge that leads nowhere."""
    checkout.put("notebooks/00_start_here")
    checkout.call()
    assert list(checkout.cells("notebooks/00_start_here")) == ["title", "code-0"]


def test_a_fork_gets_its_own_badges_and_loses_them_again(checkout):
    """Rejects a badge for another notebook, a second copy of it, a set-up cell behind the cell that needs it, and a
    set-up cell that forgets that it has run.
    """
    solution = checkout.put("solutions/01_masking", SOLUTION)
    checkout.call()
    plain, pyproject = checkout.files(), (checkout.root / "pyproject.toml").read_text(encoding="utf-8")
    checkout.set_repository("https://github.com/ada/rlhf.git")
    assert checkout.call().returncode == 0
    page = nbformat.read(solution, as_version=4)
    page.cells[2].execution_count = 1
    solution.write_text(written(page), encoding="utf-8")
    assert checkout.call("--check").returncode == 0
    for folder in ("solutions", "exercises"):
        cells = checkout.cells(f"{folder}/01_masking")
        own_copy = [generated.OWN_COPY] * (folder == "exercises")
        assert list(cells)[: 4 + len(own_copy)] == [generated.BADGE, "title", *own_copy, generated.COLAB, "code-0"]
        opens = f"https://colab.research.google.com/github/ada/rlhf/blob/main/{folder}/01_masking.ipynb"
        assert cells[generated.BADGE].source.endswith(f"]({opens})")
        assert cells[generated.COLAB].execution_count == {"solutions": 1, "exercises": None}[folder]
    (checkout.root / "pyproject.toml").write_text(pyproject, encoding="utf-8")
    checkout.call()
    assert checkout.files() == plain


@pytest.mark.parametrize("needs_files", [False, True])
def test_the_setup_cell_installs_in_colab_only(monkeypatch, needs_files):
    """Rejects a set-up cell that installs at home, or in Colab something else."""
    source = generated.colab_setup("https://github.com/ada/rlhf", "notebooks", needs_files)
    did: list[str] = []

    class Shell:
        def run_line_magic(self, name, line):
            did.append(f"%{name} {line}")

        def system(self, line):
            did.append(f"!{line}")

    cell = compile(TransformerManager().transform_cell(source), "cell", "exec")
    exec(cell, {"get_ipython": Shell})
    assert did == []
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    exec(cell, {"get_ipython": Shell})
    if needs_files:
        assert did[0].startswith("!git clone") and "https://github.com/ada/rlhf" in did[0]
        assert did[-1].endswith("/notebooks")
    else:
        assert did == ['%pip install -q "rlhf-from-scratch @ git+https://github.com/ada/rlhf"']


def test_a_repository_elsewhere_has_no_badge():
    """Rejects a badge for what Colab cannot open."""
    assert generated.colab_badge("https://example.org/ada/rlhf", "notebooks", "01_masking") is None


def test_widgets_leave_a_picture_and_nothing_random():
    """Rejects widget ids and state in the file, and a reader on GitHub who sees neither page nor picture."""
    picture = base64.b64encode(b"png").decode()
    state = {
        "box": {"model_name": "VBoxModel", "state": {"children": ["IPY_MODEL_slider", "IPY_MODEL_image"]}},
        "slider": {"model_name": "IntSliderModel", "state": {}},
        "image": {"model_name": "ImageModel", "state": {}, "buffers": [{"path": ["value"], "data": picture}]},
    }
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "box"}}
    shown = [
        new_output("display_data", {**view, "text/plain": "VBox()"}),
        new_output("display_data", {**view, "text/plain": "Table()", "text/html": "<b>x</b>"}),
    ]
    page = new_notebook(cells=[new_code_cell("box", id="a", outputs=shown, metadata={"execution": {"started": "1"}})])
    page.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": state}}
    tidy(page)
    plain, table = (output.data for output in page.cells[0].outputs)
    assert plain == {"text/plain": "VBox()", "image/png": picture}
    assert table == {"text/plain": "Table()", "text/html": "<b>x</b>"}
    assert page.cells[0].metadata == {}
    assert "widgets" not in page.metadata and "model_id" not in written(page)
    once = written(page)
    assert written(tidy(page)) == once


def test_a_traceback_names_no_folder_of_this_machine():
    """Rejects a committed traceback with somebody's home in it."""
    ours, theirs = f"{ROOT.as_posix()}/rlhf_lib/maths/kl.py:3", "/home/ada/.venv/lib/python3.11/site-packages/x.py"
    said = [f"File \x1b[39m{ours}", theirs]
    error = new_output("error", ename="ValueError", evalue="<object at 0x7f00aa11bb22>", traceback=said)
    page = tidy(new_notebook(cells=[new_code_cell("x", id="a", outputs=[error])]))
    (error,) = page.cells[0].outputs
    assert error.traceback == ["File \x1b[39mrlhf_lib/maths/kl.py:3", "python3.11/site-packages/x.py"]
    assert error.evalue == "<object at 0xADDRESS>"


def test_numbers_in_hexadecimal_stay():
    """Rejects a clean-up that takes the bits of a float for an address."""
    shown = new_output("stream", name="stdout", text="0x3f800000\n")
    assert "0x3f800000" in written(tidy(new_notebook(cells=[new_code_cell("x", id="a", outputs=[shown])])))


def test_nbval_and_the_command_call_the_same_things_random():
    """Rejects a pattern that one of the two forgets: the committed text and the compared one would differ."""
    assert dict(get_sanitize_patterns((ROOT / "tests/nbval_sanitize.cfg").read_text(encoding="utf-8"))) == RANDOM


def test_the_kernels_environment():
    """Rejects a variable of the caller's that wins over the fixed one, and the caller's own colours and warnings."""
    found = kernel_environment("w", {"COLUMNS": "200", "FORCE_COLOR": "1", "PATH": "p", "RLHF_WORK": "mine"})
    assert found == {**FIXED, "PATH": "p", "RLHF_WORK": "w"}


@pytest.mark.parametrize(("seconds", "over"), [(39.0, False), (41.0, True)])
def test_over_budget_is_shown(seconds, over):
    """Rejects a table that hides a notebook which takes too long."""
    spec = importlib.util.spec_from_file_location("root_conftest", ROOT / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines: list[tuple[str, bool]] = []

    class Terminal:
        def section(self, title): ...

        def write_line(self, line, *, red, bold):
            lines.append((line, red))

    runs = module.NotebookRuns()
    runs.seconds["notebooks/03_gae.ipynb"] += seconds
    runs.seconds["my_work/03_gae.ipynb"] += 1000.0
    runs.pytest_terminal_summary(Terminal())
    runs.pytest_unconfigure()
    assert [red for _, red in lines] == [over, False]
    assert ("OVER BUDGET" in lines[0][0]) is over
    assert set(BUDGET_SECONDS) == {"notebooks", "solutions", "exercises"}


def test_what_is_not_a_notebook_is_one_line(checkout):
    """Rejects a traceback for a damaged file."""
    path = checkout.put("notebooks/00_start_here")
    for text in ("not json", "[1]"):
        path.write_text(text, encoding="utf-8")
        done = checkout.call()
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "00_start_here" in done.stderr
