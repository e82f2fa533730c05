"""The sampler: the right tokens from the right distribution, whatever else is in the batch."""

from contextlib import nullcontext
from dataclasses import fields

import pytest
import torch
from scipy.stats import chisquare

from rlhf_lib.course.table import Table
from rlhf_lib.engine import sampling
from rlhf_lib.engine.lean_decoder import lean_decoding
from rlhf_lib.engine.models import score_actions
from rlhf_lib.engine.sampling import sample, uniforms
from rlhf_lib.maths.records import Prompts
from tests.elsewhere import DEVICE, INDEXED, Elsewhere, MadeFromNumbers, SecondDevice
from tests.tiny import EOS, MODELS, PAD, VOCAB, ragged_prompts, tiny_llama

ROWS, STEPS = 12, 8
RANDOM = uniforms(0, "test", rows=ROWS, steps=STEPS)
# Transformers warns of an argument before it refuses it.
pytestmark = pytest.mark.filterwarnings("error:.*is deprecated and will be removed in version:FutureWarning")


def write(model, prompts, random=RANDOM, *, temperature=1.0, eos=EOS, pad=PAD):
    return sample(
        model, prompts.tokens, prompts.lengths, random, temperature=temperature, eos_token_id=eos, pad_token_id=pad
    )


def responses_of(samples) -> list[list[int]]:
    """Each row's response without padding."""
    bounds = zip(samples.prompt_lengths.tolist(), samples.sequence_lengths.tolist(), strict=True)
    return [row[start:end] for row, (start, end) in zip(samples.tokens.tolist(), bounds, strict=True)]


def log_probs_of(samples) -> torch.Tensor:
    return samples.sampler_log_probs[samples.action_mask]


def end_of_some(model, prompts) -> int:
    """A token that the greedy policy writes in some rows, not in all: taken as EOS it makes them end early."""
    rows = responses_of(write(model, prompts, temperature=0, eos=-1))
    return next(
        token
        for token in range(2, VOCAB)
        if 3 <= sum(token in row for row in rows) <= ROWS - 3 and any(token in row[1:-1] for row in rows)
    )


# The right tokens


@pytest.mark.parametrize("name", MODELS)
def test_greedy_equals_generate(name):
    """Rejects wrong positions or a missing mask under left padding, a stale cache, and an EOS that is not kept."""
    model, prompts = MODELS[name](), ragged_prompts(ROWS)
    eos = end_of_some(model, prompts)
    width = prompts.tokens.shape[1]
    rows = [row[:length] for row, length in zip(prompts.tokens.tolist(), prompts.lengths.tolist(), strict=True)]
    left = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    theirs = model.generate(
        left, attention_mask=(torch.arange(width) >= width - prompts.lengths[:, None]).long(), do_sample=False,
        max_new_tokens=STEPS, eos_token_id=eos, pad_token_id=PAD,
    )[:, width:].tolist()  # fmt: skip
    ours = write(model, prompts, temperature=0, eos=eos)
    assert 0 < ours.has_eos.sum() < ROWS  # some end, some hit the cap
    assert [row + [PAD] * (len(theirs[0]) - len(row)) for row in responses_of(ours)] == theirs


@pytest.mark.parametrize("name", MODELS)
def test_sampler_log_probs_are_those_of_a_forward_pass(name):
    """Rejects a sampler that draws from another distribution than the one it is scored by."""
    model, prompts = MODELS[name](), ragged_prompts(ROWS)
    samples = write(model, prompts, temperature=0.7)
    scored, _ = score_actions(model, samples.tokens, samples.action_mask, temperature=0.7)
    torch.testing.assert_close(samples.sampler_log_probs, scored.detach(), rtol=0, atol=1e-4)
    assert not samples.sampler_log_probs[~samples.action_mask].any()
    hotter = write(model, prompts, temperature=1.0)
    scored, _ = score_actions(model, hotter.tokens, hotter.action_mask, temperature=0.7)
    assert (hotter.sampler_log_probs - scored)[hotter.action_mask].abs().mean() > 0.1


def test_frequencies_are_the_policys():
    """Rejects a draw that is off by one token, a forgotten temperature, and a filter such as top-k."""
    model, prompt = tiny_llama(), torch.tensor([[5, 9, 3]])
    rows, temperature = 20_000, 1.7
    prompts = Prompts(prompt.expand(rows, -1), torch.full((rows,), 3))
    samples = write(model, prompts, uniforms(1, "chi", rows=rows, steps=1), temperature=temperature)
    counts = samples.tokens[:, 3].bincount(minlength=VOCAB).double()

    def p_value(temperature: float) -> float:
        expected = (model(prompt).logits[0, -1].detach().double() / temperature).softmax(-1) * rows
        assert expected.min() >= 5  # fewer would be too rare for the chi-square distribution
        return float(chisquare(counts.numpy(), expected.numpy()).pvalue)

    assert p_value(temperature) > 0.01
    assert p_value(temperature * 0.95) < 1e-3


def test_a_token_of_probability_0_is_never_drawn():
    """Rejects a search that takes the first cell for u = 0, or falls off the end for u just below 1."""
    edges = torch.tensor([0.0, 2**-53, 0.5, 1 - 2**-52, 1 - 2**-53], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = torch.randn(7, generator=generator)
        logits[[0, 3, 6]] = -1e4  # exp(-1e4) is 0 even in float64
        model = Table(logits.expand(7, 7), torch.zeros(7))
        random = torch.cat([edges, torch.rand(20, generator=generator, dtype=torch.float64)])[:, None]
        prompts = Prompts(torch.full((len(random), 1), 2), torch.ones(len(random), dtype=torch.int64))
        drawn = write(model, prompts, random).tokens[:, 1].tolist()
        assert set(drawn) <= {1, 2, 4, 5}
        assert (drawn[0], drawn[4]) == (1, 5)


# Rows do not know of each other


def assert_same_samples(ours, theirs):
    assert responses_of(ours) == responses_of(theirs)
    torch.testing.assert_close(log_probs_of(ours), log_probs_of(theirs), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def world():
    """A model whose EOS comes at very different times, its prompts, and what it writes."""
    model, prompts = tiny_llama(), ragged_prompts(ROWS)
    return model, prompts, write(model, prompts, temperature=1.5, eos=end_of_some(model, prompts))


def again(world, prompts, random):
    model, all_prompts, _ = world
    return write(model, prompts, random, temperature=1.5, eos=end_of_some(model, all_prompts))


@pytest.mark.parametrize("drop_when", [0.0, 0.5, 1.0])
def test_dropping_finished_rows_changes_nothing(world, drop_when, monkeypatch):
    """Rejects a cache, mask, position or uniform that goes to the wrong row once another row has left."""
    assert len(set(world[2].sequence_lengths.tolist())) > 3
    monkeypatch.setattr(sampling, "DROP_WHEN", drop_when)
    assert_same_samples(again(world, world[1], RANDOM), world[2])


@pytest.mark.parametrize("rows", [range(ROWS - 1, -1, -1), range(5), range(5, ROWS), [1], [4]])
def test_permuted_split_or_alone(world, rows):
    """Rejects padding that leaks into a row, and a row that is told by its place in the batch."""
    rows = torch.tensor(list(rows))
    assert_same_samples(again(world, world[1].select(rows), RANDOM[rows]), world[2].select(rows))


@pytest.mark.parametrize("at_once", [1, 5, ROWS])
def test_so_many_rows_at_once(world, at_once):
    """Rejects rows of one piece that get the random numbers of another, and pieces put together in another order."""
    model, prompts, *_ = world
    model.sampled_at_once = at_once
    try:
        found = again(world, prompts, RANDOM)
    finally:
        del model.sampled_at_once
    assert_same_samples(found, world[2])


def test_wider_prompts_change_nothing(world):
    """Rejects reading the width of the prompts for their lengths."""
    wide = Prompts(torch.nn.functional.pad(world[1].tokens, (0, 20), value=7), world[1].lengths)
    found = again(world, wide, RANDOM)
    assert_same_samples(found, world[2])
    assert found.tokens.equal(world[2].tokens)


def test_each_token_has_its_own_random_number(world):
    """Rejects one column for all steps, and rows that are mixed up: a number decides its row from its step on."""
    row, step = 3, 2
    before = responses_of(world[2])
    assert len(before[row]) > step
    changed = RANDOM.clone()
    changed[row, step] = (changed[row, step] + 0.5) % 1
    after = responses_of(again(world, world[1], changed))
    assert after[row][:step] == before[row][:step]
    assert after[row][step] != before[row][step]
    assert after[:row] + after[row + 1 :] == before[:row] + before[row + 1 :]


def test_uniforms_depend_on_the_key_alone():
    """Rejects Python's salted hash, the global generator, and keys or rows that are not told apart."""
    one = uniforms(3, "ppo", 7, rows=4, steps=5)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    assert uniforms(3, "ppo", 7, rows=4, steps=5).equal(one)
    assert torch.random.get_rng_state().equal(state)
    assert uniforms(3, "ppo", 7, rows=9, steps=5)[:4].equal(one)
    others = [uniforms(*key, rows=4, steps=5) for key in [(4, "ppo", 7), (3, "sft", 7), (3, "ppo", 8), (3, "ppo")]]
    everything = torch.cat([one, *others]).flatten()
    assert len(everything.unique()) == len(everything)
    assert everything.min() >= 0 and everything.max() < 1
    assert round(float(uniforms(0, "pinned", rows=1, steps=1)), 6) == 0.603659  # found once; the same on every machine


# On a GPU


class Waits(SecondDevice):
    """Counts what makes a CPU wait for a GPU: a number, or a tensor, that comes back, and a size that hangs on them."""

    waits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        there = bool(args) and isinstance(args[0], Elsewhere)
        picked = args[1] if there and function in INDEXED else ()
        self.waits += there and (
            function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            or torch.device((kwargs or {}).get("device") or DEVICE).type == "cpu"
            or any(index is not None and index.dtype == torch.bool for index in picked)
        )
        return super().__torch_dispatch__(function, types, args, kwargs)


def test_a_gpu_is_waited_for_once_a_token(monkeypatch):
    """Rejects the longest row asked for in every layer, random numbers fetched step by step, and picks by a mask.

    With the lean decoder: Hugging Face's models wait by themselves, to look whether a mask is needed.
    """
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # there is none for this device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())

    def waits(steps: int) -> int:
        with MadeFromNumbers(), Waits() as device:
            model, prompts = tiny_llama().to(DEVICE), ragged_prompts(5)
            with lean_decoding(model, lean=True):
                write(model, Prompts(prompts.tokens.to(DEVICE), prompts.lengths.to(DEVICE)), RANDOM[:5, :steps], eos=-1)
        return device.waits

    assert waits(8) - waits(5) == 3


# What comes out


@pytest.mark.parametrize("pad", [PAD, "EOS"])
def test_right_padded_rows(world, pad):
    """Rejects masks made from token ids (PAD may equal EOS), an EOS that is lost, and tokens after it."""
    model, prompts, usual = world
    eos = end_of_some(model, prompts)
    pad = eos if pad == "EOS" else pad
    found = write(model, prompts, temperature=1.5, eos=eos, pad=pad)
    assert responses_of(found) == responses_of(usual)
    assert found.tokens.shape[1] == found.sequence_lengths.max()
    for row, response in enumerate(responses_of(found)):
        prompt, end = int(prompts.lengths[row]), int(found.sequence_lengths[row])
        assert found.tokens[row, :prompt].equal(prompts.tokens[row, :prompt])
        assert (found.tokens[row, end:] == pad).all()
        assert eos not in response[:-1]
        assert bool(found.has_eos[row]) == (response[-1] == eos)
        assert response[-1] == eos or len(response) == STEPS
        assert found.action_mask[row].nonzero().flatten().tolist() == list(range(prompt - 1, end - 1))
    assert {True, False} == set(found.has_eos.tolist())
    for field in fields(found):
        if field.name != "tokens":
            assert torch.equal(getattr(found, field.name), getattr(usual, field.name)), field.name


def test_an_eos_at_the_cap_counts():
    """Rejects has_eos read from the length: a row may end with its EOS at the very last step allowed."""
    table = Table(torch.eye(5).roll(1, 1) * 99, torch.zeros(5))  # after 3 comes 4
    prompts = Prompts(torch.tensor([[3]]), torch.tensor([1]))
    for eos, ends in ((4, True), (2, False)):
        found = write(table, prompts, torch.tensor([[0.5]], dtype=torch.float64), eos=eos)
        assert found.tokens.tolist() == [[3, 4]]
        assert found.has_eos.tolist() == [ends]
