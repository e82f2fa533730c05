"""Records: rows stay together."""

from dataclasses import fields, replace

import jaxtyping
import pytest
import torch

from rlhf_lib.maths.advantages import gae
from rlhf_lib.maths.records import Rows, trim
from tests.helpers import assert_close
from tests.maths.specifications import assert_meets_specification, assert_same_record, example_rollout


@pytest.mark.parametrize("fn", [Rows.select, trim])
def test_specification(fn):
    assert_meets_specification(fn)


def test_shuffled_and_sorted_back():
    """Rejects a field that is left out of the shuffle, or moved another way than the rest."""
    rollout, order = example_rollout(), torch.tensor([2, 0, 1])
    assert_same_record(rollout.select(order).select(order.argsort()), rollout)


def test_trimming_padding_changes_no_advantage():
    """Rejects a trim that moves values against rewards."""
    full = example_rollout()
    short = trim(full, int(full.sequence_lengths.max()))
    assert short.tokens.shape[1] < full.tokens.shape[1]
    ours, theirs = (gae(r.values, r.old_entropies, r.action_mask, gamma=0.9, lam=0.8) for r in (short, full))
    assert_close(ours, theirs[:, : ours.shape[1]])


@pytest.mark.parametrize("name", [field.name for field in fields(example_rollout())])
def test_every_field_is_annotated(name):
    """Rejects a field whose annotation admits any number of rows."""
    rollout = example_rollout()
    with pytest.raises(jaxtyping.TypeCheckError):
        replace(rollout, **{name: getattr(rollout, name)[:2]})
