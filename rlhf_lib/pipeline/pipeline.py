"""Run stages one after the other and put what they found into one report."""

from __future__ import annotations

import itertools
import platform
import shutil
from collections.abc import Container, Sequence
from importlib.metadata import PackageNotFoundError, version

from .. import __version__
from ..engine import distributed
from ..engine.run_folder import peak_memory_mib, peak_of_gpu, stopwatch
from .enough import refuse_too_little
from .errors import OccupiedError, SettingsError
from .failures import loss_explained, memory_explained
from .inputs import damage_explained
from .machine import refuse_impossible, refuse_other_model
from .run import Run
from .same_run import changed_settings, changes, record
from .scales import scale_of
from .stages import STAGES

VERSIONS_OF = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "safetensors")
PEAKS = ("peak_memory_mib", "peak_gpu_mib")  # of the process, and of its tensors on a GPU if it uses one


@damage_explained()
def run_pipeline(run: Run, stages: Sequence[str] = tuple(STAGES)) -> dict:
    """Run the stages in order; returns the report (and writes it once the evaluation is there).

    Results of earlier stages, found here or in the source run, are kept: a report can be completed bit by bit. Those
    of later stages are not: they are about models that are now others.
    """
    refuse_impossible(run.settings)
    refuse_other_model(run.settings, run.world.base_folder)
    refuse_too_long(run)
    refuse_too_few(run, stages)
    changed = changed_settings(run)
    refuse_to_overwrite(run, stages)
    run.out.check_logs()
    finished = run.out.read_json("results.json", {})
    to_run = pending(run, stages, finished)
    refuse_too_little(run, to_run)
    data = scale_of(run.settings).look_at_data(run, to_run)
    record(run, changed, to_run)
    if data:
        run.out.write_json("data.json", {**run.out.read_json("data.json", {}), **data})
    distributed.wait_for_all()  # before anybody writes what another one might take for a run in its way
    results = {**run.source.read_json("results.json", {}), **finished}
    for stage in to_run:
        seconds: dict[str, float] = {}
        forget_checkpoints_after(run, stage)
        with stopwatch(seconds, stage), loss_explained(run.out.path, f"stage {stage}"), memory_explained(run, stage):
            found = STAGES[stage](run)
            distributed.wait_for_all()  # for what the main process has saved
        results = {name: results[name] for name in itertools.takewhile(stage.__ne__, STAGES) if name in results}
        results[stage] = {**found, "seconds": seconds[stage], "peak_memory_mib": peak_memory_mib(), **peak_of_gpu()}
        run.out.write_json("results.json", results)
    report = make_report(run, results)
    if "evaluation" in results:
        run.out.write_json("report.json", report)
    return report


def pending(run: Run, stages: Sequence[str], finished: Container[str]) -> list[str]:
    """The stages to run: when resuming, from the first that is not finished on; what follows it was made from it."""
    done = itertools.takewhile(lambda stage: run.resume and stage in finished, stages)
    return list(stages[len(list(done)) :])


def refuse_too_long(run: Run) -> None:
    """raises SettingsError if prompt and response together do not fit what the models can read."""
    room, wanted = run.world.context - run.world.longest_prompt, run.settings.ppo.response_length
    if wanted > room:
        raise SettingsError(
            f"ppo.response_length={wanted} is too long: the models read {run.world.context} tokens and prompts take up "
            f"to {run.world.longest_prompt}, which leaves {room}"
        )


def refuse_too_few(run: Run, stages: Sequence[str]) -> None:
    """raises SettingsError if the preferences to be made would not fill a batch: better now than after SFT."""
    posts, batch = run.settings.preferences.posts, run.settings.reward_model.posts_per_batch
    if posts < batch and {"preferences", "reward_model"} <= set(stages):
        raise SettingsError(
            f"preferences.posts={posts} gives too few pairs for a batch of reward_model.posts_per_batch={batch} posts: "
            "raise the one or lower the other"
        )


def refuse_to_overwrite(run: Run, stages: Sequence[str]) -> None:
    """raises OccupiedError if a stage to be run has been run, or begun, in this folder and is not to be resumed."""
    finished = run.out.read_json("results.json", {})
    begun = [stage for stage in stages if stage in finished or (run.out / "checkpoints" / stage).exists()]
    if begun and not run.resume:
        raise OccupiedError(
            f"{run.out.path} already holds stage {begun[0]} of this run: add --resume to go on with it, or choose "
            "another --out"
        )


def forget_checkpoints_after(run: Run, stage: str) -> None:
    """Later stages' checkpoints come from what this stage is about to make anew."""
    if not distributed.is_main():
        return
    later = itertools.islice(itertools.dropwhile(stage.__ne__, STAGES), 1, None)
    for name in later:
        shutil.rmtree(run.out / "checkpoints" / name, ignore_errors=True)


def make_report(run: Run, results: dict) -> dict:
    """What report.json holds: one place for every number of the run."""
    evaluation, against = results.get("evaluation", {}), scale_of(run.settings).hold_against
    seconds = {stage: result["seconds"] for stage, result in results.items()}
    report = {
        "preset": run.settings.preset,
        "seed": run.settings.seed,
        "seconds": {"total": sum(seconds.values()), **seconds},
        **{name: max(peaks) for name in PEAKS if (peaks := [r[name] for r in results.values() if name in r])},
        "sft": evaluation.get("sft"),
        "reference": evaluation.get("reference"),
        "reward_model": _numbers(results.get("reward_model", {})),
        "ppo": {**_numbers(results.get("ppo", {})), **evaluation.get("ppo", {})},
        "versions": {
            "python": platform.python_version(),
            "rlhf_lib": __version__,
            **{name: _version(name) for name in VERSIONS_OF},
        },
        "parts": run.parts.fingerprint(),
    }
    if changed := changes(run):
        report["changes"] = changed
    return {**report, **against(run, report)}


def _numbers(result: dict) -> dict:
    return {name: value for name, value in result.items() if name not in ("seconds", *PEAKS)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
