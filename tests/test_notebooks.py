"""Every committed lesson, solution and exercise keeps the rules; and every rule can be broken."""

from __future__ import annotations

import copy

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from rlhf_lib.course.notebooks.command import orphaned, stale_files
from rlhf_lib.course.notebooks.shelf import EXERCISES, LESSONS, SOLUTIONS, Shelf
from rlhf_lib.course.notebooks.stubs import exercise_from
from rlhf_lib.course.notebooks.tidy import METADATA, read
from tests import notebook_rules as rules
from tests.notebook_rules import ROOT, Page

SHELF = Shelf(ROOT)
PATHS = [SHELF.path(folder, name) for folder in (LESSONS, SOLUTIONS, EXERCISES) for name in SHELF.names(folder)]
BUILT = [name for name in SHELF.names(SOLUTIONS) if name in SHELF.names(EXERCISES)]  # the others are out of date


@pytest.mark.parametrize("path", PATHS, ids=SHELF.shown)
@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_notebook(path, rule):
    """Rejects a committed notebook that breaks a rule of tests/notebook_rules.py."""
    assert list(rule(Page(path, read(path)))) == []


def test_generated_cells_and_exercises_are_current():
    """Rejects an edited solution without its exercise, a new lesson that its neighbours do not link to, an exercise
    without a solution, and what a front end leaves behind. `python -m rlhf_lib notebooks` mends all of it.
    """
    stale = [*stale_files(SHELF.masters(), SHELF), *orphaned(SHELF)]
    assert [SHELF.shown(path) for path in stale] == []


@pytest.mark.parametrize("name", BUILT)
def test_a_stub_promises_what_its_solution_keeps(name):
    """Rejects a stub with another signature or docstring than its solution, and an exercise with nothing to do."""
    solution, exercise = (read(SHELF.path(folder, name)) for folder in (SOLUTIONS, EXERCISES))
    asked, answered = rules.promises(exercise), rules.promises(solution)
    assert asked == {place: answered.get(place) for place in asked}
    assert rules.stubs(exercise) and not rules.stubs(solution)


# Every rule can be broken: a good page, and pages that only one rule rejects.


def markdown(text: str) -> NotebookNode:
    return new_markdown_cell(text)


def code(source: str, *outputs: NotebookNode, count: int | None = None, tags: tuple[str, ...] = ()) -> NotebookNode:
    metadata = {"tags": list(tags)} if tags else {}
    return new_code_cell(source, outputs=list(outputs), execution_count=count, metadata=metadata)


def printed(text: str) -> NotebookNode:
    return new_output("stream", name="stdout", text=text)


def failed(name: str = "ValueError") -> NotebookNode:
    return new_output("error", ename=name, evalue="no", traceback=["no"])


def page(*cells: NotebookNode, folder: str = LESSONS, title: str = "# Masks\nPadding counts for nothing.") -> Page:
    """A lesson of a title and these cells, run from top to bottom where no cell says otherwise."""
    code_cells = [cell for cell in cells if cell.cell_type == "code"]
    if folder != EXERCISES and not any(cell.execution_count for cell in code_cells):
        for place, cell in enumerate(code_cells):
            cell.execution_count = place + 1
    notebook = new_notebook(cells=[markdown(title), *cells], metadata=copy.deepcopy(METADATA))
    return Page(ROOT / folder / "01_masking.ipynb", notebook)


def changed(good: Page, **metadata: object) -> Page:
    good.notebook.metadata.update(metadata)
    return good


ASSERTED = "# NBVAL_IGNORE_OUTPUT\nprint(1)\nassert True"
GOOD = {
    "a lesson": page(code("import torch\ntorch.ones(2)"), code("x = 1  # one; two"), markdown("## More")),
    "an exercise": page(code("def gae():\n    raise NotImplementedError"), folder=EXERCISES),
    "a solution by the library's name": page(code("def gae():\n    return 1"), folder=SOLUTIONS),
    "a loop and a mistake": page(code("def gae_loop():\n    return 1\n\ndef measure():\n    return 2")),
    "magics": page(code("%load_ext autoreload\nif False:\n    %pip install x\n!echo hello")),
    "an error that is meant": page(code("1 / 0", failed(), tags=("raises-exception",))),
    "three ignored, asserted here or in the next cell": page(
        code(ASSERTED), code("print(1)", tags=("nbval-ignore-output",)), code("assert True"), code(ASSERTED)
    ),
    "a title in a fence": page(markdown("```\n# not a title\n[not a link](nowhere.md)\n```")),
    "links": page(markdown("[a](../README.md#the-map) [b](https://example.org/x) [c](../REFERENCES.md#huang2024)")),
    "a setup cell before": page(code("x = 1", count=2), code("y = 2", count=3)),
    "the limits": page(
        *(markdown("word " * 120) for _ in range(20)), *(code("x = 1\n" * 8) for _ in range(23)), code("x = 1\n" * 25)
    ),
}
PPO_LOSS = next(function for function in rules.library_functions("algorithms") if function.name == "ppo_loss")
GAE = next(function for function in rules.library_functions("maths") if function.name == "gae")
RENAMED = rules.ast.unparse(GAE).replace("def gae(", "def my_own(")
BAD = [
    (rules.is_a_notebook, changed(page(), kernelspec={"name": "my_conda", "display_name": "x"})),
    (rules.is_a_notebook, changed(page(), language_info={"name": "julia"})),
    (rules.is_a_notebook, page(*[new_markdown_cell("twice", id="same")] * 2)),
    (rules.has_one_title, page(markdown("# Another title"))),
    (rules.has_one_title, page(title="No title, a hash #")),
    (rules.has_one_title, page(title="First a word\n\n# Then the title")),
    (rules.is_short, page(*[code("x = 1") for _ in range(45)])),
    (rules.is_short, page(*[markdown("word " * 119) for _ in range(22)])),
    (rules.is_short, page(markdown("word " * 121))),
    (rules.is_short, page(code("x = 1\n" * 26), code(""), code(""))),
    (rules.is_short, page(code("x = 1\n" * 9))),
    (rules.is_short, page(code("x", printed("y" * 1_000_001)))),
    (rules.has_run, page(code("x"), code("y", count=1))),
    (rules.has_run, page(code("x", count=2), code("y", count=1))),
    (rules.has_run, page(code("x", count=1), code("y", count=3))),
    (rules.has_run, page(code("x", count=7))),
    (rules.has_run, page(code("1 / 0", failed()))),
    (rules.has_run, page(code("1 / 1", tags=("raises-exception",)))),
    (rules.has_run, page(code("x", printed("1")), folder=EXERCISES)),
    (rules.has_run, page(code("x", count=1), folder=EXERCISES)),
    (rules.is_compared, page(*[code(ASSERTED) for _ in range(4)])),
    (rules.is_compared, page(code("# NBVAL_IGNORE_OUTPUT\nprint(1)"), code("x"), code("assert True"))),
    (rules.is_compared, page(code("print(1)", tags=("nbval-ignore-output",)))),
    (rules.is_compared, page(code("print(1)  # NBVAL_IGNORE_OUTPUT\nassert True"))),
    (rules.is_compared, page(code("# NBVAL_SKIP\nprint(1)\nassert True"))),
    (rules.is_compared, page(code("assert True", tags=("nbval-skip",)))),
    (rules.is_compared, page(code("assert True", tags=("NBVAL_IGNORE_OUTPUT",)))),
    (rules.reads_the_same_under_nbval, page(code("plot();"))),
    (rules.reads_the_same_under_nbval, page(code("plot();  # quietly\n"))),
    (rules.reads_the_same_under_nbval, page(code("import ipywidgets as W\nwith W.Output():\n    pass"))),
    (rules.reads_the_same_under_nbval, page(code("from ipywidgets import interact as f"))),
    (rules.reads_the_same_under_nbval, page(code("@interact(n=3)\ndef f(n): ..."))),
    (rules.names_no_machine, page(code("open('/home/ada/x')"))),
    (rules.names_no_machine, page(code("x", printed("saved to /tmp/run1/x")))),
    (rules.names_no_machine, page(code("x", new_output("execute_result", {"text/html": r"C:\Users\ada"})))),
    (rules.builds_on_the_library, page(code("def gae():\n    return 1"))),
    (rules.builds_on_the_library, page(code("if True:\n    masked_mean = lambda x, m: x"))),
    (rules.builds_on_the_library, page(code(RENAMED), code(""), code(""))),
    (rules.builds_on_the_library, page(code(rules.ast.unparse(PPO_LOSS)), code(""), code(""))),
    (rules.links_lead_somewhere, page(markdown("[x](99_nowhere.ipynb)"))),
    (rules.links_lead_somewhere, page(markdown("[x](../REFERENCES.md#nobody1999)"))),
    (rules.links_lead_somewhere, page(markdown('<a href="../nothing.md">x</a>'))),
]


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD.keys())
def test_a_good_page_passes_every_rule(good):
    """Rejects a rule that forbids what it should allow."""
    assert {rule.__name__: found for rule in rules.RULES if (found := list(rule(good)))} == {}


@pytest.mark.filterwarnings("ignore:Non-unique cell id")
@pytest.mark.parametrize(("rule", "bad"), BAD, ids=[f"{i}-{rule.__name__}" for i, (rule, _) in enumerate(BAD)])
def test_a_bad_page_is_rejected_by_its_rule_alone(rule, bad):
    """Rejects a rule that cannot fail, or that complains of something else."""
    assert [broken.__name__ for broken in rules.RULES if list(broken(bad))] == [rule.__name__]


def test_every_rule_has_a_page_that_breaks_it():
    assert {rule for rule, _ in BAD} == set(rules.RULES)


SOLVED = "def f(x, *, y: int = 1) -> int:\n    'Says what.'\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION"


@pytest.mark.parametrize(
    "edit", [("y: int = 1", "y: int = 2"), ("-> int", "-> float"), ("Says what.", "Says that."), ("def f", "def g")]
)
def test_a_stub_that_promises_something_else_is_seen(edit):
    """Rejects a comparison of promises that overlooks a default, an annotation, a docstring or a name."""
    solution = new_notebook(cells=[new_code_cell(SOLVED, id="a")])
    exercise = exercise_from(solution, "x")
    assert rules.promises(exercise) == rules.promises(solution)
    assert len(rules.stubs(exercise)) == 1 and not rules.stubs(solution)
    exercise.cells[0].source = exercise.cells[0].source.replace(*edit)
    assert rules.promises(exercise) != rules.promises(solution)
