"""Ways to have calls recorded: a mark at the function, a region in its body, and wraps that need no edit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Container, Generator, Iterator
from types import ModuleType
from typing import Any, TypeVar

from . import recording
from .tree import Frame

Function = TypeVar("Function", bound=Callable)
Record = TypeVar("Record")


def profiled(function: Function) -> Function:
    """The function, recorded as `module.name` while a profile is active; otherwise it is called straight through.

    A generator function is recorded while its body runs, not while it is suspended, and also if it began before the
    profile did; it costs a hop more an item. What merely returns a generator is recorded while it makes it.

    raises  TypeError for coroutines, which interleave on one stack
    """
    if getattr(function, "__profiled__", None) is function:
        return function
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{label_of(function)} is a coroutine function: its calls interleave on one stack")
    record = _recorded_generator if inspect.isgeneratorfunction(function) else _recorded
    wrapped = record(function, label_of(function))
    wrapped.__profiled__ = wrapped
    return wrapped


def label_of(function: Callable) -> str:
    """What a function is called in the report: the last part of its module, and its name there."""
    named = function if hasattr(function, "__qualname__") else type(function)  # a partial has no name of its own
    return f"{named.__module__.rpartition('.')[2]}.{named.__qualname__.rpartition('<locals>.')[2]}"


def _recorded(function: Callable, label: str) -> Callable:
    @functools.wraps(function)
    def recorded(*arguments: Any, **settings: Any) -> Any:
        profile = recording.active
        if profile is None:
            return function(*arguments, **settings)
        frame = profile.enter(label)
        try:
            return function(*arguments, **settings)
        finally:
            profile.leave(frame)

    return recorded


def _recorded_generator(function: Callable, label: str) -> Callable:
    @functools.wraps(function)
    def recorded(*arguments: Any, **settings: Any) -> Generator:
        return _driven(function(*arguments, **settings), _Slices(label))

    return recorded


def _driven(generator: Generator, running: _Slices) -> Generator:
    """Pass everything through, in both directions, and keep the time of the generator's body."""
    advance = functools.partial(next, generator)
    while True:
        try:
            with running:
                item = advance()
        except StopIteration as end:
            return end.value
        try:
            advance = functools.partial(generator.send, (yield item))
        except GeneratorExit:
            with running:
                generator.close()
            raise
        except BaseException as error:
            advance = functools.partial(generator.throw, error)


class _Slices:
    """A generator's frame, and those of regions that its body has open, on the stack only while the body runs."""

    def __init__(self, label: str):
        self.label = label
        self.begun = False
        self.profile: recording.Profile | None = None
        self.frames: list[Frame] = []

    def __enter__(self) -> None:
        if recording.active is not self.profile:  # it began before this profile did
            self.profile, self.frames = recording.active, []
        if self.profile is not None and self.frames:
            self.profile.resume(self.frames)
        elif self.profile is not None:
            self.frames = [self.profile.enter(self.label, called=not self.begun)]
        self.begun = True

    def __exit__(self, *_: object) -> None:
        if self.frames:
            self.frames = self.profile.suspend(self.frames[0])


@contextlib.contextmanager
def _entered(profile: recording.Profile, label: str) -> Iterator[None]:
    frame = profile.enter(label)
    try:
        yield
    finally:
        profile.leave(frame)


def region(label: str) -> contextlib.AbstractContextManager[None]:
    """A stretch of code as if it were a function of this name; nothing if no profile is active."""
    return contextlib.nullcontext() if recording.active is None else _entered(recording.active, label)


def watched(record: Record) -> Record:
    """A copy of a dataclass of functions, such as `Parts`, in which every function is profiled."""
    functions = {field.name: getattr(record, field.name) for field in dataclasses.fields(record) if field.init}
    return dataclasses.replace(record, **{name: profiled(f) for name, f in functions.items() if callable(f)})


@contextlib.contextmanager
def watching(*functions: Callable) -> Iterator[None]:
    """Profile functions of any module, and methods, where they stand: whoever looks them up meanwhile is recorded.

    What a record, a default argument or a closure holds already is not reached; for `Parts` there is `watched`.

    raises  ValueError for a function that no module holds
    warns   of a function that was not called while a profile was active
    """
    wanted = {id(function): profiled(function) for function in functions}
    places = [place for owner in _owners(functions) for place in _holding(owner, wanted)]
    if missing := [label_of(f) for f in functions if id(f) not in {id(value) for *_, value in places}]:
        raise ValueError(f"no module holds {', '.join(missing)}")
    try:
        for owner, name, value in places:
            setattr(owner, name, wanted[id(value)])
        yield
    finally:
        for owner, name, value in places:
            setattr(owner, name, value)
    _warn_of_silent(functions)


def _owners(functions: tuple[Callable, ...]) -> list[ModuleType | type]:
    """All modules, and the classes of those that define a method among the functions."""
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    homes = {function.__module__ for function in functions if "." in getattr(function, "__qualname__", "")}
    classes = [c for home in homes for c in list(vars(sys.modules[home]).values()) if inspect.isclass(c)]
    return [*modules, *(c for c in classes if c.__module__ in homes)]


def _holding(owner: ModuleType | type, wanted: Container[int]) -> list[tuple[ModuleType | type, str, Callable]]:
    return [(owner, name, value) for name, value in list(vars(owner).items()) if id(value) in wanted]


def _warn_of_silent(functions: tuple[Callable, ...]) -> None:
    if recording.active is None:
        return
    heard = {node.label for thread in recording.active.threads for node in thread.root.walk()}
    if silent := [label for label in map(label_of, functions) if label not in heard]:
        warnings.warn(
            f"watched, but never called by a name that was looked up: {', '.join(silent)}. "
            "Functions held in a record are reached by watched(record)",
            stacklevel=4,
        )
