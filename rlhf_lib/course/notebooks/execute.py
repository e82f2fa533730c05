"""Running a notebook from a fresh kernel, in the environment that CI compares it in."""

from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import ipykernel.kernelspec
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from traitlets import default

from .environment import CELL_SECONDS, kernel_environment

COLOURS = re.compile(r"\x1b\[[\d;]*m")


class NotebookError(Exception):
    """A cell failed: which one, what it said, and where in it."""


class StoppedKernelError(NotebookError):
    """The kernel is gone: killed, out of memory, or Ctrl-C."""


class ThisPython(KernelSpecManager):
    """Whatever kernel a notebook names, the one of this environment runs it."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return self.kernel_spec_class(
            resource_dir=ipykernel.kernelspec.RESOURCES, **ipykernel.kernelspec.get_kernel_dict()
        )


class ThisPythonsKernel(AsyncKernelManager):
    @default("kernel_spec_manager")
    def _this_python(self) -> KernelSpecManager:
        return ThisPython(parent=self)


def execute(notebook: NotebookNode, folder: Path, after_cell: Callable[[], object] = lambda: None) -> None:
    """Run all cells, in place, in `folder`; calls `after_cell` once for each code cell.

    raises  NotebookError
    """
    reached: list[NotebookNode] = []  # the code cells, up to the one that runs
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        record_timing=False,
        kernel_manager_class=ThisPythonsKernel,
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=lambda cell, cell_index: reached.append(cell),
        on_cell_executed=lambda cell, cell_index, execute_reply: after_cell(),
    )
    with tempfile.TemporaryDirectory(prefix="rlhf-work-", ignore_cleanup_errors=True) as work:
        try:
            client.execute(env=kernel_environment(work), stderr=subprocess.DEVNULL)
        except CellExecutionError as error:
            said = f"{error.ename}: {error.evalue}\n{COLOURS.sub('', error.traceback).strip()}"
            raise NotebookError(f"{_where(reached)}: {said}") from None
        except CellTimeoutError:
            raise NotebookError(f"{_where(reached)}: stopped after {CELL_SECONDS} seconds") from None
        except (DeadKernelError, asyncio.CancelledError):
            raise StoppedKernelError(f"{_where(reached)}: the kernel was stopped or has died") from None


def _where(reached: list[NotebookNode]) -> str:
    return f"code cell {len(reached)} (id {reached[-1].id})" if reached else "before the first cell"
