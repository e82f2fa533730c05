"""A learner's function on its own: its source in an empty module, so that what passes can be loaded again anywhere."""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import inspect
import linecache
import re
import sys
import textwrap
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from types import ModuleType

from .observe import LibraryCalled

A_RUN = "a run of its own"  # the name of a thread that trains beside what a notebook does


class CannotLoad(Exception):
    """The source cannot become a function by itself; the message says why, to the learner."""


def source_of(function: Callable) -> str:
    """The text of a function written in a cell or a file.

    raises  CannotLoad for lambdas, built-ins, what has no source, and what a cell that does not parse should replace
    """
    if not inspect.isfunction(function) or function.__name__ == "<lambda>":
        raise CannotLoad("this is not a function made with `def`; fill in the stub and pass it by its name")
    _refuse_outdated(function.__name__)
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        raise CannotLoad("its source cannot be found; run the cell that defines it again") from None


def _refuse_outdated(name: str) -> None:
    """A cell with a syntax error leaves the function of its last good version behind: nobody means that one."""
    cells = getattr(sys.modules.get("__main__"), "In", None) or []
    latest = next((cell for cell in reversed(cells) if re.search(rf"^def {name}\(", cell, re.MULTILINE)), "")
    try:
        ast.parse(latest)
    except SyntaxError as error:
        raise CannotLoad(
            f"the latest version of its cell is not Python ({error.msg}, line {error.lineno}), and what is defined is "
            "an older one; mend the cell and run it first"
        ) from None


def filename_of(name: str) -> str:
    """What a learner's function is called in a traceback."""
    return f"<your {name}>"


def load(name: str, sources: Mapping[str, str], preamble: str) -> Callable:
    """The function called `name`, in a module with the preamble's imports and the other sources.

    raises  CannotLoad if its source does not define it
    """
    function = load_all(sources, preamble).get(name)
    if not callable(function):
        raise CannotLoad(f"it is not called `{name}`; keep the name and the arguments of the stub")
    return function


def load_all(sources: Mapping[str, str], preamble: str) -> dict[str, Callable]:
    """The functions of all sources in one module with the preamble's imports, so that they can call each other.

    raises  CannotLoad for a source that does not run by itself
    """
    module = ModuleType("answers")
    exec(compile(preamble, "<imports of the exercise>", "exec"), module.__dict__)
    for name, text in sources.items():
        filename = filename_of(name)
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
        try:
            exec(compile(text, filename, "exec"), module.__dict__)
        except Exception as error:
            raise CannotLoad(f"its source does not run by itself: {type(error).__name__}: {error}") from error
    return {name: module.__dict__[name] for name in sources if name in module.__dict__}


def unknown_name(error: BaseException) -> str | None:
    """The name that a NameError missed, unless Python itself knows it."""
    name = getattr(error, "name", None)
    return name if isinstance(error, NameError) and name and not hasattr(builtins, name) else None


@contextlib.contextmanager
def instead_of(replacements: Mapping[Callable, Callable]) -> Iterator[None]:
    """Put functions in the place of the library's, wherever a module of the library holds them; put them back after.

    A run that trains in a thread of its own meanwhile is not to notice: it goes on with the library's.
    """
    runs = {thread for thread in threading.enumerate() if thread.name == A_RUN} - {threading.current_thread()}
    wanted = {
        id(original): _but_not_in(runs, original, replacement) if runs else replacement
        for original, replacement in replacements.items()
    }
    places = [
        (module, name, value)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("rlhf_lib.") and not module.__name__.startswith("rlhf_lib.course")
        for name, value in list(vars(module).items())
        if id(value) in wanted
    ]
    try:
        for module, name, value in places:
            setattr(module, name, wanted[id(value)])
        yield
    finally:
        for module, name, value in places:
            setattr(module, name, value)


def _but_not_in(threads: Container[threading.Thread], original: Callable, replacement: Callable) -> Callable:
    @functools.wraps(replacement)
    def chosen(*args: object, **hyper: object) -> object:
        return (original if threading.current_thread() in threads else replacement)(*args, **hyper)

    return chosen


def refusing(library: Callable) -> Callable:
    """What stands in the library function's place while an answer is checked."""

    def refuse(*_: object, **__: object) -> None:
        raise LibraryCalled(library.__name__)

    return refuse
