"""A real JupyterLab and a real browser: a notebook is opened, run, and used as a learner would."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat

from rlhf_lib.course.notebooks.environment import WORK_FOLDER

ROOT = Path(__file__).parent.parent.parent
PICTURES = ROOT / "runs" / "widgets"  # not in git
START_SECONDS, STEP_MS, RUN_MS = 120, 10_000, 180_000
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
            "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none"}}  # else cells out of view are not in the page
NOT_OURS = ("favicon", "extension", "Source map")


def browser_path() -> str | None:
    """The browser that is installed; none is downloaded."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, names)), None)


# ---------------------------------------------------------------------------------------------------------- the server


class Lab:
    """A JupyterLab of its own: folder, port, token, and the settings that `course.py lab` uses."""

    def __init__(self, home: Path):
        self.home, self.folder, self.token = home, home / "root", secrets.token_hex(16)
        self.work = home / "work"  # where the course keeps a learner's answers
        self.folder.mkdir(parents=True)
        for name, content in SETTINGS.items():
            path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content), encoding="utf-8")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.base = f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "run", "JUPYTERLAB_SETTINGS_DIR": "settings",
               "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
               WORK_FOLDER: self.work.name}  # fmt: skip
        paths = {name: str(self.home / folder) for name, folder in own.items()}
        return {**os.environ, **paths, "JUPYTER_TOKEN": self.token, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def start(self) -> subprocess.Popen:
        arguments = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={self.port}", "--expose-app-in-browser",
                     "--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.folder}",
                     f"--LabApp.app_settings_dir={ROOT / '.lab'}"]  # fmt: skip
        with open(self.home / "lab.log", "w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *arguments],
                env=self.environment(), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait(self, server: subprocess.Popen) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.base}/api?token={self.token}", timeout=2)
                return
            if server.poll() is not None:
                break
            time.sleep(0.3)
        raise RuntimeError(f"JupyterLab did not start:\n{(self.home / 'lab.log').read_text(encoding='utf-8')}")


@contextlib.contextmanager
def running_lab(home: Path) -> Iterator[Lab]:
    """The server, and none of it afterwards: it shuts its kernels down when asked to."""
    lab = Lab(home)
    server = lab.start()
    try:
        lab.wait(server)
        yield lab
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook of code cells, as a lesson's would be."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path


# ------------------------------------------------------------------------------------------------------------ the page


class Notebook:
    """An open notebook: `page` is Playwright's, `complaints` what the browser's console said."""

    def __init__(self, browser, lab: Lab, name: str):
        self.name, self.complaints = name, []
        self.page = browser.new_page(viewport={"width": 1360, "height": 1100}, device_scale_factor=1)
        self.page.set_default_timeout(STEP_MS)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._hear)
        workspace = f"{lab.base}/lab/workspaces/{secrets.token_hex(4)}"
        self.page.goto(f"{workspace}/tree/{name}?token={lab.token}", timeout=START_SECONDS * 1000)
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=START_SECONDS * 1000)
        self.page.wait_for_function(
            """() => document.querySelector('.jp-Dialog') ||
               jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'""",
            timeout=START_SECONDS * 1000,
        )
        dialog = self.page.locator(".jp-Dialog")
        assert not dialog.count(), f"JupyterLab asks: {dialog.first.inner_text()}"

    def _hear(self, message) -> None:
        if message.type == "error" and not any(word in message.text for word in NOT_OURS):
            self.complaints.append(message.text)

    def command(self, name: str, **arguments) -> None:
        """One of JupyterLab's own commands, and wait for its end."""
        self.page.evaluate("async ([name, arguments_]) => { await jupyterapp.commands.execute(name, arguments_) }",
                           [name, arguments])  # fmt: skip

    def run_all(self) -> None:
        """Run every cell; an error is a failure, unless the cell is tagged as one that shows an error."""
        self.page.set_default_timeout(RUN_MS)
        self.command("notebook:run-all-cells")
        self.page.set_default_timeout(STEP_MS)
        errors = self.page.evaluate(
            """() => jupyterapp.shell.currentWidget.content.model.sharedModel.cells
                .filter(cell => !(cell.metadata.tags || []).includes('raises-exception'))
                .flatMap(cell => cell.outputs || [])
                .filter(output => output.output_type === 'error')
                .map(error => `${error.ename}: ${error.evalue}`)"""
        )
        assert not errors, errors

    def run_python(self, source: str) -> str:
        """What a line of Python prints in the notebook's kernel."""
        return self.page.evaluate(
            """async (code) => {
                const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                let text = "";
                const future = kernel.requestExecute({ code, store_history: false });
                future.onIOPub = (m) => { text += m.content.text || m.content.evalue || ""; };
                await future.done;
                return text;
            }""",
            source,
        )

    def wait_for_python(self, source: str, wanted: str) -> None:
        """Until the line prints this: a control's message to the kernel may wait for the one before it."""
        deadline = time.monotonic() + STEP_MS / 1000
        while (printed := self.run_python(source).strip()) != wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        assert printed == wanted

    def widget(self, title: str, nth: int = 0):
        """The instrument with this title, scrolled into view."""
        found = self.page.locator(f'section.rlhf[aria-label="{title}"]').nth(nth)
        found.wait_for()
        found.scroll_into_view_if_needed()
        return found

    def set_view(self, widget, name: str, view: dict) -> None:
        """`name.view = view` in Python, and wait until the page has heard of it.

        Not before Python has heard the page: a click's message may wait for the one before it, and would undo this.
        """
        self._agree(widget, name, on=None)
        self.run_python(f"{name}.view = {view!r}")
        self._agree(widget, name, on=view)

    def _agree(self, widget, name: str, on: dict | None) -> None:
        deadline = time.monotonic() + STEP_MS / 1000
        while True:
            page = widget.evaluate("root => root.state().view")
            python = json.loads(self.run_python(f"import json; print(json.dumps({name}.view))"))
            if page == python and (on is None or page == on):
                return
            assert time.monotonic() < deadline, f"the page has {page}, Python has {python}, wanted: {on or 'agreement'}"
            time.sleep(0.02)

    def theme(self, name: str) -> None:
        """`Light` or `Dark`."""
        self.command("apputils:change-theme", theme=f"JupyterLab {name}")
        self.page.wait_for_function(
            "dark => document.body.dataset.jpThemeLight === String(!dark)", arg=name == "Dark", timeout=STEP_MS
        )
        self.page.wait_for_timeout(300)  # the style sheet arrives after the mark on the body

    def picture(self, widget, name: str) -> Path:
        PICTURES.mkdir(parents=True, exist_ok=True)
        widget.screenshot(path=PICTURES / f"{name}.png", animations="disabled")
        return PICTURES / f"{name}.png"

    def close(self) -> None:
        self.page.evaluate("async () => { await jupyterapp.shell.currentWidget.sessionContext.shutdown() }")
        self.page.close()
