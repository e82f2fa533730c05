"""A PPO run in a thread of its own, which can be watched, stopped between two updates, and gone on with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from ..algorithms import ppo
from ..algorithms.parts import Parts
from ..algorithms.ppo_config import PPOConfig
from ..engine import checkpoint
from ..pipeline.texts import PromptStream
from ..worlds.tiny_tldr.world import TinyTLDR
from .sandbox import A_RUN
from .short_runs import new_state


def _nothing() -> None:
    pass


class LiveRun:
    """PPO on the tiny world. With a folder, a stopped run leaves a checkpoint there and the next one goes on from it.

    metrics  of each update so far, those before a checkpoint included
    state    models and optimiser; None until the run has begun
    error    what ended it, if something did
    over     whether it has come to its end since the last start; what is told of that may still be going on
    """

    def __init__(self, config: PPOConfig, parts: Parts = Parts(), *, seed: int = 0, folder: Path | None = None):
        self.config, self.parts, self.seed, self.folder = config, parts, seed, folder
        self.metrics: list[dict] = []
        self.state: ppo.PPOState | None = None
        self.error: BaseException | None = None
        self.over = False
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def started(self) -> bool:
        return self._thread is not None

    @property
    def running(self) -> bool:
        return self.started and not self.over

    @property
    def stopping(self) -> bool:
        """Whether somebody has asked for the end, since the last start."""
        return self._stop.is_set()

    @property
    def finished(self) -> bool:
        return len(self.metrics) >= self.config.updates

    def start(self, changed: Callable[[], None] = _nothing, ended: Callable[[], None] = _nothing) -> None:
        """Begin, or go on. In the run's thread `changed` is called before the first update and after each, and `ended`
        when there will be no more.
        """
        if self.running:
            raise RuntimeError("this run is running already: wait for it, or stop it first")
        if self.started:
            self._thread.join()
        self._stop.clear()
        self.error, self.over = None, False
        self._thread = threading.Thread(target=self._train, args=(changed, ended), name=A_RUN, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the update that is going on."""
        self._stop.set()

    def wait(self) -> ppo.PPOState:
        """The state at the end; an interrupt of the kernel stops the run between two updates.

        raises  whatever ended the run, if something did
        """
        if not self.started:
            raise RuntimeError("this run has not been started")
        try:
            self._thread.join()
        except KeyboardInterrupt:
            self.stop()
            self._thread.join()
        if self.error is not None:
            raise self.error
        return self.state

    def _train(self, changed: Callable[[], None], ended: Callable[[], None]) -> None:
        try:
            if self.state is None:
                self._begin()
                changed()
            batches = self._prompts.batches(start=self.state.update)
            for metrics in ppo.train_ppo(self.state, batches, self.config, self.parts):
                self.metrics.append(metrics)
                changed()
                if self._stop.is_set():
                    break
            self._save()
        except BaseException as error:
            self.error = error
        self.over = True
        ended()

    def _begin(self) -> None:
        config, world = self.config, TinyTLDR(self.seed)
        self._prompts = PromptStream(world, "ppo", batch_size=config.batch_size, updates=config.updates)
        state = new_state(config, self.parts, seed=self.seed, judge=self._prompts.judge)
        saved = checkpoint.latest(self.folder) if self.folder else None
        if saved is not None:
            saved.restore(self._trained(state), state.optimizer)
            state.update, self.metrics = saved.step, list(saved.facts["metrics"])
        self.state = state

    def _save(self) -> None:
        if self.folder:
            facts = {"metrics": self.metrics}
            checkpoint.save(self.folder, self.state.update, self._trained(self.state), self.state.optimizer, facts)

    @staticmethod
    def _trained(state: ppo.PPOState) -> dict:
        return {"policy": state.policy, "critic": state.critic}
