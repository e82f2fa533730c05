"""The museum's bugs are really there, are recorded, and are found by what is said to find them."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch

from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.algorithms.ppo_config import PPOConfig
from rlhf_lib.course.doctor import NOTHING, diagnose, log_of, score
from rlhf_lib.course.museum import BUGS, HEALTHY_RUNS, RUN, SCORING, TUNING, bug, buggy_run, recorded
from rlhf_lib.course.museum.cases import CaseBook, blind_case
from rlhf_lib.course.museum.effects import SILENT, in_words
from rlhf_lib.course.museum.instruments import bisect, try_components
from rlhf_lib.course.museum.joint_clip import jointly_clipped

REFERENCES = (Path(__file__).parents[2] / "REFERENCES.md").read_text(encoding="utf-8")
SEVERAL_PARTS = {"KL from the sampler's scores", "values one early"}  # what they move is read in several places
ROLLOUT = {one.name for one in BUGS if one.stage == "rollout"} - {"score read one early", "reward sign"}


@pytest.mark.parametrize("one", BUGS, ids=lambda one: one.name)
def test_a_bug_changes_one_part(one):
    """Rejects an exhibit that changes nothing, or more than it says."""
    changed = [f.name for f in fields(Parts) if getattr(one.parts(), f.name) is not f.default]
    assert changed and (len(changed) == 1 or one.name in SEVERAL_PARTS)
    for anchor in re.findall(r"REFERENCES\.md#(\w+)", one.seen_in):
        assert f'id="{anchor}"' in REFERENCES


def test_the_records_are_of_these_bugs():
    """Rejects records of other bugs, other settings or missing seeds."""
    found = recorded()
    assert len(BUGS) >= 15 and list(found) == [*HEALTHY_RUNS, *(one.name for one in BUGS)]
    assert all(set(runs) == {*TUNING, *SCORING} for runs in found.values())
    assert PPOConfig(**asdict(RUN)) == RUN


@pytest.mark.parametrize("name", ["reward sign", "whitening over the padding"])
def test_two_are_alive(name):
    """Rejects records that no longer are what the code does: two updates of two bugs, made again."""
    made, kept = buggy_run(bug(name), seed=0, updates=2).metrics, recorded()[name][0].metrics
    for metric in ("score", "kl_per_sequence", "advantage_std", "explained_variance"):
        assert [row[metric] for row in made] == pytest.approx([row[metric] for row in kept[:2]], rel=0.02, abs=0.02)


def test_one_norm_is_clipped_for_both_networks():
    """Rejects a norm for each network: gradients of norm 3 and 4 have 5 together, so 0.6 and 0.8 stay, not 1 and 1."""
    state = jointly_clipped(RUN)
    weights = [next(network.parameters()) for network in (state.policy, state.critic)]
    for weight, norm in zip(weights, (3.0, 4.0), strict=True):
        weight.grad = torch.zeros_like(weight)
        weight.grad[0, 0] = norm
    state.optimizer.step()
    assert [float(weight.grad.norm()) for weight in weights] == pytest.approx([0.6, 0.8])


def test_effects_are_decided_by_the_records():
    """Rejects a metric that was written down by hand, and a bug called silent though it shows."""
    assert in_words(bug("reference trains along")).startswith("kl_per_")
    assert in_words(bug("overflow in half precision")).startswith("the run stops")
    assert in_words(bug("terminal value one late")) == SILENT


@pytest.mark.parametrize("one", BUGS, ids=lambda one: one.name)
def test_components_find_what_no_rollout_is_needed_for(one):
    """Rejects a component test that lets its bug pass, or blames a part that is the library's."""
    failing = set(try_components(one.parts()))
    assert failing <= set(one.slots)
    assert bool(failing) == (one.name not in ROLLOUT)


def test_the_doctor_accuses_nobody_healthy():
    """Rejects a rule that fires without a bug, in any seed or setting, and a doctor that finds less than half."""
    assert score((*TUNING, *SCORING)).accused == 0
    assert score(SCORING).hits >= len(score(SCORING).buggy) / 2
    assert diagnose(log_of(recorded()["healthy"][3])).first == NOTHING


def test_a_blind_case_tells_nothing_but_its_number():
    """Rejects a case that gives its name away, another case for the same number, and a second guess that counts."""
    case = blind_case(5)
    assert case.reveal().name in case.choices and case.reveal().name not in repr(case).replace(str(case.choices), "")
    assert case == blind_case(5) and len({blind_case(n).reveal().name for n in range(60)}) > 15
    book = CaseBook(5)
    wrong = next(name for name in case.choices if name != case.reveal().name)
    assert not book.guess(case, wrong).right and book.guess(case, case.reveal().name).right
    assert repr(book) == "0 of 1 cases named at the first try"
    with pytest.raises(ValueError, match="choose one of"):
        book.guess(case, "bad luck")


def test_bisection_points_at_the_stage():
    """Rejects an instrument that clears the guilty stage, or blames another."""
    whose = bisect(bug("rewards one late"), updates=1)
    assert [name for name, distance in whose.items() if distance < 1e-3] == ["rewards by the library"]
