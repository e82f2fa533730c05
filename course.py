"""RLHF from Scratch: set it up and use it with Python 3.10+ alone. The first call installs into .venv/.

    python3 course.py run [ARGS...]    train the tiny pipeline (SFT, reward model, PPO), offline, on a GPU if there is
                                       one, and write a report; ARGS go to `python -m rlhf_lib run`, as --out runs/mine
    python3 course.py lab [ARGS...]    open the lessons in JupyterLab; the exercises are copied to my_work/ (what is
                                       there already stays as it is); ARGS go to jupyter lab, e.g. --no-browser
    python3 course.py test [ARGS...]   run the tests and every notebook; ARGS go to pytest, e.g. -x tests/maths
    python3 course.py install          only set up .venv/; the other jobs do so by themselves

With the tested versions of everything:  PIP_CONSTRAINT=constraints.txt python3 course.py test
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

OLDEST_PYTHON = (3, 10)
ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "course-installed"
PACKAGE = ".[test]"

JOBS = {
    "run": ["-m", "rlhf_lib", "run", "--preset", "tiny", "--out", "runs/tiny", "--resume"],
    "lab": ["-m", "rlhf_lib", "lab"],
    "test": ["-m", "pytest", "--nbval", "-q"],
    "install": None,
}


class SetupError(Exception):
    """A step of the set-up failed. Carries what to tell the user and the exit status to leave with."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


def say(text):
    print(f"[course] {text}", flush=True)


def check_version(version):
    """Raises SetupError when this Python is too old. The file keeps to old syntax so that one gets as far as here."""
    if tuple(version[:2]) < OLDEST_PYTHON:
        found, needed = (".".join(str(n) for n in v[:2]) for v in (version, OLDEST_PYTHON))
        raise SetupError(f"This is Python {found}, the course needs {needed} or newer: try `python3.12 course.py ...`")


def installation(root, environ):
    """A digest of everything that decides what is installed; another digest means: install again."""
    digest = hashlib.sha256(f"{root}\n{PACKAGE}\n".encode())  # an editable install knows the folder it was made in
    for path in [root / "pyproject.toml", *(root / name for name in environ.get("PIP_CONSTRAINT", "").split())]:
        digest.update(path.read_bytes() if path.is_file() else str(path).encode())
    return digest.hexdigest()


def is_stamped(wanted):
    return STAMP.is_file() and STAMP.read_text() == wanted


def answers(*args):
    """True if the environment's Python exists and runs these arguments without an error."""
    return PYTHON.exists() and subprocess.run([str(PYTHON), *args], cwd=ROOT, capture_output=True).returncode == 0


def step(text, *command):
    """One line to the user, then the command; only what it complains of is shown."""
    say(text)
    status = subprocess.run([str(part) for part in command], cwd=ROOT, stdout=subprocess.DEVNULL).returncode
    if status:
        raise SetupError(f"failed (exit status {status}): {text}", status)


def make_environment():
    """An environment with pip in it. Debian without python3-venv lacks ensurepip: there, this Python's pip fills in."""
    if not answers("-c", ""):
        step("making .venv", sys.executable, "-m", "venv", "--clear", "--without-pip", VENV)
    if answers("-m", "pip", "--version"):
        return
    if importlib.util.find_spec("ensurepip"):
        step("adding pip to .venv", PYTHON, "-m", "ensurepip", "--default-pip")
    elif importlib.util.find_spec("pip"):
        where = subprocess.check_output([str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
        packages = where.decode().strip()
        step("adding pip to .venv", sys.executable, "-m", "pip", "install", "-q", "--target", packages, "pip")
    else:
        raise SetupError("This Python lacks both ensurepip and pip. On Debian or Ubuntu: sudo apt install python3-venv")


def install():
    """Brings .venv up to date. The stamp is taken away first and written last: an interrupted call starts again."""
    wanted = installation(ROOT, os.environ)
    if is_stamped(wanted) and answers("-m", "pip", "--version"):
        return
    STAMP.unlink(missing_ok=True)
    make_environment()
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "-q", "-e", PACKAGE]
    try:
        step("installing the course and what it needs (the first time: PyTorch, some minutes, 2 to 6 GB)", *pip)
    except SetupError as error:
        advice = "pip's own message is above. Often: no network, a full disk, or a Python too new for a package."
        raise SetupError(f"{error}\n{advice} Nothing is lost: run the same command again.", error.status) from None
    STAMP.write_text(wanted)
    say("installed")


def report_of(args):
    """Where `run` writes its report, given the user's own arguments: the last --out counts."""
    out = "runs/tiny"
    for i, arg in enumerate(args):
        if arg == "--out" and i + 1 < len(args):
            out = args[i + 1]
        elif arg.startswith("--out="):
            out = arg[len("--out=") :]
    return ROOT / out / "report.html"


def call(command):
    """Runs a job to its end. Ctrl-C reaches the job too, which decides what it means (JupyterLab asks first)."""
    with subprocess.Popen(command, cwd=ROOT) as process:
        while True:
            try:
                status = process.wait()
            except KeyboardInterrupt:
                continue
            return status if status >= 0 else 128 - status  # ended by a signal: as a shell reports it


def main(argv):
    job, args = (argv[0], argv[1:]) if argv else ("", [])
    if job in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0
    if job not in JOBS:
        print(f"unknown job: {job}" if job else "which job?", file=sys.stderr)
        print(f"usage: python3 course.py {{{','.join(JOBS)}}} [ARGS...]    (--help says more)", file=sys.stderr)
        return 2
    try:
        check_version(sys.version_info)
        install()
    except SetupError as error:
        print(f"[course] {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("[course] stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if JOBS[job] is None:
        return 0
    status = call([str(PYTHON), *JOBS[job], *args])
    if job == "run" and status == 0 and report_of(args).is_file():
        say(f"open the report in a browser: {report_of(args)}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
