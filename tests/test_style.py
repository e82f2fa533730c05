"""The house rules that a reader relies on, read from the source: who may import whom, where the shift is, how long."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "rlhf_lib"
FILES = sorted(ROOT.rglob("*.py"))
ROOMS = ("maths", "engine", "worlds", "algorithms")
# What a module of the library may import from the library, by prefix; the most precise rule counts.
SHARED_BY_ALGORITHMS = ("algorithms.parts", "algorithms.bounds", "algorithms.ppo_config", "algorithms.step_zero")
MAY_IMPORT = {
    "maths": ("maths",),
    "engine": ("maths", "engine"),
    "worlds": ("maths", "worlds"),
    "worlds.smollm2": ("maths", "engine", "worlds"),
    "worlds.tldr": ("maths", "engine", "worlds"),  # it reads files, and calls damage and padding what the engine does
    "algorithms": ("maths", "engine", *SHARED_BY_ALGORITHMS),
    "pipeline": ("maths", "engine", "worlds", "algorithms", "pipeline"),
    "pipeline.errors": (),
    "course": ("maths", "engine", "worlds", "algorithms", "pipeline", "course"),
    "cli": ("pipeline", "course"),
    "__main__": ("cli",),
    "__init__": (),
}
LIGHT = {"cli", "__main__", "__init__", "pipeline.errors"}  # instant: the standard library and typer


def name_of(path: Path) -> str:
    """Dotted, without the package: maths.kl; a folder's __init__ is the folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def trees(*rooms: str) -> list[tuple[str, ast.Module]]:
    found = [(name_of(path), ast.parse(path.read_text(encoding="utf-8"))) for path in FILES]
    return [(name, tree) for name, tree in found if not rooms or name.split(".")[0] in rooms]


def imports(tree: ast.Module, name: str) -> set[str]:
    """Dotted names of the library's modules that this one imports anywhere, relative names resolved."""
    is_package = (ROOT / name.replace(".", "/")).is_dir()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("rlhf_lib.") for alias in node.names if alias.name.startswith("rlhf_lib")}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                above = ["rlhf_lib", *name.split(".")]
                above = above[: len(above) - node.level + (1 if is_package else 0)]
                module = ".".join([*above, *([module] if module else [])])
            if module.split(".")[0] == "rlhf_lib":
                found |= {resolved(module.removeprefix("rlhf_lib").lstrip("."), alias.name) for alias in node.names}
    return found - {""}


def resolved(module: str, name: str) -> str:
    """`from .engine import models` imports the module engine.models; `from .maths.kl import kl_k1` imports maths.kl."""
    inner = ".".join(filter(None, [module, name]))
    place = ROOT / inner.replace(".", "/")
    return inner if place.is_dir() or place.with_suffix(".py").exists() else module


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def length_without_docstring(function: ast.FunctionDef) -> int:
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return lines - (first.end_lineno - first.lineno + 1 if has_docstring else 0)


def shifts(tree: ast.Module) -> list[int]:
    """Lines with x[:, 1:] or x[:, :-1], whatever follows in the brackets."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and len(node.slice.elts) > 1:
            first, second = (ast.unparse(part) for part in node.slice.elts[:2])
            if first == ":" and second in ("1:", ":-1"):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize(("name", "tree"), trees(), ids=[name for name, _ in trees()])
def test_imports_go_one_way(name, tree):
    """Rejects maths that calls a model, a world or an engine that knows the algorithm, algorithms that lean on each
    other, and anything that leans on what stands above it.
    """
    rule = max((prefix for prefix in MAY_IMPORT if within(name, prefix)), key=len, default=None)
    assert rule is not None, f"{name}: no rule says what it may import"
    outside = [used for used in imports(tree, name) if not any(within(used, may) for may in MAY_IMPORT[rule])]
    assert not outside


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_the_door_is_light(name):
    """Rejects a heavy import on the way to `--help`: only the standard library and typer at the top."""
    tree = dict(trees())[name]
    top = {
        module.split(".")[0]
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for module in ([node.module or "."] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert top <= {*sys.stdlib_module_names, "typer", "cli", "."}


@pytest.mark.parametrize(
    ("source", "name", "found"),
    [
        ("from ..maths.kl import kl_k1", "algorithms.ppo", {"maths.kl"}),
        ("from ..engine import models, optimiser", "algorithms.ppo", {"engine.models", "engine.optimiser"}),
        ("from . import bounds", "algorithms.ppo", {"algorithms.bounds"}),
        ("from .sft import train_sft", "algorithms.ppo", {"algorithms.sft"}),
        ("from . import grammar", "worlds.tiny_tldr.posts", {"worlds.tiny_tldr.grammar"}),
        ("from ..algorithms import ppo", "maths", {"algorithms.ppo"}),
        ("def f():\n    import rlhf_lib.maths.kl", "engine.models", {"maths.kl"}),
        ("from rlhf_lib.worlds import tiny_tldr\nimport torch", "maths.kl", {"worlds.tiny_tldr"}),
    ],
)
def test_the_reader_of_imports(source, name, found):
    """Rejects a reader that overlooks a form of import, and so passes everything."""
    assert imports(ast.parse(source), name) == found


def test_only_alignment_shifts():
    """Rejects a second place that decides which state an action belongs to."""
    found = {name: lines for name, tree in trees("maths", "algorithms", "engine") if (lines := shifts(tree))}
    assert set(found) == {"maths.alignment"}


def test_the_reader_of_shifts():
    """Rejects a reader that overlooks a spelling, and one that takes the last state for a shift."""
    assert shifts(ast.parse("x[:, 1:]\nx[:, :-1]\nx[:,1:, 0]\nx[:, :-1, :]")) == [1, 2, 3, 4]
    assert shifts(ast.parse("x[:, -1]\nx[:, -1:]\nx[:, :n]\nx[1:]\nx[:-1]\nx[0, 1:]")) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_fit_in_the_head(path):
    """Rejects a page that outgrows its room: 150 lines in maths, 250 in algorithms and engine."""
    ceiling = {"maths": 150, "algorithms": 250, "engine": 250}.get(name_of(path).split(".")[0])
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert ceiling is None or lines <= ceiling, f"{lines} lines"


def test_maths_and_algorithms_are_small():
    """Rejects a library that cannot be read in an evening: what "a small rlhf_lib" means."""
    rooms = ("maths", "algorithms")
    files = [path for path in FILES if name_of(path).split(".")[0] in rooms]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) < 1200


def test_functions_are_short():
    """Rejects a function of more than 30 lines, its docstring not counted."""
    found = [(name, f.name) for name, tree in trees("maths", "algorithms") for f in functions(tree)
             if length_without_docstring(f) > 30]  # fmt: skip
    assert not found


def test_public_functions_say_what_they_do():
    """Rejects a function that a reader meets without a line about it."""
    found = [
        f"{name}.{f.name}"
        for name, tree in trees("maths", "algorithms")
        for node in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
        for f in node.body
        if isinstance(f, ast.FunctionDef) and not f.name.startswith("_") and not ast.get_docstring(f)
    ]
    assert not found


def test_no_mean_that_counts_padding():
    """Rejects `.mean()` and friends on whole tensors in maths: only masking may aggregate, and it knows the mask."""
    reductions = {"mean", "var", "std", "nanmean", "median"}
    found = [
        (name, node.lineno)
        for name, tree in trees("maths")
        if name != "maths.masking"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in reductions
    ]
    assert not found


def test_masking_knows_no_rl():
    """Rejects masking that speaks of rewards or policies: it is about arrays."""
    text = (ROOT / "maths/masking.py").read_text(encoding="utf-8").replace("Huang et al. 2024 whiten advantages", "")
    text = re.sub(r'""".*?"""', "", text, flags=re.DOTALL)
    assert not re.findall(r"\b(reward|advantage|policy|value_loss|action|gamma|lam)s?\b", text)


def test_nothing_unpickles():
    """Rejects torch.load, pickle and remote code: a model's folder must not be able to run anything."""
    for name, tree in trees():
        for node in ast.walk(tree):
            said = ast.unparse(node) if isinstance(node, (ast.Call, ast.Import, ast.ImportFrom)) else ""
            assert not re.match(r"torch\.load\(|torch\.save\(|import pickle|from pickle", said), name
            assert "trust_remote_code=True" not in said, name


def test_modules_say_what_they_are():
    """Rejects a file whose first line leaves the reader to guess."""
    assert [name for name, tree in trees() if not ast.get_docstring(tree)] == []
