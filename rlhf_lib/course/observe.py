"""Calling a function on a case, and what can be seen of it: its results, its gradients, and its misbehaviour."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import io
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, signature

import torch
from torch import Tensor, nn

from ..engine.profiler.memory import Tensors
from ..maths.records import Rows
from .exercise import Case

TIME_LIMIT = 5.0  # seconds for one call; the slowest honest loop needs a hundredth of it
PRINTED_AT_MOST = 2000  # characters
NUDGE = 1e-6  # of the central differences
TOLERANCE, GRADIENT_TOLERANCE = Case.tolerance, 1e-5
INTO = "gradient into "
ALIVE = ("tensors alive at once without gradients", "tensors alive at once in training")


class TimeUp(BaseException):
    """Raised inside a call that takes too long."""


class LibraryCalled(Exception):
    """The function asked the library for the very answer it should give."""


@dataclass
class Observation:
    """`found` maps names ("result", "gradient into x") to tensors, or says in words what came instead."""

    found: dict[str, Tensor | str] = field(default_factory=dict)
    error: BaseException | None = None
    changed: tuple[str, ...] = ()  # arguments edited in place
    printed: str = ""
    tolerance: float = TOLERANCE

    def agrees_with(self, other: Observation) -> bool:
        """The same results by name, shape, kind and value (NaN equals NaN), and the same misbehaviour."""
        return (
            self.found.keys() == other.found.keys()
            and self.changed == other.changed
            and all(same(name, value, other.found[name], self.tolerance) for name, value in self.found.items())
        )


def same(name: str, one: Tensor | str, other: Tensor | str, tolerance: float = TOLERANCE) -> bool:
    """Whether two findings under one name are the same."""
    if isinstance(one, str) or isinstance(other, str):
        return isinstance(one, str) and isinstance(other, str) and one == other
    if one.shape != other.shape or differ_in_kind(one, other):
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    tolerance = GRADIENT_TOLERANCE if name.startswith(INTO) else tolerance
    return torch.allclose(one.double(), other.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def differ_in_kind(one: Tensor, other: Tensor) -> bool:
    """Whether one holds fractions, or booleans, and the other does not: `~` of a mask of integers is no mask."""
    return any(kind(one) != kind(other) for kind in (Tensor.is_floating_point, lambda x: x.dtype == torch.bool))


def observe(function: Callable, case: Case) -> Observation:
    """Call it once on copies of the arguments, with a time limit and its printing kept apart."""
    arguments = {name: _copy(value, name in case.gradients) for name, value in case.arguments.items()}
    printed = _Capped()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            result = with_time_limit(lambda: bind(case.used(function), arguments), TIME_LIMIT)
    except (Exception, TimeUp) as error:
        return Observation({"result": f"raised {type(error).__name__}"}, error, printed=printed.getvalue())
    found = named_results(result)
    for name in case.gradients:
        found[INTO + name] = gradient(found, arguments[name])
    if case.alive is not None:
        found |= memory_needs(function, case)
    changed = tuple(name for name in arguments if not _unchanged(arguments[name], case.arguments[name]))
    return Observation(
        {name: value.detach() if isinstance(value, Tensor) else value for name, value in found.items()},
        changed=changed,
        printed=printed.getvalue(),
        tolerance=case.tolerance,
    )


def expect(specification: Callable, case: Case) -> Observation:
    """What a right answer shows: the specification's results, and its gradients by central differences."""
    try:
        found = named_results(bind(case.used(specification), case.arguments))
    except ValueError as error:  # arguments that have to be refused
        return Observation({"result": f"raised {type(error).__name__}"}, error)
    if case.alive is not None:
        found |= {name: _in_words(limit, enough=True) for name, limit in zip(ALIVE, case.alive, strict=True)}
    weights = _weights(found)

    def total(arguments: Mapping[str, object]) -> float:
        results = named_results(bind(case.used(specification), arguments))
        return sum(float((weights[name] * results[name]).sum()) for name in weights)

    for name in case.gradients:
        found[INTO + name] = _differences(total, case.arguments, name)
    return Observation(found, tolerance=case.tolerance)


def bind(function: Callable, arguments: Mapping[str, object]) -> object:
    """Call with positional parameters by place and keyword-only ones by name, as the library does."""
    keywords = {name for name, p in signature(function).parameters.items() if p.kind is Parameter.KEYWORD_ONLY}
    positional = [value for name, value in arguments.items() if name not in keywords]
    return function(*positional, **{name: arguments[name] for name in arguments if name in keywords})


def named_results(result: object) -> dict[str, Tensor | str]:
    """A tensor under the name "result", the entries of a tuple or dict under theirs; anything else in words."""
    if isinstance(result, Mapping):
        parts = {str(name): value for name, value in result.items()}
    elif isinstance(result, tuple):
        parts = {f"result {place}": value for place, value in enumerate(result, 1)}
    else:
        parts = {"result": result}
    return {name: _as_found(value) for name, value in parts.items()}


def gradient(found: Mapping[str, Tensor | str], argument: Tensor | nn.Module) -> Tensor | str:
    """d (weighted sum of all results) / d argument, or in words why there is none."""
    weights = _weights(found)
    tracked = [(weights[name] * found[name]).sum() for name in weights if found[name].requires_grad]
    if not tracked:
        return "none: the result is cut off from it"
    try:
        derivatives = torch.autograd.grad(sum(tracked), _leaves(argument), allow_unused=True, retain_graph=True)
    except RuntimeError as error:  # what was kept has changed since, or a checkpoint is of the old kind
        return f"none: the backward pass raised {type(error).__name__}: {str(error).splitlines()[0]}"
    if all(derivative is None for derivative in derivatives):
        return "none: the result does not depend on it"
    return _as_one(argument, [d if d is not None else torch.zeros_like(leaf)
                              for d, leaf in zip(derivatives, _leaves(argument))])  # fmt: skip


def memory_needs(function: Callable, case: Case) -> dict[str, str]:
    """Whether it makes do with the tensors that the case allows: called alone, and with a backward pass after it."""
    found = {}
    for name, limit, training in zip(ALIVE, case.alive, (False, True), strict=True):
        arguments = {name: _copy(value, training and _may_train(value)) for name, value in case.arguments.items()}
        meter = Tensors()
        try:
            with meter.operations, torch.set_grad_enabled(training):
                _forward_and_backward(case.used(function), arguments)
            found[name] = _in_words(limit, enough=meter.peak <= limit)
        except Exception as error:
            found[name] = f"none: it raised {type(error).__name__}"
    return found


def _forward_and_backward(function: Callable, arguments: Mapping[str, object]) -> None:
    results = named_results(bind(function, arguments)).values()
    tracked = [value.sum() for value in results if isinstance(value, Tensor) and value.requires_grad]
    if tracked:
        sum(tracked).backward()


def _may_train(value: object) -> bool:
    return not isinstance(value, Tensor) or value.is_floating_point()


def _in_words(limit: int, *, enough: bool) -> str:
    return f"{'at most' if enough else 'more than'} {limit:,} bytes"


def with_time_limit(function: Callable[[], object], seconds: float) -> object:
    """The function's result; TimeUp if it takes longer. It runs in a thread, which works in notebooks on any system."""
    outcome: dict[str, object] = {}

    def work() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:
            outcome["error"] = error

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        worker.join(seconds)
    finally:  # also when the learner interrupts the kernel
        timed_out = worker.is_alive()
        if timed_out:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(TimeUp))
            worker.join(1.0)
    if timed_out:
        raise TimeUp
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


def line_of(error: BaseException, filename: str) -> tuple[int, str] | None:
    """Number and text of the deepest line of `filename` that the error went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == filename]
    return (frames[-1].lineno or 0, frames[-1].line or "") if frames else None


class _Capped(io.StringIO):
    """Keeps the beginning of what is printed: an endless loop may print without end."""

    def write(self, text: str) -> int:
        super().write(text[: max(0, PRINTED_AT_MOST - self.tell())])
        return len(text)


def _weights(found: Mapping[str, Tensor | str]) -> dict[str, Tensor]:
    """A different weight for each floating-point result, so that no two gradients can cancel."""
    return {
        name: torch.arange(1.0, value.numel() + 1, dtype=torch.float64).reshape(value.shape)
        for name, value in found.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def _differences(total: Callable, arguments: Mapping[str, object], name: str) -> Tensor:
    slopes = [torch.zeros_like(leaf) for leaf in _leaves(arguments[name])]
    for number, leaf in enumerate(slopes):
        for place in range(leaf.numel()):
            ends = []
            for step in (NUDGE, -NUDGE):
                nudged = copy.deepcopy(arguments[name])
                with torch.no_grad():
                    _leaves(nudged)[number].view(-1)[place] += step
                ends.append(total({**arguments, name: nudged}))
            leaf.view(-1)[place] = (ends[0] - ends[1]) / (2 * NUDGE)
    return _as_one(arguments[name], slopes).detach()


def _leaves(argument: Tensor | nn.Module) -> list[Tensor]:
    """A tensor itself, or the weights of a model."""
    return list(argument.parameters()) if isinstance(argument, nn.Module) else [argument]


def _as_one(argument: Tensor | nn.Module, derivatives: list[Tensor]) -> Tensor:
    """In the shape of the tensor; of a model, one row of numbers."""
    flat = torch.cat([derivative.flatten() for derivative in derivatives])
    return flat if isinstance(argument, nn.Module) else flat.reshape(argument.shape)


def _as_found(value: object) -> Tensor | str:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (float, int)) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    return "None" if value is None else f"a {type(value).__name__}"


def _copy(value: object, trained: bool) -> object:
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).requires_grad_(trained)
    if isinstance(value, Rows):
        return copy.deepcopy(value)
    return value.detach().clone().requires_grad_(trained) if isinstance(value, Tensor) else value


def _unchanged(value: object, original: object) -> bool:
    if isinstance(value, Rows):
        return all(_unchanged(tensor, vars(original)[name]) for name, tensor in vars(value).items())
    if not isinstance(value, Tensor):
        return True
    if value.shape != original.shape:
        return False
    return bool(((value == original) | ((value != value) & (original != original))).all())
