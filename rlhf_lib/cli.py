"""The command line: `python -m rlhf_lib --help`. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Annotated

import typer

INTERRUPTED = 130  # the exit status of what Ctrl-C ended
OF_THE_DISK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}  # not our mistakes

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def course() -> None:
    """RLHF from Scratch: SFT, reward model, PPO and evaluation, from a laptop to a GPU."""


@app.command()
def run(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for everything the run writes; made if missing.")],
    preset: Annotated[str, typer.Option(help="Which model, data and sizes: tiny or tiny-overoptimised.")] = "tiny",
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT where it was stopped.")] = False,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Save a checkpoint this often; 0 saves after every step.")
    ] = 10.0,
) -> None:
    """Train a summariser: SFT, preferences, reward model, PPO, evaluation. Needs no network.

    Writes the models sft/ reward_model/ policy/ value/ (plain from_pretrained loads them), metrics.jsonl,
    timing.jsonl, samples.jsonl, report.json and report.html.
    """
    from .pipeline import command

    command.run(out, preset, seed, changes, stages, source, resume, checkpoint_seconds)


@app.command()
def settings(
    preset: Annotated[str, typer.Option(help="The preset to show: tiny or tiny-overoptimised.")] = "tiny",
) -> None:
    """List every setting of a preset, as KEY=VALUE, the form that `run --set` takes."""
    from .pipeline import command

    command.show_settings(preset)


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
    from .pipeline.errors import StoppedError, TrainingError, UserError

    try:
        app()
    except StoppedError as stopped:
        typer.echo(str(stopped), err=True)
        raise SystemExit(INTERRUPTED) from None
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except TrainingError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        typer.echo(f"error: {error.strerror}: {error.filename or 'the disk'}; what was complete is kept", err=True)
        raise SystemExit(2) from None
