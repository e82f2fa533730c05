"""Run stages one after the other and put what they found into one report."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from ..engine.run_folder import peak_memory_mib, stopwatch
from .errors import SettingsError
from .run import Run
from .settings import Settings, from_json, keys
from .stages import STAGES

VERSIONS_OF = ("rlhf-from-scratch", "torch", "transformers", "datasets", "accelerate", "tokenizers", "safetensors")


def run_pipeline(run: Run, stages: Sequence[str] = tuple(STAGES)) -> dict:
    """Run the stages in order; returns the report (and writes it once the evaluation is there).

    Results of earlier stages, found here or in the source run, are kept: a report can be completed bit by bit. Those
    of later stages are not: they are about models that are now others.
    """
    refuse_other_settings(run)
    run.out.write_json("settings.json", asdict(run.settings))
    results = {**run.source.read_json("results.json", {}), **run.out.read_json("results.json", {})}
    for stage in stages:
        seconds: dict[str, float] = {}
        with stopwatch(seconds, stage):
            found = STAGES[stage](run)
        results = {name: results[name] for name in itertools.takewhile(stage.__ne__, STAGES) if name in results}
        results[stage] = {**found, "seconds": seconds[stage], "peak_memory_mib": peak_memory_mib()}
        run.out.write_json("results.json", results)
    report = make_report(run, results)
    if "evaluation" in results:
        run.out.write_json("report.json", report)
    return report


def refuse_other_settings(run: Run) -> None:
    """raises SettingsError if the output folder belongs to a run with other settings: mixing two runs helps nobody."""
    path = run.out / "settings.json"
    if not path.exists():
        return
    there = from_json(path.read_text(encoding="utf-8"))
    different = [key for key in ["preset", *keys(there)] if value_of(there, key) != value_of(run.settings, key)]
    if different:
        key = different[0]
        raise SettingsError(
            f"{run.out.path} holds a run with {key}={value_of(there, key)}, not {value_of(run.settings, key)}: choose "
            f"another --out; to build on that run's output, add --from {run.out.path}"
        )


def value_of(settings: Settings, key: str) -> object:
    """The value behind a dotted key."""
    value: object = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


def make_report(run: Run, results: dict) -> dict:
    """What report.json holds: one place for every number of the run."""
    evaluation = results.get("evaluation", {})
    seconds = {stage: result["seconds"] for stage, result in results.items()}
    return {
        "preset": run.settings.preset,
        "seed": run.settings.seed,
        "seconds": {"total": sum(seconds.values()), **seconds},
        "peak_memory_mib": max(result["peak_memory_mib"] for result in results.values()),
        "sft": evaluation.get("sft"),
        "reference": evaluation.get("reference"),
        "reward_model": _numbers(results.get("reward_model", {})),
        "ppo": {**_numbers(results.get("ppo", {})), **evaluation.get("ppo", {})},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONS_OF}},
        "parts": run.parts.fingerprint(),
    }


def _numbers(result: dict) -> dict:
    return {name: value for name, value in result.items() if name not in ("seconds", "peak_memory_mib")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
