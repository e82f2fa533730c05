"""course.py without a network and without making an environment: what it decides, what it says, what it exits with."""

import ast
import sys
from pathlib import Path

import pytest

import course

ROOT = Path(course.__file__).resolve().parent


class Project:
    """A project folder in which nothing really runs: `steps` and `jobs` keep the commands, `failing` breaks a step."""

    def __init__(self, root, monkeypatch):
        self.root, self.steps, self.jobs = root, [], []
        self.failing, self.job_status = "", 0
        (root / "pyproject.toml").write_text("[project]\nname = 'x'\n")
        (root / "exercises").mkdir()
        (root / ".venv").mkdir()
        monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
        paths = {"ROOT": root, "VENV": root / ".venv", "PYTHON": root / ".venv/python", "STAMP": root / ".venv/stamp"}
        for name, value in {**paths, "answers": lambda *args: True, "step": self.step, "call": self.call}.items():
            monkeypatch.setattr(course, name, value)

    def step(self, text, *command):
        self.steps.append([str(part) for part in command])
        if self.failing and self.failing in self.steps[-1]:
            raise course.SetupError(f"failed (exit status 3): {text}", 3)

    def call(self, command):
        self.jobs.append(command)
        return self.job_status


@pytest.fixture
def project(tmp_path, monkeypatch):
    return Project(tmp_path, monkeypatch)


def test_an_old_python_can_read_the_file_and_is_told_what_it_needs():
    ast.parse((ROOT / "course.py").read_text(), feature_version=(3, 6))
    for good in [(3, 10, 0), (3, 13, 2), (4, 0, 0)]:
        course.check_version(good)
    with pytest.raises(course.SetupError, match=r"Python 3\.9.*3\.10 or newer"):
        course.check_version((3, 9, 18))


def test_the_oldest_python_is_the_one_that_pyproject_names():
    oldest = ".".join(map(str, course.OLDEST_PYTHON))
    assert f'requires-python = ">={oldest}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("argv", [[], ["tets"], ["--version"]])
def test_an_unknown_job_shows_the_usage_and_installs_nothing(project, capsys, argv):
    assert course.main(argv) == 2
    said = capsys.readouterr().err
    assert all(job in said for job in course.JOBS) and "usage" in said
    assert project.steps == project.jobs == []


def test_help_names_every_job_and_installs_nothing(project, capsys):
    assert course.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"course.py {job}" in said for job in course.JOBS)
    assert project.steps == []


@pytest.mark.parametrize(
    ("argv", "starts", "ends"),
    [
        (["run", "--seed", "3"], ["-m", "rlhf_lib", "run"], ["--out", "runs/tiny", "--resume", "--seed", "3"]),
        (["test", "-x"], ["-m", "pytest", "--nbval"], ["-q", "-x"]),
        (["lab", "--no-browser"], ["-m", "rlhf_lib", "lab"], ["--no-browser"]),
    ],
)
def test_a_job_runs_in_the_environment_with_the_users_arguments_last(project, argv, starts, ends):
    assert course.main(argv) == 0
    [command] = project.jobs
    assert command[0] == str(course.PYTHON)
    assert command[1 : 1 + len(starts)] == starts and command[-len(ends) :] == ends


def test_the_jobs_exit_status_is_passed_on(project):
    project.job_status = 5
    assert course.main(["test"]) == 5


def test_install_runs_no_job(project):
    assert course.main(["install"]) == 0
    assert len(project.steps) == 1 and project.jobs == []


def test_a_second_call_installs_nothing(project):
    course.main(["test"])
    course.main(["test"])
    assert len(project.steps) == 1 and len(project.jobs) == 2


def test_a_changed_pyproject_installs_again(project):
    course.main(["test"])
    (project.root / "pyproject.toml").write_text("[project]\nname = 'y'\n")
    course.main(["test"])
    assert len(project.steps) == 2


@pytest.mark.parametrize("absolute", [True, False])
def test_a_changed_constraints_file_installs_again(project, monkeypatch, absolute):
    course.main(["test"])
    path = project.root / "constraints.txt"
    path.write_text("six==1.16.0\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(path) if absolute else path.name)
    course.main(["test"])
    path.write_text("six==1.17.0\n")
    course.main(["test"])
    course.main(["test"])
    assert len(project.steps) == 3


def test_a_moved_folder_is_another_installation(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pyproject.toml").write_text("same")
    assert course.installation(tmp_path / "here", {}) != course.installation(tmp_path / "there", {})


def test_a_dead_environment_is_made_again_in_spite_of_its_stamp(project, monkeypatch):
    course.main(["install"])
    monkeypatch.setattr(course, "answers", lambda *args: False)
    course.main(["install"])
    made, added_pip, installed = project.steps[1:]
    assert "--clear" in made and "ensurepip" in added_pip and "install" in installed


def test_a_failed_install_leaves_no_stamp_and_says_so(project, capsys):
    course.main(["install"])
    (project.root / "pyproject.toml").write_text("changed")
    project.failing = "-e"
    assert course.main(["test"]) == 3
    assert "exit status 3" in capsys.readouterr().err
    assert project.jobs == [] and not course.STAMP.exists()
    project.failing = ""
    assert course.main(["test"]) == 0 and len(project.jobs) == 1


@pytest.mark.parametrize(
    ("modules", "expected"),
    [({"ensurepip", "pip"}, ["-m", "ensurepip"]), ({"pip"}, ["-m", "pip", "install", "-q", "--target"])],
)
def test_pip_comes_from_ensurepip_or_else_from_this_pythons_pip(project, monkeypatch, modules, expected):
    monkeypatch.setattr(course, "answers", lambda *args: args[0] == "-c")
    monkeypatch.setattr(course, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(course.importlib.util, "find_spec", lambda name: name in modules or None)
    course.make_environment()
    [added_pip] = project.steps
    assert added_pip[1 : 1 + len(expected)] == expected


def test_without_any_pip_the_user_is_told_the_package(project, monkeypatch):
    monkeypatch.setattr(course, "answers", lambda *args: args[0] == "-c")
    monkeypatch.setattr(course.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(course.SetupError, match="python3-venv"):
        course.make_environment()


@pytest.mark.parametrize(
    ("args", "folder"),
    [([], "runs/tiny"), (["--seed", "1"], "runs/tiny"), (["--out", "a", "--out=b"], "b"), (["--out"], "runs/tiny")],
)
def test_the_report_is_looked_for_where_the_last_out_says(args, folder):
    assert course.report_of(args) == course.ROOT / folder / "report.html"


@pytest.mark.parametrize(("status", "told"), [(0, True), (1, False)])
def test_run_tells_where_the_report_is_only_when_it_succeeded(project, capsys, status, told):
    report = project.root / "runs/tiny/report.html"
    report.parent.mkdir(parents=True)
    report.write_text("<html>")
    project.job_status = status
    assert course.main(["run"]) == status
    assert (str(report) in capsys.readouterr().out) is told


def test_a_job_ended_by_a_signal_exits_as_in_a_shell():
    assert course.call([sys.executable, "-c", "raise SystemExit(7)"]) == 7
    if sys.platform != "win32":
        assert course.call([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 128 + 9
