"""Small deliberate mistakes made by machine: one change in one place of a function's source."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

SWAPPED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}  # fmt: skip
RENAMED = {
    "maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max", "values_before": "values_after",
    "values_after": "values_before", "expm1": "exp", "exp": "expm1", "log_softmax": "softmax", "sum": "mean",
    "another_follows": "torch.logical_not", "rsqrt": "sqrt", "sqrt": "rsqrt", "cumsum": "cumprod",
}  # fmt: skip
TRANSPARENT = {"keep": 0, "reversed": 0}  # calls replaced by one of their arguments
TRANSPARENT_METHODS = {"clamp", "exp", "log", "sqrt", "abs", "masked_fill", "detach", "flip", "unsqueeze", "double"}


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """The changed line and the whole changed source, for every change that can be made in one place."""
    tree = ast.parse(source)
    places = [node for node in ast.walk(tree) if not _is_docstring(node)]
    never_run = {id(node) for place in _annotations(tree) for node in ast.walk(place)}
    for number, node in enumerate(places):
        for change in _changes(node) if id(node) not in never_run else ():
            other = copy.deepcopy(tree)
            twin = [node for node in ast.walk(other) if not _is_docstring(node)][number]
            _replace(other, twin, change(copy.deepcopy(node)))
            text = ast.unparse(ast.fix_missing_locations(other))
            if text != ast.unparse(tree):
                yield _changed_line(ast.unparse(tree), text), text + "\n"


def _changes(node: ast.AST) -> Iterator:
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        yield lambda n: _with(n, op=SWAPPED[type(n.op)]())
        if isinstance(node.op, ast.Sub):
            yield lambda n: _with(n, op=ast.Mult())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        yield lambda n: _with(n, ops=[SWAPPED[type(n.ops[0])](), *n.ops[1:]])
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield lambda n: _with(n, value=n.value + 1)
    if isinstance(node, ast.UnaryOp):
        yield lambda n: n.operand
    if isinstance(node, ast.Return) and node.value is not None:
        yield lambda n: _with(n, value=ast.BinOp(n.value, ast.Mult(), ast.Constant(2)))
        yield lambda n: _with(n, value=ast.BinOp(n.value, ast.Add(), ast.Constant(1e-6)))
        yield lambda n: _with(n, value=_call_of_method(n.value, "flip", ast.Constant(0)))
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield lambda n: ast.Pass()
    if isinstance(node, ast.Call):
        yield from _changes_of_call(node)
    if isinstance(node, ast.Name) and node.id in RENAMED:
        yield lambda n: ast.parse(RENAMED[n.id], mode="eval").body
    if isinstance(node, ast.Attribute) and node.attr in RENAMED:
        yield lambda n: _with(n, attr=RENAMED[n.attr])


def _changes_of_call(node: ast.Call) -> Iterator:
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    if name in TRANSPARENT:
        yield lambda n: n.args[TRANSPARENT[name]]
    if isinstance(node.func, ast.Attribute) and name in TRANSPARENT_METHODS:
        yield lambda n: n.func.value
    if name == "where" and len(node.args) == 3:
        yield lambda n: n.args[1]
        yield lambda n: _with(n, args=[n.args[0], n.args[2], n.args[1]])


def _with(node: ast.AST, **changes: object) -> ast.AST:
    for name, value in changes.items():
        setattr(node, name, value)
    return node


def _call_of_method(value: ast.expr, name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Attribute(value, name, ast.Load()), list(args), [])


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list) and any(item is old for item in value):
                setattr(parent, name, [new if item is old else item for item in value])


def _annotations(tree: ast.AST) -> Iterator[ast.AST]:
    """What stands behind a colon or an arrow."""
    for node in ast.walk(tree):
        yield from (getattr(node, name) for name in ("annotation", "returns") if getattr(node, name, None) is not None)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _changed_line(before: str, after: str) -> str:
    return next(b for a, b in zip(before.splitlines(), after.splitlines()) if a != b).strip()
