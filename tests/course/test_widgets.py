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
from transformers import TopKLogitsWarper, TopPLogitsWarper

from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.course.widgets import (
    alignment_microscope,
    clip_explorer,
    gae_explorer,
    kl_explorer,
    mask_explorer,
    memory_budget,
)
from rlhf_lib.course.widgets.clip import REGIONS, regions_of
from rlhf_lib.course.widgets.divergence import filtered, inverse_cdf
from rlhf_lib.course.widgets.instrument import STATIC, html_table, module
from rlhf_lib.course.widgets.memory import GROUPS, SHAPES
from rlhf_lib.course.widgets.microscope import late, one_slot_later, trimmed, untrimmed
from rlhf_lib.course.widgets.plain import plain, show
from rlhf_lib.engine.memory_budget import GIB, Plan, estimate
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
        (0.001, "0.001"), (0.0005, "5e-4"), (0.00096, "1e-3"), (-2e-12, "−2e-12"), (999999.9, "999999.900"),
        (1e6, "1.0e+6"), (2.5e13, "2.5e+13"), ("NaN", "NaN"), (math.inf, "∞"), ("-Infinity", "−∞"),
    ],
)  # fmt: skip
def test_numbers_as_the_page_writes_them(x, text):
    """Rejects Python's rounding of ties (0.062), a minus zero, a tiny number shown as 0 or at twice its size, and a
    shortened exponent.
    """
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


def test_the_static_kl_explorer():
    """Rejects scored and sampled columns that are swapped, a cut that is not scaled up, estimators of another order,
    and a matched sampler whose rounding is shown as if it were a gap.
    """
    half = torch.tensor([[0.5, 0.3, 0.2]]).log()
    widget = kl_explorer(half, rollouts.Texts(["a", "<b>", "c"]), temperature=1, top_p=0.7, score_temperature=1)
    tokens, two, estimates = tables(widget)
    assert tokens["a"] == ["0.500", "0.625", "kept"] and tokens["<b>"] == ["0.300", "0.375", "kept"]
    assert tokens["c"] == ["0.200", "0", "cut by top-p"]
    assert two["tokens it can draw"] == ["3", "2"] and two["KL(this || other), nats"] == ["∞", show(math.log(1.25))]
    assert two["entropy, nats"] == [show(1.02965), show(0.66156)]
    assert estimates["drawn by the sampler, scored anew"][1:] == ["0", "0", "0"]
    matched = tables(kl_explorer(half, rollouts.Texts(["a", "b", "c"]), temperature=1, top_p=1, score_temperature=1))
    assert matched[1]["KL(this || other), nats"] == ["0", "0"]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8, unique=True), st.integers(1, 8), st.floats(0.05, 0.999))
def test_the_filters_of_generate(logits, top_k, top_p):
    """Rejects top-p before top-k, one token too many or too few at the edge, and nothing left."""
    logits = torch.tensor([logits], dtype=torch.float64)
    wanted = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, logits))[0]
    kept, reasons = filtered(logits[0], top_k=min(top_k, logits.shape[1]), top_p=top_p)
    assert kept.equal(wanted)
    assert [not reason for reason in reasons] == torch.isfinite(wanted).tolist()


def test_draws_never_reach_what_is_cut():
    """Rejects a draw at the very end that lands on a token without probability, and the upper edge of a token's share
    counted as its own.
    """
    logits = torch.tensor([-math.inf, 0.0, 0.0, -math.inf], dtype=torch.float64)
    assert inverse_cdf(logits, torch.tensor([0.0, 0.4999999, 0.5, 0.9999999], dtype=torch.float64)).tolist() == [
        1,
        1,
        2,
        2,
    ]


def test_the_static_clip_explorer():
    """Rejects counts that stand at another region, an action off the mask that is counted, the two fractions swapped, a
    slope in the ratio instead of in log p.
    """
    ratio = floats([1.0, 1.5, 1.5, 0.5, 2.0])
    case = ratio.log(), torch.zeros_like(ratio), floats([1.0, 1.0, -1.0, -2.0, 9.0]), bools("xxxx.")
    widget = clip_explorer(*case, clip=0.2)
    widget.view = dict(clip=0.2, ratio=1.5, advantage=-2.0)
    regions, all_actions, hand = tables(widget)
    assert [regions[title][1] for _, title, _ in REGIONS] == ["1", "1", "1", "0", "1", "0"]
    assert all_actions["clip fraction"] == ["0.500"] and all_actions["if every ratio outside counted"] == ["0.750"]
    assert all_actions["mean loss"] == [show((-1.0 - 1.2 + 1.5 + 1.6) / 4)]
    assert hand == {"": [""], "objective": ["−3.000"], "loss": ["3.000"], "its slope in log p": ["3.000"]}


def test_regions_with_edges():
    """Rejects an edge that counts as outside, and NaN or no advantage counted in a region."""
    ratios = torch.tensor([0.5, 1.5, math.inf, math.nan, 0.4, 0.4], dtype=torch.float64)
    advantages = torch.tensor([-1.0, 1.0, 1.0, 1.0, 0.0, math.nan], dtype=torch.float64)
    assert regions_of(ratios, advantages, clip=0.5) == ["within", "within", "high_good", *["neither"] * 3]


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
        (lambda: clip_explorer(*torch.ones(3, 1, 2), torch.ones(1, 2) < 0), "no action counts"),
        (lambda: clip_explorer(*torch.ones(3, 1, 2), torch.ones(1, 3) > 0), "must have one shape"),
        (lambda: clip_explorer(*torch.ones(3, 1, 2), torch.ones(1, 2) > 0, clip=1.5), "clip must be in .*, got 1.5"),
        (lambda: kl_explorer(torch.ones(3), rollouts.Texts([])), r"must both be \[S, V\]"),
        (lambda: kl_explorer(torch.ones(1, 3), rollouts.Texts([]), states=["a", "b"]), "2 names for 1 states"),
        (lambda: kl_explorer(torch.ones(1, 3), rollouts.Texts([]), temperature=0), "temperatures must be above 0"),
        (lambda: kl_explorer(torch.ones(1, 3), rollouts.Texts([]), top_k=0), "top_k 1 or more, got 0.9 and 0"),
        (lambda: kl_explorer(torch.ones(9, 2**14), rollouts.Texts([])), "more than a page can hold"),
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


def top_level_names(script: str) -> set[str]:
    """What a script declares outside of functions and classes."""
    found = re.findall(r"^(?:export )?(?:const|let|function|class) (?:(\w+)|\[([\w, ]+)\])", script, re.MULTILINE)
    return {name.strip() for one, several in found for name in (one or several).split(",")}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_joined_module_stands_alone(name):
    """Rejects an import that a widget's module cannot resolve, a second export, a helper that base.js lacks, and a name
    that both files take: to the browser the two are one.
    """
    text = module(name)
    own, base = ((STATIC / f"{file}.js").read_text(encoding="utf-8") for file in (name, "base"))
    assert not re.findall(r"^import |\bimport\(", text, re.MULTILINE)
    assert len(re.findall(r"^export ", text, re.MULTILINE)) == 1
    wanted = re.search(r'import \{([^}]*)\} from "./base.js"', own).group(1)
    exported = set(re.findall(r"^export (?:const|function) (\w+)", base, re.MULTILINE))
    assert {helper.strip() for helper in wanted.split(",")} <= exported
    assert not top_level_names(own) & top_level_names(base)


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_nothing_is_fetched_and_text_stays_text(path):
    """Rejects a CDN, a font from elsewhere, and every way in which a token could become markup."""
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "the name of a namespace")
    assert not re.findall(r"https?:|innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|\bfetch\(|url\(", text)
    if path.suffix == ".css" and path.stem != "base":
        assert not re.findall(r"#[0-9a-fA-F]{3,8}\b|\brgba?\(", text), (
            "colours come from base.css, which knows the theme"
        )


# The memory budget


def test_memory_budget_answers():
    """Rejects an instrument that keeps what it showed at first, a model with another's layers, and a table that adds up
    to something else.
    """
    plan = Plan(policy=SHAPES["SmolLM2-135M"], batch=8, micro_batch=4, prompt=64, response=16)
    widget = memory_budget(plan, gpu=GIB)
    for change in (dict(batch=64), dict(model=3, vocabulary=128_256, trainable_layers=10**6), dict(numbers="bfloat16")):
        widget.view = {**widget.view, **change}
        budget = estimate(widget.planned(widget.view))
        (table,) = tables(widget)
        assert table["all"] == [f"{phase.total / GIB:.2f}" for phase in budget.phases]
        assert f"{budget.peak / GIB:.2f} GiB in {budget.phase}" in repr(widget)
    assert widget.planned(widget.view).policy == SHAPES["Llama-3.2-1B"]


def test_memory_budget_counts_every_row():
    """Rejects a row of the budget that is in no group, or in two."""
    plan = Plan(policy=SHAPES["Pythia-1B"], batch=8, micro_batch=4, prompt=64, response=16)
    grouped = [row for _, rows in GROUPS for row in rows]
    assert len(grouped) == len(set(grouped))
    assert {row for _, row, _ in estimate(plan).rows} <= set(grouped)


def test_memory_budget_refuses_what_it_cannot_show():
    """Rejects a mixture of numbers that would be shown as another."""
    plan = Plan(policy=SHAPES["SmolLM2-135M"], batch=8, micro_batch=4, prompt=64, response=16)
    with pytest.raises(ValueError, match="float16"):
        memory_budget(replace(plan, autocast="float16"))
