"""Who chose what, in which state."""

import jaxtyping
import pytest
import torch
from hypothesis import given

from rlhf_lib.maths import alignment
from rlhf_lib.maths.alignment import acting_states, action_mask_from_lengths, actions_of, another_follows, is_last
from rlhf_lib.maths.masking import keep
from tests.helpers import assert_close, bools, floats, ragged_cases
from tests.maths.specifications import assert_meets_specification

FUNCTIONS = [
    actions_of, acting_states, alignment.action_log_probs, alignment.values_before, alignment.values_after,
    action_mask_from_lengths, another_follows, is_last, alignment.check_one_wider, alignment.check_same_actions,
]  # fmt: skip


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_specification(fn):
    assert_meets_specification(fn)


@given(ragged_cases)
def test_mask_counts_the_response(case):
    """Rejects a mask that is off by one at either end, for any lengths."""
    prompts, sequences = case["prompt_lengths"], case["sequence_lengths"]
    mask = action_mask_from_lengths(prompts, sequences, case["values"].shape[1])
    assert_close(mask, case["action_mask"])
    assert_close(mask.sum(1), sequences - prompts)


@given(ragged_cases)
def test_every_choice_is_the_last_or_has_a_next(case):
    """Rejects two last choices in a row, none, or one outside the mask."""
    mask = case["action_mask"]
    assert_close(is_last(mask).sum(1), torch.ones(len(mask), dtype=torch.int64))
    assert_close(is_last(mask) ^ another_follows(mask), mask)


def test_states_meet_the_tokens_chosen_in_them():
    """Rejects a shift in one place only: a model that always predicts the next token must be right everywhere."""
    tokens = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 6, 0]])
    clairvoyant = torch.nn.functional.one_hot(tokens.roll(-1, 1), 8).double()
    assert_close(acting_states(clairvoyant).argmax(-1), actions_of(tokens))


def test_annotations_are_enforced():
    """Rejects a conftest that installs the import hook too late: wrong annotations would then go unseen."""
    with pytest.raises(jaxtyping.TypeCheckError):
        keep(floats([1, 2]), torch.tensor([[1, 0]]))
    with pytest.raises(jaxtyping.TypeCheckError):
        keep(floats([1], [2]), bools("x"))
