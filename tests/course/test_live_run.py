"""A run in a thread: watched, stopped, gone on with, interrupted, and honest about what ended it."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.course.live_run import LiveRun
from rlhf_lib.course.observe import with_time_limit
from rlhf_lib.course.sandbox import instead_of
from rlhf_lib.course.short_runs import SHORT, short_run
from rlhf_lib.course.widgets import replay_dashboard, training_dashboard
from rlhf_lib.maths import masking
from tests.tiny import same_weights, weights_of

CONFIG = replace(SHORT, updates=3, batch_size=8)


@pytest.fixture(scope="module")
def undisturbed():
    run = LiveRun(CONFIG)
    run.start()
    return run.wait(), run.metrics


def stop_after_one(dashboard):
    """Ask for the end, as the button does, when the first update has been seen."""

    def ask(change):
        if change.new["steps"]:
            dashboard.view = {**dashboard.view, "stop": True}

    dashboard.observe(ask, "data")
    dashboard.start().wait()
    dashboard.unobserve(ask, "data")


def test_it_is_the_run_that_it_would_be_without_a_thread(undisturbed):
    """Rejects a live run with other randomness than the same run in a loop."""
    assert undisturbed[1] == list(short_run(Parts(), CONFIG))


@pytest.mark.parametrize("kept", [True, False])
def test_stopped_and_gone_on_with(kept, tmp_path, undisturbed):
    """Rejects a stop that loses an update or a moment of the optimiser, on the disk or in memory."""
    dashboard = training_dashboard(CONFIG, folder=tmp_path if kept else None)
    stop_after_one(dashboard)
    assert len(dashboard.metrics) == 1
    assert dashboard.data["status"].startswith("stopped after 1 of 3 updates")
    going_on = training_dashboard(CONFIG, folder=tmp_path) if kept else dashboard
    state = going_on.start().wait()
    assert going_on.metrics == undisturbed[1]
    assert same_weights(weights_of(state.policy), weights_of(undisturbed[0].policy))
    assert same_weights(weights_of(state.critic), weights_of(undisturbed[0].critic))


def test_the_buttons_begin_and_go_on(undisturbed, tmp_path):
    """Rejects a button that does nothing, one that starts a second thread, one that invites when there is nothing to
    do, and a run that does not go on where it was.
    """

    def press(**buttons):
        dashboard.view = {**dashboard.view, **buttons}

    def told(change):
        seen.append((change.new["can"], change.new["status"]))
        if change.new["status"] == "update 1 of 3 is running":
            press(stop=True, go_on=False)

    dashboard, seen = training_dashboard(CONFIG, folder=tmp_path), []
    dashboard.observe(told, "data")
    for invited in ("start", "go on"):
        assert dashboard.data["can"] == invited
        press(stop=False, go_on=True)
        thread = dashboard.run._thread
        assert not dashboard.view["go_on"]
        press(go_on=True)
        assert dashboard.run._thread == thread
        dashboard.wait()
    dashboard.unobserve(told, "data")
    assert ("stop", "stopping after 1 of 3 updates") in seen
    assert any(can == "go on" and 'press "Go on"' in status for can, status in seen)
    assert dashboard.run.finished and dashboard.data["can"] == ""
    assert dashboard.metrics == undisturbed[1]


def test_what_ends_it_is_told(undisturbed):
    """Rejects a thread that dies in silence, and a dashboard that says it finished."""

    def broken(*_, **__):
        raise ZeroDivisionError("on purpose")

    dashboard = training_dashboard(CONFIG, replace(Parts(), gae=broken)).start()
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        dashboard.wait()
    assert dashboard.data["status"] == "ended after 0 of 3 updates: ZeroDivisionError: on purpose"
    assert dashboard.data["can"] == ""


def test_an_interrupt_of_the_kernel_stops_it_between_two_updates(monkeypatch):
    """Rejects a run that goes on behind the back of somebody who interrupted it."""
    run = LiveRun(CONFIG)
    join, calls = None, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return join(*args)

    run.start()
    join = run._thread.join
    monkeypatch.setattr(run._thread, "join", interrupted)
    assert run.wait() is run.state
    assert not run.running
    assert len(run.metrics) < CONFIG.updates


def test_a_check_beside_it_does_not_end_it(undisturbed):
    """Rejects an answer's check that puts its refusal, or a learner's function, in the place of what a dashboard's run
    is calling at that moment; and one that gives its own thread, or those it starts, the library's.
    """
    run, begun, checking = LiveRun(CONFIG), threading.Event(), threading.Event()

    def wait_for_the_check():
        begun.set()
        checking.wait(60)

    def wrong(x, mask):
        raise AssertionError("not for a run")

    run.start(changed=wait_for_the_check)
    assert begun.wait(60)
    with instead_of({masking.keep: wrong}):
        checking.set()
        run.wait()
        for call in (masking.keep, lambda *args: with_time_limit(lambda: masking.keep(*args), 10)):
            with pytest.raises(AssertionError, match="not for a run"):
                call(None, None)
    assert run.metrics == undisturbed[1]
    assert masking.keep.__name__ == "keep"


def test_it_cannot_be_started_twice_or_waited_for_before():
    """Rejects two threads over one state."""
    run = LiveRun(CONFIG)
    with pytest.raises(RuntimeError, match="has not been started"):
        run.wait()
    run.start()
    with pytest.raises(RuntimeError, match="running already"):
        run.start()
    run.stop()
    run.wait()


def test_a_replay_shows_what_the_file_holds(tmp_path, undisturbed):
    """Rejects a replay that mixes stages, and one that shows an empty picture for a file without PPO."""
    path = tmp_path / "metrics.jsonl"
    rows = [{"stage": "sft", "loss": 1.0}, *({"stage": "ppo", **step} for step in undisturbed[1])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for source in (path, tmp_path):
        shown = replay_dashboard(source).data
        gold = [step[shown["names"].index("gold")] for step in shown["steps"]]
        assert gold == pytest.approx([step["gold"] for step in undisturbed[1]], rel=1e-6)
    path.write_text('{"stage": "sft"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="holds no PPO update"):
        replay_dashboard(path)
