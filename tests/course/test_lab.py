"""`python -m rlhf_lib lab`: the learner's copies, and a real JupyterLab."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from rlhf_lib.course.lab import hand_out, lab_options, version_of
from rlhf_lib.course.notebooks.shelf import Shelf
from rlhf_lib.pipeline.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shelf(tmp_path):
    for folder in ("notebooks", "exercises", "solutions", ".lab"):
        (tmp_path / folder).mkdir()
    (tmp_path / "course.py").touch()
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    (tmp_path / "README.md").write_text("# Hello\n")
    (tmp_path / ".lab/overrides.json").write_bytes((ROOT / ".lab/overrides.json").read_bytes())
    return Shelf(tmp_path)


def write(path: Path, source: str, links: str = "") -> None:
    """A notebook of one cell, and of the generated one below it."""
    cells = [
        {"cell_type": "code", "id": "a", "source": source, "metadata": {}, "outputs": [], "execution_count": None},
        {"cell_type": "markdown", "id": "b", "source": links, "metadata": {"tags": ["generated"]}},
    ]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


def test_exercises_are_copied_once_and_never_over_the_learners_work(shelf):
    """Rejects a copy over an answer, a new exercise that is not handed out, and a silent copy."""
    mine = shelf.root / "my_work"
    write(shelf.path("exercises", "01_masking"), "stub")
    assert hand_out(shelf, mine) == ["copied exercises/01_masking.ipynb to my_work/"]
    assert (mine / "01_masking.ipynb").read_bytes() == shelf.path("exercises", "01_masking").read_bytes()
    write(mine / "01_masking.ipynb", "my answer")
    answer = (mine / "01_masking.ipynb").read_bytes()
    write(shelf.path("exercises", "03_gae"), "stub")
    assert hand_out(shelf, mine) == ["copied exercises/03_gae.ipynb to my_work/"]
    assert hand_out(shelf, mine) == []
    assert (mine / "01_masking.ipynb").read_bytes() == answer


def test_a_change_upstream_is_told_and_the_copy_left_alone(shelf):
    """Rejects a learner who works on an outdated exercise unknowingly, and one who is told about new links only."""
    mine, original = shelf.root / "my_work", shelf.path("exercises", "01_masking")
    write(original, "stub", links="Next: nothing")
    hand_out(shelf, mine)
    write(mine / "01_masking.ipynb", "my answer")
    answer = (mine / "01_masking.ipynb").read_bytes()
    write(original, "stub", links="Next: 02")
    assert hand_out(shelf, mine) == []
    write(original, "a better stub")
    for _ in range(2):
        (said,) = hand_out(shelf, mine)
        assert "exercises/01_masking.ipynb has changed" in said and "my_work/01_masking.ipynb is left as it is" in said
    assert (mine / "01_masking.ipynb").read_bytes() == answer
    (mine / "01_masking.ipynb").unlink()
    assert hand_out(shelf, mine) == ["copied exercises/01_masking.ipynb to my_work/"]
    assert hand_out(shelf, mine) == []


def test_a_copy_of_unknown_age_is_watched_from_now_on(shelf):
    """Rejects a lost record that turns every answer into a changed exercise, and one that ends the watching."""
    mine, original = shelf.root / "my_work", shelf.path("exercises", "01_masking")
    write(original, "stub")
    hand_out(shelf, mine)
    write(mine / "01_masking.ipynb", "my answer")
    for damage in ("not json", "[]"):
        (mine / ".copied.json").write_text(damage)
        assert hand_out(shelf, mine) == []
    write(original, "a better stub")
    assert len(hand_out(shelf, mine)) == 1


def test_how_a_file_is_written_does_not_count(shelf):
    """Rejects a version that depends on how JSON is laid out or how a cell's lines are stored."""
    one, other = shelf.path("exercises", "a"), shelf.path("exercises", "b")
    write(one, "x = 1\ny = 2")
    content = json.loads(one.read_text())
    content["cells"][0]["source"] = ["x = 1\n", "y = 2"]
    other.write_text(json.dumps(content, indent=3))
    assert version_of(one) == version_of(other)


def test_a_file_in_the_way_is_said_so(shelf):
    """Rejects a traceback, and a file deleted to make room."""
    (shelf.root / "my_work").write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        hand_out(shelf, shelf.root / "my_work")
    assert (shelf.root / "my_work").read_text() == "mine"


def test_the_first_page_is_lesson_00_and_the_users_options_win(shelf):
    """Rejects a first page that does not exist, and an option given twice, which JupyterLab refuses."""
    assert lab_options(shelf, [])[-1] == "--LabApp.default_url=/lab/tree/README.md"
    write(shelf.path("notebooks", "00_start_here"), "x")
    options = lab_options(shelf, ["--no-browser", "--LabApp.app_settings_dir=mine"])
    assert options == [
        f"--ServerApp.root_dir={shelf.root}",
        "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb",
    ]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("import importlib.util as u; find = u.find_spec\n"
         "u.find_spec = lambda name, *rest: None if name == 'jupyterlab' else find(name, *rest)",
         "jupyterlab is not installed"),
        ("import rlhf_lib.course.notebooks.shelf as shelf, os\nshelf.__file__ = '/a/b/c/d/e.py'\nos.chdir('..')",
         "not a checkout of the course"),
    ],
    ids=["no JupyterLab", "no checkout"],
)  # fmt: skip
def test_what_is_missing_is_one_line(shelf, broken, said):
    """Rejects a traceback for a learner without JupyterLab, or outside the repository; and torch on the way there."""
    start = "import sys; sys.argv = ['rlhf', 'lab']; from rlhf_lib import cli\ntry:\n    cli.main()\nfinally:\n"
    code = f"{broken}\n{start}    assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=shelf.root, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and said in done.stderr


def test_jupyterlab_opens_the_first_lesson_with_the_repository_as_its_root(shelf):
    """Rejects a Lab that is rooted in notebooks/, forgets the course's settings or the user's arguments, and a server
    that outlives the command.
    """
    write(shelf.path("notebooks", "00_start_here"), "x = 1")
    write(shelf.path("exercises", "01_masking"), "stub")
    arguments = ["--no-browser", "--allow-root", f"--port={free_port()}", "--IdentityProvider.token=abc"]
    with running_lab(shelf.root / "notebooks", *arguments) as (lab, address, said):
        assert address.endswith("/lab/tree/notebooks/00_start_here.ipynb")
        assert "copied exercises/01_masking.ipynb to my_work/" in said
        server = address.split("/lab/")[0]
        names = {entry["name"] for entry in fetch(f"{server}/api/contents")["content"]}
        assert {"notebooks", "exercises", "my_work", "README.md"} <= names
        viewers = fetch(f"{server}/lab/api/settings/@jupyterlab/docmanager-extension:plugin")["schema"]["properties"]
        assert viewers["defaultViewers"]["default"] == {"markdown": "Markdown Preview"}
        lab.send_signal(signal.SIGTERM)
        lab.wait(timeout=30)
        with pytest.raises(OSError):
            fetch(f"{server}/api/contents", tries=1)


class running_lab:
    """The command in a process of its own, the address that it prints, and what it printed before."""

    def __init__(self, folder: Path, *arguments: str):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(folder / "config")}
        command = [sys.executable, "-m", "rlhf_lib", "lab", *arguments]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def __enter__(self):
        said = ""
        for line in self.process.stdout:
            said += line
            if found := re.search(r"http://127\.0\.0\.1:\d+/lab\S*?(?=\?|$)", line):
                return self.process, found.group(), said
        raise AssertionError(said)

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetch(address: str, tries: int = 100) -> dict:
    """The server says its address a moment before it listens there."""
    for left in reversed(range(tries)):
        try:
            with urllib.request.urlopen(f"{address}?token=abc", timeout=30) as answer:
                return json.load(answer)
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError) or not left:
                raise
            time.sleep(0.2)
