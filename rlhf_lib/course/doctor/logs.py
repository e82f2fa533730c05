"""The log of a run, ours or one in the style of TRL, as columns under our names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...engine.files import DamagedError
from ...engine.precision import SLACK
from ...engine.run_folder import read_lines
from ...pipeline.errors import InputError, MissingInputError
from .trl import in_our_names

FILES = ("metrics.jsonl", "trainer_state.json")


@dataclass(frozen=True)
class Log:
    """Columns by name, one number for each update (NaN where a row had none), and how the run ended.

    settings  dotted keys, of runs that keep theirs; {} of others
    ended_by  what broke the run off, "" if nothing is known to have
    """

    columns: Mapping[str, list[float]]
    settings: Mapping[str, object] = field(default_factory=dict)
    ended_by: str = ""

    def __contains__(self, name: str) -> bool:
        return any(map(math.isfinite, self.columns.get(name, [])))

    def __getitem__(self, name: str) -> list[float]:
        """The finite numbers of a column, in order; [] if there is no such column."""
        return [value for value in self.columns.get(name, []) if math.isfinite(value)]

    @property
    def updates(self) -> int:
        return max(map(len, self.columns.values()), default=0)

    @property
    def slack(self) -> float:
        """What limits of float32 are to be multiplied by, where the run says that it had fewer bits."""
        return SLACK.get(self.settings.get("engine.precision", "float32"), 1.0)

    def has(self, *names: str) -> bool:
        return all(name in self for name in names)


def from_rows(rows: list[dict], **rest: object) -> Log:
    """From one dictionary for each update, under our names or TRL's; what is not a number is left out."""
    renamed = [in_our_names(row) for row in rows]
    names = dict.fromkeys(name for row in renamed for name in row)
    columns = {name: [_number(row.get(name)) for row in renamed] for name in names}
    return Log({name: values for name, values in columns.items() if any(v == v for v in values)}, **rest)


def read_log(path: Path) -> Log:
    """The log of a run's folder, or of a file: metrics.jsonl, or TRL's trainer_state.json (its last checkpoint's).

    raises  MissingInputError if there is neither; InputError if a row is broken or none is about PPO
    """
    file = _file_of(path)
    try:
        rows = read_lines(file) if file.suffix == ".jsonl" else _history(file)
    except DamagedError as error:
        raise InputError(str(error)) from None
    ppo = [row for row in rows if row.get("stage", "ppo") == "ppo" and not {"train_runtime"} & row.keys()]
    settings = _settings(file.parent)
    unfinished = len(ppo) != settings.get("ppo.updates")  # one that has gone on since leaves its dump behind
    dumps = sorted(file.parent.glob("dump*")) if unfinished else []
    log = from_rows(ppo, settings=settings, ended_by=f"a dump: {dumps[-1].name}" if dumps else "")
    if not log.updates and not log.ended_by:
        raise InputError(f"{file} has no row of PPO: the doctor reads the log of the PPO stage")
    return log


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    checkpoints = sorted(path.glob("checkpoint-*"), key=lambda folder: (len(folder.name), folder.name), reverse=True)
    for file in (*(path / name for name in FILES), *(folder / FILES[-1] for folder in checkpoints)):
        if file.is_file():
            return file
    what = f"has no {' and no '.join(FILES)}" if path.exists() else "does not exist"
    raise MissingInputError(f"{path} {what}: name the folder of a run, or its log")


def _history(file: Path) -> list[dict]:
    try:
        return list(json.loads(file.read_text(encoding="utf-8"))["log_history"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{file} is not a trainer's state ({type(error).__name__}: {error})") from None


def _settings(folder: Path) -> dict[str, object]:
    file = folder / "settings.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        parts = {part: found[part] for part in ("ppo", "engine") if part in found}
        return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}: {error})") from None


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
