"""What every stage of a run needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from ..algorithms.parts import Parts
from ..algorithms.step_zero import StepZeroError
from ..engine import checkpoint, distributed, dump, loss_scaling, models, sharding
from ..engine.files import brief, naming
from ..engine.frozen_trunk import FrozenTrunk
from ..engine.hardware import Placeable, placed
from ..engine.interrupt import graceful_stop
from ..engine.loading import save_tokenizer
from ..engine.optimiser import NonFiniteError
from ..engine.preparation import prepare, share_out
from ..engine.run_folder import RunFolder, read_lines
from ..engine.tensorboard import mirrored
from ..worlds.layout import QUERY_END
from ..worlds.world import World
from .errors import InputError, MissingInputError, StoppedError, TrainingError
from .machine import device_of
from .pace import Pace
from .settings import Settings

# called with a stage, its steps, how many there are in all, and done=how many were done before
Progress = Callable[..., Generator[dict, None, None]]


@dataclass(frozen=True)
class Run:
    """Settings, the world, where to write, where earlier stages' output may lie, the parts, how to show progress."""

    settings: Settings
    world: World
    out: RunFolder
    source: RunFolder
    parts: Parts
    progress: Progress
    resume: bool = False  # go on from the output folder's checkpoints, and keep the stages that it has finished
    checkpoint_seconds: float = 10.0  # how much work a kill may cost, see `pace`; 0 saves after every step

    def input(self, name: str) -> Path:
        """A folder or file of an earlier stage: from this run if it is there, else from the source run."""
        for folder in (self.out, self.source):
            if (folder / name).exists():
                return folder / name
        raise MissingInputError(
            f"{self.out / name} does not exist: run the stage that makes it first, or name a finished run with --from"
        )

    def policy(self, name: str) -> nn.Module:
        """A policy that an earlier stage left, once its vocabulary is known to be the world's."""
        return self.ready(self._load(models.load_policy, self._with_our_vocabulary(self.input(name))))

    def base(self) -> nn.Module:
        """The policy that the world brings along."""
        return self.ready(self._load(models.load_policy, self.world.base_folder))

    def scorer(self, name: str) -> nn.Module:
        """A reward model that an earlier stage left, likewise."""
        return self.ready(self._load(models.load_scorer, self._with_our_vocabulary(self.input(name))))

    def ready(self, model: nn.Module) -> nn.Module:
        """The model as this run uses it: on its device, in its precision, whole or with the trunk that all share."""
        engine = self.settings.engine
        how = dict(compile=engine.compile, gradient_checkpointing=engine.gradient_checkpointing, trunk=self.trunk)
        return prepare(model, device=self.device, precision=engine.precision, **how)

    def placed(self, record: Placeable) -> Placeable:
        """A record of tensors on the device of this run's models."""
        return placed(record, self.device)

    def share_out(self, *models: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Leave this process its part of the models, where the settings say so and there are others for the rest."""
        how = self.settings.engine.sharding
        if how != "none" and distributed.size() > 1:
            share_out(*models, optimizer=optimizer, how=how)

    @cached_property
    def device(self) -> torch.device:
        return device_of(self.settings)

    @cached_property
    def trunk(self) -> FrozenTrunk | None:
        if (layers := self.settings.world.trainable_layers) is None:
            return None
        tokenizer = self.world.tokenizer
        prompt_end = tokenizer(QUERY_END, add_special_tokens=False).input_ids
        return FrozenTrunk(trainable_layers=layers, pad_token_id=tokenizer.pad_token_id, prompt_end=prompt_end)

    def train(
        self,
        stage: str,
        trained: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        steps: Callable[[int], Iterator[dict]],
        total: int,
    ) -> None:
        """Train from the first step, or from the last checkpoint when resuming: log, show progress, keep checkpoints.

        steps  gives the steps that follow when so many are done; all randomness in it depends on the step alone
        """
        if self.settings.engine.precision == "float16":
            loss_scaling.scale_losses(optimizer, self.device)
        to_parts = partial(self.share_out, *trained.values(), optimizer=optimizer)
        if early := self.settings.engine.sharding == "fsdp2":
            to_parts()
        start = self._restore(stage, trained, optimizer)
        if not early:  # DeepSpeed takes over what it finds
            to_parts()
        distributed.wait_for_all()  # before the main process saves what comes after it
        reported = ({**row, **loss_scaling.report(optimizer)} for row in steps(start))
        logged = self.out.log(stage, reported, start=start)
        if distributed.is_main():
            logged = mirrored(self.out / "tensorboard" / stage, logged, before=self._logged(stage))
        shown = self.progress(stage, logged, total, done=start)
        pace = Pace(self.checkpoint_seconds)
        with graceful_stop() as stop, closing(shown), self._explained(stage, trained):
            for done, _ in enumerate(shown, start + 1):
                stopping = distributed.any_process(stop.requested)
                late = distributed.any_process(distributed.is_main() and pace.due())  # it is the one that writes
                if late or done == total or stopping:
                    with pace.saving():
                        self._save_checkpoint(stage, done, trained, optimizer)
                if stopping:
                    raise StoppedError(
                        f"stopped in stage {stage} after step {done} of {total}; nothing is lost: the same command "
                        "with --resume goes on from here"
                    )

    def _save_checkpoint(
        self, stage: str, done: int, trained: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
    ) -> None:
        dump.refuse_non_finite(trained)
        logs = {"metrics_bytes": self.out.flush("metrics.jsonl")}
        facts = {**logs, "loss_scaling": loss_scaling.state_of(optimizer)}
        checkpoint.save(self._checkpoints(stage), done, trained, optimizer, facts)

    @contextmanager
    def _explained(self, stage: str, trained: Mapping[str, nn.Module]) -> Iterator[None]:
        """Say in which stage and after which step training went wrong, and what is left of it."""
        try:
            yield
        except (NonFiniteError, StepZeroError) as error:
            done, saved = len(self._logged(stage)), checkpoint.latest(self._checkpoints(stage))
            kept = (
                f"the checkpoint of step {saved.step} is kept" if saved else "no checkpoint of this stage had been made"
            )
            seen = str(error)
            if isinstance(error, NonFiniteError):
                seen += self._dump(error, trained, stage, done, str(saved.path) if saved else None)
            raise TrainingError(f"stage {stage} failed after step {done}: {seen} ({kept})") from error

    def _dump(
        self, error: NonFiniteError, trained: Mapping[str, nn.Module], stage: str, done: int, saved: str | None
    ) -> str:
        """Write what is needed to find out why; says what is not finite and how to look at it.

        Several processes may fail at once. Each has a folder of its own: it has other rows, or parts of weights.
        """
        name = "dump" if distributed.is_main() else f"dump-{distributed.rank()}"
        folder, names = self.out / name, dump.culprits(error, trained)
        facts = {"stage": stage, "steps_done": done, "checkpoint": saved, "settings": asdict(self.settings)}
        try:
            dump.write(folder, error, trained, {**facts, "parts": self.parts.fingerprint()})
            look = f"look at it with python -m rlhf_lib.engine.dump {folder}"
        except OSError as refused:
            look = f"the dump could not be written ({brief(refused)})"
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        namely = f", namely {', '.join(names[:3])}{more}" if names else ""
        return f"{namely}; {look}"

    def _logged(self, stage: str) -> list[dict]:
        path = self.out / "metrics.jsonl"
        return [row for row in read_lines(path) if row["stage"] == stage] if path.exists() else []

    def save(self, name: str, model: nn.Module) -> None:
        """A folder that plain `from_pretrained` loads, tokenizer included; it appears when it is complete."""
        weights = sharding.gathered(model.state_dict(keep_vars=True))
        if not distributed.is_main():
            return
        draft = self.out / f".{name}.draft"
        with naming(self.out / name):
            shutil.rmtree(draft, ignore_errors=True)
            model.save_pretrained(draft, state_dict=weights)
            save_tokenizer(self.world.tokenizer, draft)
            shutil.rmtree(self.out / name, ignore_errors=True)
            draft.rename(self.out / name)

    def _restore(self, stage: str, trained: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
        """Put the last checkpoint back if there is one to resume, else begin anew; returns the steps done."""
        try:
            saved = checkpoint.latest(self._checkpoints(stage)) if self.resume else None
            if saved:
                saved.restore(trained, optimizer)
                loss_scaling.restore(optimizer, saved.facts.get("loss_scaling"))
                self.out.resume_logs(saved.facts["metrics_bytes"])
                return saved.step
        except checkpoint.CheckpointError as error:
            raise InputError(
                f"{error}: resume with the version that made it, or delete {self._checkpoints(stage)} to begin stage "
                f"{stage} anew"
            ) from error
        self.out.restart_stage(stage)
        if distributed.is_main():
            shutil.rmtree(self._checkpoints(stage), ignore_errors=True)
        return 0

    def _checkpoints(self, stage: str) -> Path:
        return self.out / "checkpoints" / stage

    def _load(self, load: Callable[..., nn.Module], source: str | Path) -> nn.Module:
        return load(source, attention=self.settings.engine.attention)

    def _with_our_vocabulary(self, folder: Path) -> Path:
        """raises MissingInputError if a model's folder has no tokenizer, or one that numbers the words differently."""
        from transformers import PreTrainedTokenizerFast

        if not (folder / "tokenizer.json").exists():
            raise MissingInputError(f"{folder} has no tokenizer.json: a model needs the tokenizer it was trained with")
        try:
            vocabulary = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
        except Exception as error:  # the tokenizers library raises nothing more precise
            raise InputError(
                f"the tokenizer in {folder} is damaged ({brief(error)}): make that folder again"
            ) from error
        if vocabulary != self.world.tokenizer.get_vocab():
            raise MissingInputError(
                f"the tokenizer in {folder} has another vocabulary than this world's: start from a run of this world"
            )
        return folder
