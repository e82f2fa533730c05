"""The alignment microscope in a real browser, against numbers that are computed here by loops over one row."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from rlhf_lib.course.widgets.plain import show
from rlhf_lib.pipeline.assets import load_rollout

from . import rollouts
from .contrast import too_faint
from .reading import says
from .rollouts import NASTY

SETTINGS = dict(kl_coef=0.3, gamma=0.9, lam=0.8)
SETUP = """
from dataclasses import replace
from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.course.widgets import alignment_microscope
from rlhf_lib.pipeline.assets import load_rollout
from rlhf_lib.worlds.tiny_tldr.tokenizer import make_tokenizer
from tests.browser import rollouts

settings = dict(kl_coef=0.3, gamma=0.9, lam=0.8)

def forgets_lam(values, rewards, mask, *, gamma, lam):
    return Parts().gae(values, rewards, mask, gamma=gamma, lam=1.0)

def fails(advantages, values, mask):
    raise IndexError("my <b>index</b>")
"""
CELLS = [
    SETUP,
    "shipped = alignment_microscope(load_rollout(), make_tokenizer(), **settings)\nshipped",
    "nasty = alignment_microscope(*rollouts.nasty(), **settings, parts=replace(Parts(), gae=forgets_lam))\nnasty",
    "single = alignment_microscope(*rollouts.single(), **settings, parts=replace(Parts(), returns=fails))\nsingle",
    "wide = alignment_microscope(*rollouts.wide(), **settings)\nwide",
]
SHIPPED, NASTY_ONE, SINGLE, WIDE = range(4)
COMPUTED = ("rewards", "reward_mask", "td_errors", "advantages", "returns", "recursion_mask")


@pytest.fixture(scope="module")
def notebook(open_notebook):
    return open_notebook("microscope", *CELLS)


@pytest.fixture
def microscope(notebook):
    """One of the microscopes by number, its controls as they were at first; the mouse is elsewhere."""

    def get(nth: int):
        names = ("shipped", "nasty", "single", "wide")
        start = dict(row=0, functions="library", placement="eos", shift="none", whole=False, cell=None)
        notebook.page.mouse.move(0, 0)
        widget = notebook.widget("Alignment microscope", nth)
        notebook.set_view(widget, names[nth], start)
        return widget

    return get


def shown(widget) -> dict[tuple[str, int], str]:
    """The text of every cell on the page."""
    cells = widget.evaluate(
        "r => [...r.querySelectorAll('td')].filter(c => c.place).map(c => [...c.place, c.textContent])"
    )
    return {(name, t): text for name, t, text in cells}


def lit(widget, kind: str) -> set[tuple[str, int]]:
    return {tuple(place) for place in widget.evaluate(f"r => [...r.querySelectorAll('td.{kind}')].map(c => c.place)")}


def cell(widget, name: str, t: int):
    return widget.locator(f'td[aria-label^="{name}[{t}] is"]')


def switch(widget, group: str, option: str) -> None:
    widget.get_by_role("group", name=group).get_by_label(option, exact=True).check()


# The oracle: one row, Python floats, nothing of the library


def expected(rollout, row: int, placement: str, shift: str) -> dict[str, list[float]]:
    """The tracks of one row. N+ pays on the slot after the last choice, where the row has one, and counts it too."""
    prompt, length, width = (
        int(rollout.prompt_lengths[row]),
        int(rollout.sequence_lengths[row]),
        rollout.tokens.shape[1],
    )
    actions = range(width - 1)
    chosen = [prompt <= t + 1 < length for t in actions]
    room = placement == "later" and length < width
    last = length - 2 + room
    counted = [chosen[t] or (room and t == last) for t in actions]
    score = float(rollout.scores[row]) if rollout.has_eos[row] else -1.0
    kl = [float(rollout.old_log_probs[row, t]) - float(rollout.ref_log_probs[row, t]) for t in actions]
    rewards = [(score if t == last else 0) - (SETTINGS["kl_coef"] * kl[t] if chosen[t] else 0) for t in actions]
    values = [float(value) for value in rollout.values[row]]
    paid = [int(t == last) for t in actions]
    if shift == "rewards":
        rewards = [0.0, *rewards[:-1]]
    if shift == "values":
        values = [0.0, *values[:-1]]
    if shift == "mask":
        counted = [False, *counted[:-1]]
    td, advantages = [0.0] * (width - 1), [0.0] * (width - 1)
    for t in reversed(actions):
        if counted[t]:
            goes_on = t + 1 < width - 1 and counted[t + 1]
            td[t] = rewards[t] + (SETTINGS["gamma"] * values[t + 1] if goes_on else 0) - values[t]
            carried = SETTINGS["gamma"] * SETTINGS["lam"] * advantages[t + 1] if goes_on else 0
            advantages[t] = td[t] + carried
    returns = [advantages[t] + values[t] if counted[t] else 0.0 for t in actions]
    tracks = [rewards, paid, td, advantages, returns, [int(c) for c in counted]]
    return dict(zip(COMPUTED, tracks)) | {"values": values, "action_mask": [int(c) for c in chosen], "kl": kl}


def assert_shows(widget, rollout, row: int, placement: str, shift: str) -> None:
    tracks, page = expected(rollout, row, placement, shift), shown(widget)
    checked = 0
    for (name, t), text in page.items():
        if name in tracks:
            value = tracks[name][t]
            right = text == str(value) if name.endswith("_mask") else says(text, value)
            assert right, f"row {row}, {placement}, {shift}: {name}[{t}] shows {text}, not {value}"
            checked += 1
    assert checked > 9


# What the page shows


def test_every_number_under_every_switch(microscope):
    """Rejects a page that shows another row's, another variant's or a misplaced number."""
    widget, rollout = microscope(SHIPPED), load_rollout()
    for row in (0, 1):  # 1 fills its row: N+ has no slot to move to
        widget.get_by_label("Row (of 64)").select_option(index=row)
        for (placement, where), shift in product(
            {"eos": "on the last action", "later": "one slot later (N+)"}.items(), ("none", "rewards", "values", "mask")
        ):
            switch(widget, "The score is paid", where)
            switch(widget, "Shift by one, wrong on purpose", "nothing" if shift == "none" else shift)
            assert_shows(widget, rollout, row, placement, shift)


def test_ragged_rows_with_poison(microscope):
    """Rejects an infinity or a NaN that is lost on the way, shown as a number, or read where nothing counts."""
    widget, (rollout, _) = microscope(NASTY_ONE), rollouts.nasty()
    for row in range(3):
        widget.get_by_label("Row (of 3)").select_option(index=row)
        assert_shows(widget, rollout, row, "eos", "none")
    page = shown(widget)
    assert page["values", 8] == "NaN" and page["log_probs", 3] == "−∞" and page["ref_log_probs", 3] == "∞"
    assert page["kl", 3] == "−∞" and page["advantages", 3] == "0"


def test_the_action_track_is_one_shorter(microscope):
    """Rejects tracks of one width: nothing is chosen in the last state."""
    for nth, states in ((SHIPPED, 65), (SINGLE, 2)):
        page = shown(microscope(nth))
        assert max(t for name, t in page if name == "states") == states - 1
        assert max(t for name, t in page if name == "actions") <= states - 2
        assert ("actions", states - 1) not in page
    assert {t for name, t in page if name == "actions"} == {0}


def test_a_text_that_never_ends(microscope):
    """Rejects a page that pays the reward model's score to a text without EOS, or does not say so."""
    widget = microscope(NASTY_ONE)
    widget.get_by_label("Row (of 3)").select_option(index=1)
    assert "it never ended, so −1.000 is paid instead" in widget.inner_text()
    cell(widget, "rewards", 7).hover()
    assert "the text never ended" in widget.get_by_role("status").inner_text()


def test_text_is_text(notebook, microscope):
    """Rejects a token that becomes markup, and one that is cut at a line break or an emoji."""
    widget = microscope(NASTY_ONE)
    page = shown(widget)
    assert [page["states", t] for t in range(5)] == [NASTY[0], NASTY[1], "two⏎lines", NASTY[3], NASTY[4]]
    assert widget.locator("script, img, b").count() == 0
    assert notebook.page.evaluate("window.hacked") is None
    failing = microscope(SINGLE)
    switch(failing, "Functions", "yours")
    assert "Your function failed: IndexError: my <b>index</b>" in failing.inner_text()
    assert shown(failing)["returns", 0] == "≠ NaN"


def test_yours_beside_the_librarys(microscope):
    """Rejects a switch that shows the library's numbers under the learner's name, or does not mark what differs."""
    widget, (rollout, _) = microscope(NASTY_ONE), rollouts.nasty()
    before = shown(widget)
    switch(widget, "Functions", "yours")
    after = shown(widget)
    changed = {place for place in before if before[place] != after[place]}
    assert changed == {
        (name, t) for name in ("advantages", "returns") for t in (1, 2, 3)
    }  # the last choice has no next
    assert all(after[place].startswith("≠ ") for place in changed)
    cell(widget, "advantages", 3).hover()
    assert "The formula gives" in widget.get_by_role("status").inner_text()
    td = [float(rollout.values[0, t]) for t in range(6)]
    assert math.isfinite(sum(td[1:5]))


# What is linked


def depends(rollout, row: int) -> dict[tuple[str, int], set[tuple[str, int]]]:
    """By derivatives of the formula over the row's own choices: which values and rewards a TD error is made from."""
    found = {}
    chosen = [t for t, counts in enumerate(rollout.action_mask[row].tolist()) if counts]
    for t in chosen:
        values = rollout.values[row].clone().nan_to_num().requires_grad_()
        rewards = torch.ones(len(rollout.action_mask[row]), requires_grad=True)
        delta = rewards[t] + (values[t + 1] if t + 1 in chosen else 0) - values[t]
        of_values, of_rewards = torch.autograd.grad(delta, (values, rewards))
        found["td_errors", t] = {("values", int(i)) for i in of_values.nonzero()} | {
            ("rewards", int(i)) for i in of_rewards.nonzero()
        }
    return found


def test_links_are_dependencies(microscope):
    """Rejects a cell that lights up what is not read (the value after the end), or misses what is; and the reverse."""
    widget, rollout = microscope(SHIPPED), load_rollout()
    wanted = depends(rollout, 0)
    for (name, t), sources in wanted.items():
        cell(widget, name, t).hover()
        assert {place for place in lit(widget, "from") if place[0] in ("values", "rewards")} == sources
    for state in range(47, 57):
        cell(widget, "values", state).hover()
        readers = {place for place, sources in wanted.items() if ("values", state) in sources}
        assert {place for place in lit(widget, "into") if place[0] == "td_errors"} == readers


def test_the_formula_holds_its_numbers(microscope):
    """Rejects a formula that is filled with other numbers than the cells it names."""
    widget, rollout = microscope(SHIPPED), load_rollout()
    tracks = expected(rollout, 0, "eos", "none")
    cell(widget, "td_errors", 52).hover()
    about = widget.get_by_role("status").inner_text()
    reward, next_value, value = tracks["rewards"][52], tracks["values"][53], tracks["values"][52]
    assert "= rewards[52] + gamma·values[53] − values[52]" in about
    assert f"= {show(reward)} + 0.9·({show(next_value)}) − ({show(value)}) = {show(tracks['td_errors'][52])}" in about
    cell(widget, "td_errors", 53).hover()
    assert "values[54] is not read" in widget.get_by_role("status").inner_text()


def test_shifted_values_are_linked_where_they_came_from(microscope):
    """Rejects a wrong shift that still claims the right state."""
    widget = microscope(SHIPPED)
    cell(widget, "values", 52).hover()
    assert lit(widget, "from") == {("states", 52)}
    switch(widget, "Shift by one, wrong on purpose", "values")
    cell(widget, "values", 52).hover()
    assert lit(widget, "from") == {("states", 51)}


# How it is used


def test_by_keyboard_alone(notebook, microscope):
    """Rejects a control that only a mouse reaches, and keys that JupyterLab takes for itself."""
    widget, keyboard = microscope(SHIPPED), notebook.page.keyboard
    widget.get_by_label("Row (of 64)").focus()
    keyboard.press("ArrowDown")  # row 1
    keyboard.press("Tab")
    keyboard.press("ArrowRight")  # one slot later
    keyboard.press("Tab")
    keyboard.press("ArrowRight")  # rewards
    keyboard.press("Tab")
    keyboard.press("Space")  # whole row
    keyboard.press("Tab")  # into the grid
    keyboard.press("ArrowDown")
    keyboard.press("ArrowRight")
    keyboard.press("End")
    view = dict(row=1, functions="library", placement="later", shift="rewards", whole=True, cell=["pad_mask", 64])
    notebook.wait_for_python("print(shipped.view)", str(view))
    assert lit(widget, "here") == {("pad_mask", 64)}
    keyboard.press("ArrowDown")
    keyboard.press("ArrowDown")  # the last state has no action under it: the key leads nowhere
    assert lit(widget, "here") == {("values", 64)}
    keyboard.press("Escape")
    keyboard.press("d")  # twice deletes a cell of the notebook, if JupyterLab hears it
    keyboard.press("d")
    assert lit(widget, "here") == set()
    assert notebook.page.evaluate("jupyterapp.shell.currentWidget.content.model.cells.length") == len(CELLS)


def test_focus_is_seen(notebook, microscope):
    """Rejects a focus that only its owner knows of."""
    widget = microscope(SHIPPED)
    cell(widget, "values", 50).focus()
    notebook.page.keyboard.press("ArrowRight")
    focused = "getComputedStyle(document.activeElement)"
    assert notebook.page.evaluate(f"{focused}.outlineStyle + {focused}.outlineWidth") == "solid3px"
    assert notebook.page.evaluate("document.activeElement.place.join()") == "values,51"


def test_python_sets_the_view(notebook, microscope):
    """Rejects a page that does not follow `view`."""
    widget = microscope(SHIPPED)
    notebook.run_python("shipped.view = {**shipped.view, 'row': 3, 'cell': ['returns', 50]}")
    widget.locator("td.here").wait_for()
    assert lit(widget, "here") == {("returns", 50)}
    assert_shows(widget, load_rollout(), 3, "eos", "none")


def test_sixty_four_rows_of_128(microscope):
    """Rejects a page that drops rows or columns of a large rollout."""
    widget, (rollout, _) = microscope(WIDE), rollouts.wide()
    widget.get_by_label("Row (of 64)").select_option(index=63)
    assert_shows(widget, rollout, 63, "eos", "none")
    widget.get_by_label("whole row").check()
    assert len(shown(widget)) == 3 * 128 + 11 * 127
    assert_shows(widget, rollout, 63, "eos", "none")


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_legible(notebook, microscope, theme):
    """Rejects text that a theme makes faint, lit or not."""
    notebook.theme(theme)
    widget = microscope(SHIPPED)
    assert too_faint(widget) == []
    cell(widget, "td_errors", 52).click()
    notebook.page.mouse.move(0, 0)
    assert too_faint(widget) == []
    notebook.picture(widget, f"microscope_{theme.lower()}")
    widget = microscope(NASTY_ONE)
    switch(widget, "Functions", "yours")
    switch(widget, "Shift by one, wrong on purpose", "rewards")
    cell(widget, "advantages", 3).click()
    notebook.page.mouse.move(0, 0)
    assert too_faint(widget) == []
    notebook.picture(widget, f"microscope_nasty_{theme.lower()}")
    notebook.theme("Light")
