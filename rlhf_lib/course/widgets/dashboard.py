"""Lesson 00's instrument, and 07's: a PPO run while it trains, or one that has finished, from its metrics."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Sequence
from pathlib import Path

from ...algorithms.parts import Parts
from ...algorithms.ppo import PPOState
from ...algorithms.ppo_config import PPOConfig
from ...engine.run_folder import read_lines
from ..lesson import TinyLesson, tiny
from ..live_run import LiveRun
from ..short_runs import SHORT
from .instrument import Instrument, module, stylesheet
from .plain import plain

CHARTS = (  # title, and the metrics that share it
    ("score (reward model) and gold", ("score", "gold")),
    ("KL to reference, nats a summary", ("kl_per_sequence",)),
    ("clip fraction", ("clip_fraction",)),
    ("entropy, nats a token", ("entropy_per_token",)),
    ("response length, tokens", ("response_length",)),
    ("explained variance of the critic", ("explained_variance",)),
)
NAMES = [name for _, names in CHARTS for name in names]
EXAMPLES = 6
UNTOUCHED = dict(update=-1, stop=False, go_on=False)
TO_GO_ON = 'to go on, press "Go on", or call start() on the name that this dashboard has in your notebook'


def training_dashboard(
    config: PPOConfig = SHORT, parts: Parts = Parts(), *, seed: int = 0, folder: str | Path | None = None
) -> TrainingDashboard:
    """PPO on the tiny world, to watch while it runs: `.start()`, then `.wait()` for the state at the end.

    config  `updates` says how long; SHORT takes seconds
    parts   the functions to train with, a learner's among them
    folder  where a stopped run leaves its checkpoint, and the next one finds it; nothing is written without
    """
    return TrainingDashboard(LiveRun(config, parts, seed=seed, folder=Path(folder) if folder else None))


def replay_dashboard(path: str | Path) -> ReplayDashboard:
    """A finished run, from its folder or its metrics.jsonl.

    raises  ValueError if there are no PPO updates in it
    """
    path = Path(path)
    rows = read_lines(path / "metrics.jsonl" if path.is_dir() else path)
    steps = [row for row in rows if row.get("stage", "ppo") == "ppo"]
    if not steps:
        raise ValueError(f"{path} holds no PPO update to show")
    return ReplayDashboard(steps)


class Dashboard(Instrument):
    """Curves over the updates, the numbers of one of them, and what was written before and after.

    `data["steps"]` has a list of numbers, in the order of NAMES, for each update; `view["update"]` is the one whose
    numbers are shown, -1 for the latest. `data["can"]` says what a button may ask for now: "start", "stop", "go on" or
    nothing (""), or that there is nothing to ask for ever (None); `view["stop"]` and `view["go_on"]` ask.
    """

    _esm = module("dashboard")
    _css = stylesheet("dashboard")

    def _repr_mimebundle_(self, **kwargs) -> tuple[dict, dict] | None:
        """With a picture in the place of tables: numbers of a training run may differ in a last digit elsewhere."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        del data["text/html"]
        if self.data["steps"]:
            data = {**data, "image/png": base64.b64encode(self.picture()).decode()}
        return data, metadata

    def static_html(self) -> str:
        return ""

    def picture(self) -> bytes:
        """All curves so far, as a PNG."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.4), layout="constrained")
        steps = self.data["steps"]
        for axes, (title, names) in zip(figure.subplots(2, 3).flat, CHARTS, strict=True):
            for name, style in zip(names, ("-o", "--s"), strict=False):
                axes.plot([float(step[NAMES.index(name)]) for step in steps], style, markersize=4, label=name)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("update", fontsize=8)
            if len(names) > 1 and steps:
                axes.legend(fontsize=8)
        page = io.BytesIO()
        figure.savefig(page, format="png", dpi=80, facecolor="white")
        return page.getvalue()

    def _described(self, steps: Sequence[dict], total: int, **more: object) -> dict:
        charts = [dict(title=title, names=list(names)) for title, names in CHARTS]
        rows = [[_number(step.get(name)) for name in NAMES] for step in steps]
        return plain(dict(charts=charts, names=NAMES, steps=rows, total=total, **more))


class ReplayDashboard(Dashboard):
    """See `replay_dashboard`."""

    def __init__(self, steps: Sequence[dict]):
        status = f"a finished run of {len(steps)} updates"
        data = self._described(steps, len(steps), status=status, can=None, samples=[])
        super().__init__(data=data, view=dict(UNTOUCHED))

    def summary(self) -> str:
        return f"{self.data['total']} updates, replayed"


class TrainingDashboard(Dashboard):
    """See `training_dashboard`."""

    def __init__(self, run: LiveRun):
        self.run, self._before, self._after = run, [], []
        self._showing = threading.RLock()
        super().__init__(view=dict(UNTOUCHED))
        self._show()
        self.observe(self._heard, "view")

    def start(self) -> TrainingDashboard:
        """Begin to train, or go on after a stop; the dashboard itself, so that it can end a cell."""
        self.view = {**self.view, "stop": False, "go_on": False}
        self.run.start(self._changed, self._ended)
        self._show()
        return self

    def stop(self) -> TrainingDashboard:
        """End after the update that is going on."""
        self.run.stop()
        return self

    def wait(self) -> PPOState:
        """The models and all that changed with them, once the run has ended.

        While a cell waits here the kernel does not hear the button: an interrupt of the kernel has the same clean end.
        """
        return self.run.wait()

    @property
    def metrics(self) -> list[dict]:
        """Those of each update so far."""
        return self.run.metrics

    def summary(self) -> str:
        return f"{self.run.config.updates} updates of {self.run.config.batch_size}"

    def _changed(self) -> None:
        """In the thread of the run, before the first update and after each."""
        if not self._before:
            self._before = _written(tiny(), self.run.state.policy)
        self._show()

    def _ended(self) -> None:
        if self.run.error is None:
            self._after = _written(tiny(), self.run.state.policy)
        self._show()

    def _show(self) -> None:
        run = self.run
        with self._showing:  # the run's thread and the notebook's: neither may put back what the other has seen
            samples = [
                dict(title=old["title"], before=old["text"], gold_before=old["gold"],
                     after=new["text"] if new else "", gold_after=new["gold"] if new else "NaN")
                for old, new in zip(self._before, self._after or [None] * EXAMPLES)
            ]  # fmt: skip
            more = dict(status=_status(run), can=_can(run), samples=samples)
            self.data = self._described(run.metrics, run.config.updates, **more)

    def _heard(self, _: object) -> None:
        if self.view.get("stop"):
            self.run.stop()
        elif self.view.get("go_on") and not self.run.running:
            self.start()


def _status(run: LiveRun) -> str:
    done, total = len(run.metrics), run.config.updates
    if run.error is not None:
        return f"ended after {done} of {total} updates: {type(run.error).__name__}: {run.error}"
    if run.finished:
        return f"finished, {total} updates"
    if run.over:
        kept = f"; the checkpoint is in {run.folder.name}" if run.folder else ""
        return f"stopped after {done} of {total} updates{kept}; {TO_GO_ON}"
    if run.stopping:
        return f"stopping after {done} of {total} updates"
    return f"update {done + 1} of {total} is running" if run.state else "loading" if run.started else "not started"


def _can(run: LiveRun) -> str:
    """What a button may ask for."""
    if not run.started:
        return "start"
    if run.running:
        return "stop"
    return "" if run.finished or run.error is not None else "go on"


def _written(lesson: TinyLesson, policy) -> list[dict]:
    posts = lesson.world.posts("dashboard", EXAMPLES)
    summaries = lesson.write(policy, posts)
    return [dict(title=post.title, text=one.text, gold=one.gold) for post, one in zip(posts, summaries, strict=True)]


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
