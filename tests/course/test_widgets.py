"""The instruments without a browser: their data, their static tables, and what their JavaScript may not do."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.course.widgets import alignment_microscope, gae_explorer, mask_explorer
from rlhf_lib.course.widgets.instrument import STATIC, html_table, module
from rlhf_lib.course.widgets.microscope import late, one_slot_later, trimmed, untrimmed
from rlhf_lib.course.widgets.plain import plain, show
from tests.browser import rollouts
from tests.helpers import bools, floats, gae_spec, td_errors_spec

SCRIPTS = sorted(path.stem for path in STATIC.glob("*.js") if path.stem != "base")


class Tables(HTMLParser):
    """The texts of each table's cells, row by row."""

    def __init__(self, html: str):
        super().__init__()
        self.tables, self.tags, self.inside = [], set(), False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("th", "td")

    def handle_data(self, data):
        if self.inside:
            self.tables[-1][-1][-1] += data


def tables(widget) -> list[dict[str, list[str]]]:
    return [{row[0]: row[1:] for row in table} for table in Tables(widget.static_html()).tables]


# Plain data


def test_plain_data_survives_json():
    """Rejects NaN as JSON has none, an infinity that loses its sign, a boolean that becomes a number, tuples, tensors
    and objects that only pickle would carry.
    """
    data = plain({1: (torch.tensor([1.5, math.nan]), math.inf, -math.inf, True, None, "x")})
    assert json.loads(json.dumps(data, allow_nan=False)) == {
        "1": [[1.5, "NaN"], "Infinity", "-Infinity", True, None, "x"]
    }
    with pytest.raises(TypeError, match="is not plain data"):
        plain({"x": object()})


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (1.0, "1.000"), (-1.0005, "−1.000"), (0.0625, "0.063"), (-0.0625, "−0.063"),
        (0.0005, "0.001"), (0.00049, "5e-4"), (-2e-12, "−2e-12"), (999999.9, "999999.900"), (1e6, "1.0e+6"),
        (2.5e13, "2.5e+13"), ("NaN", "NaN"), (math.inf, "∞"), ("-Infinity", "−∞"),
    ],
)  # fmt: skip
def test_numbers_as_the_page_writes_them(x, text):
    """Rejects Python's rounding of ties (0.062), a minus zero, a tiny number shown as 0 and a shortened exponent."""
    assert show(x) == text


@given(st.lists(st.sampled_from([0.0, 0.0, 1.0, -2.5, math.inf])))
def test_trimmed_tracks_come_back(track):
    """Rejects a zero between two numbers that is trimmed, and a track of zeros only that fails."""
    assert untrimmed(trimmed(track), len(track)) == track
    assert trimmed([0.0, math.nan, 0.0])[0] == 1


# Without JavaScript


def test_token_text_is_escaped():
    """Rejects a token that becomes markup on GitHub, where nothing else guards it."""
    assert Tables(html_table("<i>", ["<b>"], [["&lt;", "<script>"]])).tables == [[["<b>"], ["&lt;", "<script>"]]]
    rollout, texts = rollouts.nasty()
    for widget in (alignment_microscope(rollout, texts), gae_explorer(rollout, texts)):
        page = Tables(widget.static_html())
        assert page.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
        assert any(rollouts.NASTY[3] in row for table in page.tables for row in table)


def test_the_bundle_says_it_twice_and_is_the_same_every_time():
    """Rejects a page that only JavaScript can read, and an address or a random id where notebooks are compared."""

    def bundle():
        return mask_explorer(floats([1.0, 2.0]), bools("x."), name="kl")._repr_mimebundle_()[0]

    assert bundle()["text/plain"] == "MaskExplorer(kl, 1 rows of 2)"
    assert bundle()["text/html"] == bundle()["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in bundle()


def test_the_static_microscope():
    """Rejects static tracks of one width, a fold that hides the response, numbers of another row."""
    rollout, texts = rollouts.wide()
    rollout = rollout.select(torch.tensor([0, 60]))
    states, actions = tables(alignment_microscope(rollout, texts, gamma=0.9, lam=0.8, kl_coef=0.0, row=1))
    assert states["position"] == [*map(str, range(70)), "⋯", "127"]
    assert actions["position"] == [*map(str, range(70)), "⋯", ""] and actions["actions"][-2:] == ["⋯", ""]
    rewards = torch.zeros_like(rollout.old_log_probs)
    rewards[1, 66] = rollout.scores[1]  # 68 tokens: the last is chosen in state 66
    wanted = gae_spec(rollout.values, rewards, rollout.action_mask, gamma=0.9, lam=0.8)[1]
    assert actions["advantages"][:70] == [show(x) for x in wanted[:70].tolist()]


def test_the_static_gae_explorer():
    """Rejects a table whose columns are mixed up: lambda 0, lambda, lambda 1."""
    rollout, texts = rollouts.nasty()
    (table,) = tables(gae_explorer(rollout, texts, kl_coef=0.0, gamma=0.9, lam=0.8))
    rewards = torch.zeros_like(rollout.old_log_probs)
    rewards[0, 4] = rollout.scores[0]
    case = rollout.values, rewards, rollout.action_mask
    for column, wanted in (
        (3, td_errors_spec(*case, gamma=0.9)), (4, gae_spec(*case, gamma=0.9, lam=0.8)),
        (5, gae_spec(*case, gamma=0.9, lam=1.0)),
    ):  # fmt: skip
        assert [table[str(t)][column] for t in range(1, 5)] == [show(x) for x in wanted[0, 1:5].tolist()]


def test_the_static_mask_explorer():
    """Rejects plain and masked columns that are swapped, and a whitening of the row alone."""
    x, mask = floats([1.0, 2.0, 9.0], [4.0, 9.0, 9.0]), bools("xx.", "x..")
    entries, statistics, row = tables(mask_explorer(x, mask, row=1))
    assert entries["row 0"] == ["1.000", "2.000", "[9.000]"]
    assert statistics["mean"] == [show(34 / 6), show(7 / 3)]
    assert statistics["variance"] == [show(264 / 6 - (34 / 6) ** 2), show(21 / 3 - (7 / 3) ** 2)]
    assert row["whitened, masked"] == [show((4 - 7 / 3) / (14 / 9) ** 0.5), "0", "0"]
    assert row["softmax, masked"] == ["1.000", "0", "0"]


# What the microscope computes


def test_one_slot_later():
    """Rejects a mask that loses its first choice, or that leaves a row which has no room."""
    mask = bools("..xx..", "...xxx", "xxxxxx")
    assert one_slot_later(mask).tolist() == bools("..xxx.", "...xxx", "xxxxxx").tolist()
    assert late(mask).tolist() == bools("...xx.", "....xx", ".xxxxx").tolist()


def test_a_learners_function_may_fail():
    """Rejects an instrument that dies of a learner's mistake, or that hides a failure of the library."""

    def wrong_shape(advantages, values, mask):
        return advantages[:1]

    def fails(*args, **kwargs):
        raise RuntimeError("not yet")

    rollout, texts = rollouts.nasty()
    for mine, message in ((wrong_shape, "returns should be a tensor of shape (3, 8), got (1, 8)"), (fails, "not yet")):
        widget = alignment_microscope(rollout, texts, parts=replace(Parts(), returns=mine))
        errors = {(variant["functions"], variant["error"]) for variant in widget.data["variants"]}
        assert {functions for functions, error in errors if not error} == {"library"}
        assert all(message in error for functions, error in errors if functions == "yours")


def test_every_switch_has_its_variant():
    """Rejects a switch that the page would look up in vain."""
    rollout, texts = rollouts.single()
    plain_one = alignment_microscope(rollout, texts)
    mine = alignment_microscope(rollout, texts, parts=replace(Parts(), whiten=lambda x, mask: x))
    for widget, functions in ((plain_one, ["library"]), (mine, ["library", "yours"])):
        found = [(v["functions"], v["placement"], v["shift"]) for v in widget.data["variants"]]
        assert found == list(product(functions, ["eos", "later"], ["none", "rewards", "values", "mask"]))
        assert widget.data["has_yours"] == ("yours" in functions)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: alignment_microscope(*rollouts.single(), row=1), "row 1 of a rollout of 1 rows"),
        (lambda: gae_explorer(*rollouts.single(), row=-1), "row -1 of a rollout"),
        (lambda: mask_explorer(torch.ones(2, 3), torch.ones(2, 2) > 0), "got \\(2, 3\\) and \\(2, 2\\)"),
        (lambda: mask_explorer(torch.ones(2, 3), torch.ones(2, 3) > 0, row_names=["a"]), "1 row names for 2 rows"),
    ],
)  # fmt: skip
def test_what_is_refused(make, message):
    """Rejects a wrong argument that is only seen in the browser."""
    with pytest.raises(ValueError, match=message):
        make()


# The scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_joined_module_stands_alone(name):
    """Rejects an import that a widget's module cannot resolve, a second export, and a helper that base.js lacks."""
    text = module(name)
    own, base = ((STATIC / f"{file}.js").read_text(encoding="utf-8") for file in (name, "base"))
    assert not re.findall(r"^import |\bimport\(", text, re.MULTILINE)
    assert len(re.findall(r"^export ", text, re.MULTILINE)) == 1
    wanted = re.search(r'import \{([^}]*)\} from "./base.js"', own).group(1)
    exported = set(re.findall(r"^export (?:const|function) (\w+)", base, re.MULTILINE))
    assert {helper.strip() for helper in wanted.split(",")} <= exported


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_nothing_is_fetched_and_text_stays_text(path):
    """Rejects a CDN, a font from elsewhere, and every way in which a token could become markup."""
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"https?:|innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|\bfetch\(|url\(", text)
    if path.suffix == ".css" and path.stem != "base":
        assert not re.findall(r"#[0-9a-fA-F]{3,8}\b|\brgba?\(", text), (
            "colours come from base.css, which knows the theme"
        )
