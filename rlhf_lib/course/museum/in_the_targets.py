"""Bugs of advantages and returns."""

from __future__ import annotations

import torch

from ...maths import advantages, masking
from ..shifts import one_slot_later, shift
from .bug import Bug, always


def _whiten_everything(x, mask):
    return masking.keep((x - x.mean()) * torch.rsqrt(x.var(unbiased=False) + masking.WHITEN_EPS), mask)


def _whiten_and_add_the_mean(x, mask):
    return masking.keep(masking.whiten(x, mask) + masking.masked_mean(x, mask), mask)


def _whiten_one_slot_longer(x, mask):
    return masking.keep(masking.whiten(x, one_slot_later(mask)), mask)


def _already_whitened(values, rewards, action_mask, *, gamma, lam):
    return masking.whiten(advantages.gae(values, rewards, action_mask, gamma=gamma, lam=lam), action_mask)


def _end_one_late(values, rewards, action_mask, *, gamma, lam):
    """The state behind the EOS keeps its value, and hands it back through the recursion."""
    longer = one_slot_later(action_mask)
    return masking.keep(advantages.gae(values, rewards, longer, gamma=gamma, lam=lam), action_mask)


BUGS = (
    Bug(
        name="values one early",
        stage="targets",
        rung="understanding",
        says="the baseline of a choice is the value of the state that it led to",
        symptom="quiet: the critic learns the shifted thing; credit is given to the wrong token",
        seen_in="https://github.com/huggingface/trl/issues/15 asks which it should be",
        found_by="a component test of td_errors on three tokens by hand",
        fix="values_before(values) is the baseline",
        family="no sign in the log",
        plant=lambda: shift("values one early").changes,
    ),
    Bug(
        name="terminal value one late",
        stage="targets",
        rung="implementation",
        says="the value of the state behind the EOS is bootstrapped from",
        symptom="returns are off by 1 - lambda of what the critic says behind the EOS, where nothing trains it",
        seen_in="the write-up's final code, by reading (REFERENCES.md#writeup)",
        found_by="a component test: changing the last value of a row must change nothing",
        fix="a state in which nothing is chosen is worth 0",
        family="no sign in the log",
        plant=always(gae=_end_one_late),
    ),
    Bug(
        name="whitening over the padding",
        stage="targets",
        rung="implementation",
        says="mean and variance are those of the whole padded tensor",
        symptom="advantages are too large, and their mean is not 0",
        seen_in="https://github.com/natolambert/rlhf-book/pull/216 lists a padding leak; lesson 01",
        found_by="advantage_mean and advantage_std",
        fix="mean and variance over what counts",
        family="advantages are not whitened",
        plant=always(whiten=_whiten_everything),
    ),
    Bug(
        name="whitening adds the mean back",
        stage="targets",
        rung="understanding",
        says="the mean that was taken away is added again, as is right for rewards",
        symptom="while the critic is wrong, every choice is good, or every choice is bad",
        seen_in="torchtune (REFERENCES.md#torchtune) and RLHF in notebooks (REFERENCES.md#ash)",
        found_by="advantage_mean",
        fix="advantages are centred",
        family="advantages are not centred",
        plant=always(whiten=_whiten_and_add_the_mean),
    ),
    Bug(
        name="returns from whitened advantages",
        stage="targets",
        rung="implementation",
        says="advantages are whitened before the returns are made from them",
        symptom="the critic can never be right: its target moves with its own value",
        seen_in="RLHF in notebooks, by reading (REFERENCES.md#ash)",
        found_by="value_loss does not fall; a component test: returns minus values are the raw advantages",
        fix="returns first, then whitening",
        family="returns of whitened advantages",
        plant=always(gae=_already_whitened),
    ),
)

LATER = (
    Bug(
        name="whitening one slot longer",
        stage="targets",
        rung="implementation",
        says="mean and variance are taken over one slot more than the loss reads: the one behind the EOS",
        symptom="the spread of advantages is a few per cent above 1, their mean not quite 0",
        seen_in="the write-up's final code, by reading: the mask of the values, in place of the actions' "
        "(REFERENCES.md#writeup); lesson 01",
        found_by="advantage_std, if you look closely; a component test: what lies off the mask must change nothing",
        fix="one mask for whitening and loss",
        family="advantages are not whitened",
        plant=always(whiten=_whiten_one_slot_longer),
    ),
)
