"""Lesson 08: tests that accept the right function and kill every mutant of it."""

from __future__ import annotations

from ...maths import advantages, masking, rewards
from .. import component_tests
from ..hunt import MutantHunt
from .alignment import SCORE_TWINS
from .gae import GAE_TWINS
from .masking import WHITEN_TWINS

PREAMBLE = """
from collections.abc import Callable

import torch

from rlhf_lib.course.component_tests import as_mask, assert_is
"""

EXERCISES = (
    MutantHunt(
        lesson="08_debugging_lab",
        library=component_tests.test_place_score,
        under_test=rewards.place_score,
        mutants=SCORE_TWINS,
        hints=(
            "Draw three rows with `as_mask`: one with padding behind its last choice, one that is full, one that is "
            "short. Give each row another score, so that none can stand for another.",
            "Where does each score have to stand? Write the whole result down by hand; everything else is 0.",
            '`assert_is(place_score(torch.tensor([5.0, 7.0]), as_mask("..##.", ".####")), [[0, 0, 0, 5, 0], ...])`',
        ),
        difficulty=1,
        importance=5,
        minutes=8,
    ),
    MutantHunt(
        lesson="08_debugging_lab",
        library=component_tests.test_whiten,
        under_test=masking.whiten,
        mutants=WHITEN_TWINS,
        hints=(
            "Three numbers that count, in two rows, are enough: 1, 3 and 5 have mean 3 and variance 8/3. What must "
            "stand where nothing counts, and what may stand there before?",
            "Put NaN where nothing counts. Then ask for less than one case: a single number that counts, and numbers "
            "so small that the 1e-8 beside their variance is seen.",
            "1, 3, 5 become -2, 0, 2 divided by (8/3 + 1e-8) ** 0.5. The same numbers times 1e-4 need "
            "(8e-8/3 + 1e-8) ** 0.5; a single number becomes 0. Use float64.",
        ),
        difficulty=3,
        importance=5,
        minutes=15,
    ),
    MutantHunt(
        lesson="08_debugging_lab",
        library=component_tests.test_gae,
        under_test=advantages.gae,
        mutants=GAE_TWINS,
        hints=(
            "One row with two choices in the middle shows nearly everything. Which of the values and rewards may be "
            "read? Put NaN into all others.",
            "Take gamma and lam apart from each other and from 1. Work the last choice out first, then the one before.",
            "The last choice is worth r - V; the one before r + gamma V' - V + gamma lam times the last one's "
            "advantage. Values are one wider than the mask.",
        ),
        difficulty=3,
        importance=5,
        minutes=15,
    ),
)
