"""The command line: light and readable. What it refuses is in test_bad_input."""

import subprocess
import sys
from itertools import chain

import pytest
from typer.testing import CliRunner

from rlhf_lib import cli
from rlhf_lib.pipeline.settings import PRESETS, keys
from tests.pipeline.runs import SMALL

COMMANDS = ("run", "settings", "memory", "doctor", "rebuild", "notebooks", "lab")
HEAVY = ("torch", "transformers", "tokenizers", "numpy", "matplotlib", "jinja2", "rlhf_lib.maths")


def invoke(*arguments: str, **rest):
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "120", "TERM": "dumb"}, **rest)


def refused(monkeypatch, capsys, *arguments: str) -> str:
    """The line on stderr of the entry point, which must leave with status 2 and say nothing else."""
    monkeypatch.setattr(sys, "argv", ["rlhf", *arguments])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    out, err = capsys.readouterr()
    assert leaving.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("code", ["import rlhf_lib", "import rlhf_lib.cli", "help"])
def test_light(code):
    """Rejects an import at the top that makes `import rlhf_lib` or `--help` wait for torch."""
    run_help = "import rlhf_lib.cli as cli\ntry:\n    cli.app(['run', '--help'])\nexcept SystemExit:\n    pass"
    report = f"import sys\nprint([module for module in {HEAVY} if module in sys.modules])"
    done = python(f"{run_help if code == 'help' else code}\n{report}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_of_the_program():
    """Rejects a command without a line about it, and a traceback's worth of decoration."""
    text = invoke("--help").output
    for command in COMMANDS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {command} ")]
        assert len(line.split()) > 3
    assert invoke().output.splitlines()[0] == text.splitlines()[0]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_summaries_of_commands_are_whole(columns):
    """Rejects a summary that is cut off where the terminal is narrow, and a list that is wider than that."""
    text = invoke("--help", terminal_width=columns).output.partition("Commands:")[2]
    assert "..." not in text and max(map(len, text.splitlines())) <= columns
    words = " ".join(text.split())
    assert "Train a summariser: SFT, preferences, reward model, PPO, evaluation." in words


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("run", "--out --preset --seed --set --stage --from --resume --checkpoint-seconds"),
        ("settings", "--preset"),
        ("rebuild", "--only"),
    ],
)
def test_help_of_a_command(command, options):
    """Rejects an option without an explanation, internal names, and lines wider than a terminal."""
    result = invoke(command, "--help")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 120
    for option in options.split():
        (line,) = [line for line in lines if line.strip().startswith(option)]
        assert len(line.split()) > 4
    assert not {"changes", "source", "stages"} & {line.strip().split(" ")[0].lstrip("-") for line in lines}


@pytest.mark.parametrize("command", ["run", "settings"])
def test_help_names_every_preset(command):
    """Rejects a preset that nobody can find: the names stand in the help by hand, since it must not import them."""
    text = "".join(invoke(command, "--help").output.split())  # a name may be wrapped at its hyphen
    assert f"{'or'.join(PRESETS)}." in text


def test_settings_are_listed():
    """Rejects a list that leaves a setting out, or in another form than `--set` takes."""
    lines = invoke("settings").output.splitlines()
    assert [line.partition("=")[0] for line in lines] == keys(PRESETS["tiny"])
    assert "ppo.kl_coef=0.05" in lines


def test_a_missing_input(monkeypatch, capsys, tmp_path):
    """Rejects a traceback where a stage is run before the one that it needs."""
    line = refused(monkeypatch, capsys, "run", "--out", str(tmp_path / "out"), "--stage", "ppo")
    assert "reward_model" in line
    assert "--from" in line


def test_nothing_of_that_name_to_rebuild(monkeypatch, capsys):
    """Rejects a rebuild of everything when its name was misspelt."""
    assert "there are base, lesson, runs, manifest" in refused(monkeypatch, capsys, "rebuild", "--only", "bse")


def test_ctrl_c_where_nothing_is_trained(monkeypatch, capsys):
    """Rejects a traceback, and a silence that leaves open whether anything is lost."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["rlhf", "run", "--out", "nowhere"])
    monkeypatch.setattr("rlhf_lib.pipeline.command.run", interrupted)
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 130
    assert capsys.readouterr().err.strip() == cli.STOPPED


def test_a_real_process(tmp_path):
    """Rejects a `python -m rlhf_lib` that is wired up otherwise than the functions tested here."""
    command = [sys.executable, "-m", "rlhf_lib", "run", "--out", str(tmp_path / "out"), "--set", "nonsense=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: there is no setting 'nonsense'")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_whole_run(tmp_path):
    """Rejects a command that does not pass its options on, or ends without a table, the numbers and the page."""
    changes = chain.from_iterable(("--set", change) for change in (*SMALL, "ppo.learning_rate=0.01"))
    result = invoke("run", "--out", str(tmp_path), "--seed", "3", *changes)
    assert result.exit_code == 0, result.output
    for said in ("SFT wrote", "PPO wrote", "gold score", "tiny, seed 3", "report.html"):
        assert said in result.output
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert '"seed": 3' in (tmp_path / "settings.json").read_text()
    assert '"learning_rate": 0.01' in (tmp_path / "settings.json").read_text()


def test_deepspeed_says_nothing_of_a_run_without_it(tmp_path):
    """Rejects a warning about accelerators in a run of one process on the CPU, where DeepSpeed happens to be there."""
    pytest.importorskip("deepspeed")
    changes = chain.from_iterable(("--set", change) for change in (*SMALL, "sft.steps=1"))
    command = [sys.executable, "-m", "rlhf_lib", "run", "--out", str(tmp_path), "--stage", "sft", *changes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "accelerator" not in done.stdout + done.stderr, done.stderr


def test_stages_run_in_their_order(tmp_path):
    """Rejects the order on the command line, in which a stage may come before the one that it needs."""
    changes = chain.from_iterable(("--set", change) for change in SMALL)
    result = invoke("run", "--out", str(tmp_path), "--stage", "preferences", "--stage", "sft", *changes)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "preferences.jsonl").exists()
    assert not (tmp_path / "report.html").exists()
