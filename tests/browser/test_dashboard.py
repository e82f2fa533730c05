"""The training dashboard in a real browser: a run that trains, one that is stopped, one that is replayed."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from rlhf_lib.course.widgets.plain import show

from . import rollouts
from .contrast import too_faint

CELLS = [
    """
from dataclasses import replace
from rlhf_lib.course.short_runs import SHORT
from rlhf_lib.course.widgets import replay_dashboard, training_dashboard
from tests.browser import rollouts, test_dashboard

SMALL = replace(SHORT, batch_size=8, epochs=1)
test_dashboard.write_metrics("metrics.jsonl")
""",
    "live = training_dashboard(replace(SMALL, updates=6))\nlive",
    "long = training_dashboard(replace(SMALL, updates=500), folder='kept')\nlong",
    "replay = replay_dashboard('metrics.jsonl')\nreplay",
    "nasty = replay_dashboard('metrics.jsonl')\nnasty.data = test_dashboard.with_nasty_texts(nasty.data)\nnasty",
    "fresh = training_dashboard(replace(SMALL, updates=6))\nfresh",
]
LIVE, LONG, REPLAY, NASTY, FRESH = range(5)
SECONDS = 120
NAMES = (
    "score", "gold", "kl_per_sequence", "clip_fraction", "entropy_per_token", "response_length", "explained_variance",
)  # fmt: skip


EXECUTE = """
(code) => { jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({ code }); }
"""


def steps() -> list[dict]:
    """Twelve updates as a run's file has them, one with NaN, one with infinities, one without a gold score."""
    made = [
        dict(stage="ppo", score=math.sin(i), gold=i - 5, kl_per_sequence=0.01 * i**2, clip_fraction=i / 40,
             entropy_per_token=1.5 - 0.05 * i, response_length=9.5, explained_variance=-3 + 0.3 * i)
        for i in range(12)
    ]  # fmt: skip
    made[3] |= dict(score=math.nan, kl_per_sequence=math.inf, explained_variance=-math.inf)
    del made[7]["gold"]
    return made


def write_metrics(name: str) -> None:
    rows = [{"stage": "sft", "score": 99.0}, *steps()]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def with_nasty_texts(data: dict) -> dict:
    texts = rollouts.NASTY
    samples = [
        dict(title=texts[0], before=texts[4], gold_before=-1.0, after=texts[1], gold_after="NaN"),
        dict(title=texts[3], before=texts[2], gold_before=0.0, after="", gold_after="NaN"),
    ]
    return {**data, "samples": samples}


@pytest.fixture(scope="module")
def notebook(open_notebook):
    return open_notebook("dashboard", *CELLS)


def numbers_in(widget) -> list[str]:
    return widget.locator(".dashboard-values strong").all_inner_texts()


def points_in(widget) -> int:
    """How many updates the first curve has."""
    path = widget.locator("path.dashboard-line").first.get_attribute("d")
    return path.count("M") + path.count("L")


def status(widget) -> str:
    return widget.locator(".dashboard-status").inner_text()


def wait_until(widget, word: str) -> list[tuple[str, int]]:
    """What was seen until the status says this."""
    seen, deadline = [], time.monotonic() + SECONDS
    while not seen or (word not in seen[-1][0] and time.monotonic() < deadline):
        seen.append((status(widget), points_in(widget)))
        time.sleep(0.05)
    assert word in seen[-1][0], seen[-1]
    return seen


def test_curves_grow_while_it_trains(notebook):
    """Rejects a page that shows nothing until the end, a curve of another metric, and numbers of another update."""
    widget = notebook.widget("Training dashboard", LIVE)
    assert numbers_in(widget) == ["–"] * len(NAMES) and status(widget) == "not started"
    notebook.run_python("_ = live.start()")
    seen = wait_until(widget, "finished, 6 updates")
    grown = [count for text, count in seen if "is running" in text]
    assert len({*grown} & {1, 2, 3, 4, 5}) >= 2 and grown == sorted(grown)
    metrics = json.loads(notebook.run_python("import json; print(json.dumps(live.metrics))"))
    assert numbers_in(widget) == [show(metrics[-1][name]) for name in NAMES]
    assert points_in(widget) == 6
    widget.get_by_text("…", exact=True).last.wait_for(state="hidden")  # what it writes now comes a little later
    gold = [
        float(text.split("(gold ")[1].split(")")[0].strip(" ▲▼")) for text in widget.locator("td").all_inner_texts()
    ]
    wanted = notebook.run_python(
        "print([[one[when] for when in ('gold_before', 'gold_after')] for one in live.data['samples']])"
    )
    assert gold == [number for pair in json.loads(wanted) for number in pair]


def test_the_button_ends_it_cleanly(notebook):
    """Rejects a button that does nothing, a run that goes on, a checkpoint that is not there, and a button that still
    invites after the end.
    """
    widget = notebook.widget("Training dashboard", LONG)
    notebook.run_python("_ = long.start()")
    wait_until(widget, "update 2 of 500")
    stop = widget.get_by_role("button", name="Stop")
    stop.focus()
    notebook.page.keyboard.press("Enter")
    wait_until(widget, "stopped after")
    assert stop.get_attribute("aria-disabled") == "true"
    done = int(notebook.run_python("_ = long.wait(); print(len(long.metrics))"))
    assert status(widget).startswith(f"stopped after {done} of 500 updates; the checkpoint is in kept; to go on, press")
    assert points_in(widget) == done < 500
    kept = notebook.run_python("from rlhf_lib.engine import checkpoint; print(checkpoint.latest(long.run.folder).step)")
    assert int(kept) == done


def test_the_other_button_goes_on(notebook):
    """Rejects a run that has to be gone on with by code, one that begins again, a button that a keyboard does not reach
    from the one that stopped it, and one that invites while the run is going on.
    """
    widget = notebook.widget("Training dashboard", LONG)
    stop, go_on = (widget.get_by_role("button", name=name) for name in ("Stop", "Go on"))
    done = int(notebook.run_python("print(len(long.metrics))"))
    notebook.picture(widget, "dashboard_stopped")
    assert stop.evaluate("button => button === document.activeElement")
    assert go_on.get_attribute("aria-disabled") == "false"
    notebook.page.keyboard.press("Tab")
    notebook.page.keyboard.press("Enter")
    seen = wait_until(widget, f"update {done + 2} of 500")
    assert min(points for _, points in seen) >= done
    assert go_on.get_attribute("aria-disabled") == "true"
    stop.click()
    wait_until(widget, "stopped after")
    assert go_on.get_attribute("aria-disabled") == "false"


def test_an_interrupt_ends_it_while_a_cell_waits(notebook):
    """Rejects a run that nobody can end once a cell waits for it, and a page that does not say how."""
    widget = notebook.widget("Training dashboard", LONG)
    done = int(notebook.run_python("_ = long.start(); print(len(long.metrics))"))
    wait_until(widget, f"update {done + 2} of 500")
    notebook.page.evaluate(EXECUTE, "state = long.wait()")
    widget.get_by_role("button", name="Stop").click()
    wait_until(widget, "interrupt the kernel")
    notebook.command("notebook:interrupt-kernel")
    wait_until(widget, "stopped after")
    assert done < int(notebook.run_python("print(state.update if state is long.run.state else -1)")) < 500


def test_the_button_begins(notebook):
    """Rejects a dashboard without code that nobody can begin with, and one that shows its curves when a cell that waits
    for it has ended.
    """
    widget = notebook.widget("Training dashboard", FRESH)
    notebook.page.evaluate(EXECUTE, "import time; time.sleep(1)")
    widget.get_by_role("button", name="Start").click()
    wait_until(widget, "It goes on when that one has ended")
    wait_until(widget, "is running")
    notebook.page.evaluate(EXECUTE, "fresh.wait()")
    seen = wait_until(widget, "finished, 6 updates")
    assert {count for text, count in seen if "is running" in text} & {3, 4, 5}
    assert widget.get_by_role("button", name="Go on").get_attribute("aria-disabled") == "true"


def test_a_replay_has_nothing_to_stop(notebook):
    """Rejects buttons that promise what a finished run cannot do."""
    assert notebook.widget("Training dashboard", REPLAY).get_by_role("button").count() == 0


def test_the_slider_shows_another_update(notebook):
    """Rejects numbers of the neighbouring update, another stage's rows, NaN and infinity shown as numbers or as
    nothing, and a mark on a curve where there is no number.
    """
    widget = notebook.widget("Training dashboard", REPLAY)
    assert status(widget) == "a finished run of 12 updates"
    slider = widget.get_by_label("Update to look at")
    slider.focus()
    slider.press("Home")
    for i, step in enumerate(steps()):
        assert numbers_in(widget) == [show(step.get(name, math.nan)) for name in NAMES], i
        finite = sum(math.isfinite(step.get(name, math.nan)) for name in NAMES)
        assert widget.locator(".dashboard-mark").count() == finite
        slider.press("ArrowRight")
    notebook.wait_for_python("print(replay.view['update'])", "-1")


def test_curves_are_where_their_numbers_are(notebook):
    """Rejects a curve that is upside down, that joins what a NaN separates, or whose scale is another curve's."""
    widget = notebook.widget("Training dashboard", REPLAY)
    for place, name in enumerate(("kl_per_sequence", "clip_fraction", "entropy_per_token"), start=2):
        path = widget.locator("path.dashboard-line").nth(place).get_attribute("d")
        pieces = [[tuple(map(float, point.split())) for point in piece.split("L")] for piece in path.split("M")[1:]]
        numbers = [step[name] for step in steps() if math.isfinite(step[name])]
        points = [point for piece in pieces for point in piece]
        assert len(pieces) == (2 if name == "kl_per_sequence" else 1) and len(points) == len(numbers)
        heights = [y for _, y in points]
        for (_, y), number in zip(points, numbers):
            share = (number - min(numbers)) / (max(numbers) - min(numbers))
            assert (max(heights) - y) / (max(heights) - min(heights)) == pytest.approx(share, abs=0.01)


def test_texts_stay_texts(notebook):
    """Rejects a sample that becomes markup, and a NaN gold score that is hidden."""
    widget = notebook.widget("Training dashboard", NASTY)
    assert widget.locator("img, script").count() == 0
    cells = widget.locator("td").all_inner_texts()
    assert cells[0] == f"{rollouts.NASTY[4]} (gold −1)" and cells[1] == f"{rollouts.NASTY[1]} (gold NaN)"
    assert widget.locator("th[scope=row]").all_inner_texts() == [rollouts.NASTY[0], rollouts.NASTY[3]]


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_legible(notebook, theme):
    """Rejects text that a theme makes faint, in the pictures too."""
    notebook.theme(theme)
    for place, name in ((LIVE, "live"), (LONG, "stopped"), (REPLAY, "replay"), (NASTY, "nasty")):
        widget = notebook.widget("Training dashboard", place)
        assert too_faint(widget) == []
        notebook.picture(widget, f"dashboard_{name}_{theme.lower()}")
    notebook.theme("Light")
