"""What the command line does: set a run up, show its progress, print its result."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from ..algorithms.parts import Parts
from ..engine import distributed
from ..engine.onlooker import Onlooker
from ..engine.run_folder import RunFolder, read_lines
from . import assets
from .errors import OccupiedError, SettingsError
from .failures import loss_explained
from .inputs import damage_explained
from .machine import device_of, refuse_other_launch
from .pipeline import run_pipeline
from .report import write_report
from .run import Run
from .scales import world_of
from .settings import keys, load_settings, value_of
from .stages import STAGES

SHOWN = {  # metrics on the live line, by stage, with the name they are shown under
    "sft": {"loss": "loss"},
    "reward_model": {"loss": "loss", "agreement": "agrees"},
    "ppo": {
        "gold": "gold",
        "score": "score",
        "kl_per_sequence": "kl",
        "entropy_per_token": "entropy",
        "eos_rate": "eos",
    },
}
LABELS = {"sft": "SFT", "reward_model": "reward model", "ppo": "PPO", "held_out_preferences": "held-out pairs"}


@damage_explained()
def run(
    out: Path,
    preset: str,
    seed: int,
    changes: list[str],
    stages: list[str],
    source: Path | None,
    resume: bool,
    checkpoint_seconds: float,
) -> None:
    """The `run` command."""
    settings = load_settings(preset, changes, seed=seed)
    if not 0 <= checkpoint_seconds < math.inf:
        raise SettingsError(f"--checkpoint-seconds {checkpoint_seconds}: must be a finite number of at least 0")
    for stage in stages:
        if stage not in STAGES:
            raise SettingsError(f"there is no stage {stage!r}; the stages are {', '.join(STAGES)}")
    only_our_bars()
    no_guesses_of_deepspeed()
    refuse_other_launch(settings)
    distributed.begin(device_of(settings))
    folder = RunFolder(out) if distributed.is_main() else Onlooker(out)
    alone = only_run_in(folder) if distributed.is_main() else nullcontext()
    with loss_explained(out, "between two stages, or before the first"), alone:
        here = Run(
            settings,
            world_of(settings),
            folder,
            RunFolder(source or out),
            Parts(),
            progress_bar if distributed.is_main() else without_a_bar,
            resume=resume,
            checkpoint_seconds=checkpoint_seconds,
        )
        report = run_pipeline(here, [stage for stage in STAGES if stage in (stages or STAGES)])
        if report["sft"] and distributed.is_main():
            show_result(folder, report, write_report(out))


def show_result(folder: RunFolder, report: dict, page: Path) -> None:
    """What a run ends with on the screen."""
    console = Console()
    show_samples(console, read_lines(folder / "samples.jsonl"))
    show_numbers(console, report)
    console.print(f"The whole story, with plots: {page}", soft_wrap=True)


@contextmanager
def only_run_in(folder: RunFolder) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it even if the run is killed.

    raises  OccupiedError if another run holds it
    """
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise OccupiedError(f"another run is writing to {folder.path}: wait for it, or choose another --out") from None


def show_settings(preset: str) -> None:
    """The `settings` command."""
    settings = load_settings(preset)
    for key in keys(settings):
        print(f"{key}={value_of(settings, key)}")


def rebuild(only: list[str]) -> None:
    """The `rebuild` command."""
    for name in only:
        if name not in assets.BUILDERS:
            raise SettingsError(f"there is nothing called {name!r} to rebuild; there are {', '.join(assets.BUILDERS)}")
    only_our_bars()
    for name, build in assets.BUILDERS.items():
        if name in (only or assets.BUILDERS):
            build(progress_bar)


def only_our_bars() -> None:
    """Transformers shows a bar for every model that it loads or saves; between ours they would only confuse."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def no_guesses_of_deepspeed() -> None:
    """Accelerate imports DeepSpeed, where that is installed, for every model to be saved; on a CPU it then warns."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())


def progress_bar(stage: str, steps: Iterator[dict], total: int, done: int = 0) -> Iterator[dict]:
    """A bar for the stage with its latest metrics behind it; `done` of its steps were done before."""
    with tqdm(
        steps, total=total, initial=done, desc=f"{LABELS.get(stage, stage):>14}", unit="", dynamic_ncols=True
    ) as bar:
        for step in bar:
            shown = {
                label: f"{step[name]:.2f}"
                for name, label in SHOWN.get(stage, {}).items()
                if math.isfinite(step[name])  # there may be no gold
            }
            bar.set_postfix(shown, refresh=False)
            yield step


def without_a_bar(stage: str, steps: Iterator[dict], total: int, done: int = 0) -> Iterator[dict]:
    """Of several processes one shows bars."""
    yield from steps


def show_samples(console: Console, rows: list[dict], count: int = 4) -> None:
    """A table of summaries before and after, on the first posts where the two differ."""
    table = Table(title="Before and after, on posts that nothing was trained on", show_lines=True)
    about = "what happened (the facts)" if rows[0]["facts"] else "title"
    for heading in (about, "SFT wrote", "PPO wrote"):
        table.add_column(heading, ratio=1)
    different = [row for row in rows if row["sft"]["text"] != row["policy"]["text"]]
    for row in different[:count]:
        facts = "my {who} {did} my {what}; should i {ask}?".format(**row["facts"]) if row["facts"] else row["title"]
        table.add_row(facts, *(f"{row[name]['text']}\n({_worth(row[name])})" for name in ("sft", "policy")))
    console.print(table)


def _worth(summary: dict) -> str:
    return f"gold {summary['gold']:g}" if "gold" in summary else f"score {summary['score']:.2f}"


def show_numbers(console: Console, report: dict) -> None:
    """The report's most important numbers."""
    sft, ppo, scorer = report["sft"], report["ppo"], report["reward_model"]
    table = Table(title=f"{report['preset']}, seed {report['seed']}")
    for heading in ("", "SFT", "PPO"):
        table.add_column(heading, justify="left" if not heading else "right")
    name, label = ("gold", "gold score, at most 4") if "gold" in sft else ("score", "score of the reward model")
    table.add_row(label, f"{sft[name]:.2f}", f"{ppo[name]:.2f}")
    low, high = ppo["win_rate_vs_sft_interval"]
    table.add_row("wins against SFT", "", f"{ppo['win_rate_vs_sft']:.1%} [{low:.1%}, {high:.1%}]")
    if ppo["win_rate_vs_sft_length_matched"] is not None:
        table.add_row("  at matched length", "", f"{ppo['win_rate_vs_sft_length_matched']:.1%}")
    table.add_row("copies the title", f"{sft['title_copy_rate']:.1%}", f"{ppo['title_copy_rate']:.1%}")
    table.add_row("says it twice", f"{sft['repetition_rate']:.1%}", f"{ppo['repetition_rate']:.1%}")
    table.add_row("words", f"{sft['response_length']:.1f}", f"{ppo['response_length']:.1f}")
    if "kl_per_sequence" in ppo:
        table.add_row("KL from SFT, nats a summary", "0", f"{ppo['kl_per_sequence']:.2f}")
    if "accuracy" in scorer:
        ceiling = f" of {scorer['accuracy_ceiling']:.1%}" if "accuracy_ceiling" in scorer else ""
        table.add_row("reward model agrees with readers", "", f"{scorer['accuracy']:.1%}{ceiling}")
    table.add_row("minutes, peak MiB", "", f"{report['seconds']['total'] / 60:.1f}, {report['peak_memory_mib']:.0f}")
    if "peak_gpu_mib" in report:
        table.add_row("  of tensors on the GPU", "", f"{report['peak_gpu_mib']:.0f}")
    console.print(table)
