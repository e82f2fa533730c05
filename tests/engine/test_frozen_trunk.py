"""A trunk that all models share: the same numbers, one copy, and each text read once."""

import copy

import pytest
import torch

from rlhf_lib.engine import checkpoint, frozen_trunk, models
from rlhf_lib.engine.batching import pad_rows
from rlhf_lib.engine.files import DamagedError
from rlhf_lib.engine.frozen_trunk import FrozenTrunk
from rlhf_lib.engine.optimiser import make_optimizer
from rlhf_lib.engine.sampling import sample, uniforms
from rlhf_lib.maths.masking import mask_from_lengths
from rlhf_lib.maths.records import trim
from tests.tiny import EOS, PAD, disturb, ragged_prompts, ragged_texts, tiny_llama, tiny_neox

TEXTS = ragged_texts()
REAL = mask_from_lengths(TEXTS.sequence_lengths, TEXTS.tokens.shape[1])
PROMPT_END = [7, 8]
# Transformers warns of an argument before it refuses it.
pytestmark = pytest.mark.filterwarnings("error:.*is deprecated and will be removed in version:FutureWarning")


def new_trunk(pad_token_id: int = PAD, **rest) -> FrozenTrunk:
    return FrozenTrunk(trainable_layers=1, pad_token_id=pad_token_id, **rest)


def runs_of(trunk: FrozenTrunk) -> list[int]:
    """Grows by one number for each time that the trunk runs: tokens of a row."""
    runs: list[int] = []
    trunk.body.layers[0].register_forward_hook(lambda _, inputs, __: runs.append(inputs[0].shape[1]))
    return runs


def texts_of_two_prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three texts below a prompt of 5 tokens, one below a prompt of 3, padded with EOS; one quotes the prompt's end."""
    one, other = [9, 3, 4, *PROMPT_END], [5, *PROMPT_END]
    rows = [[*one, 11, 12, EOS], [*one, 13, EOS], [*other, 14, 15, 16, EOS], [*one, *PROMPT_END, EOS]]
    tokens, lengths = pad_rows(rows, pad_token_id=EOS)
    return tokens, mask_from_lengths(lengths, tokens.shape[1])


@pytest.mark.parametrize("make", [tiny_llama, tiny_neox])
def test_the_same_numbers(make):
    """Rejects a layer that runs twice or not at all, a final norm in the middle, and positions that start anew."""
    want = models.hidden_states(make(), TEXTS.tokens)
    found = models.hidden_states(new_trunk().adopt(make()), TEXTS.tokens)
    assert torch.allclose(found[REAL], want[REAL], atol=1e-5)


def test_eos_that_is_padding():
    """Rejects an EOS that is taken for padding: the state that the reward model reads would be 0."""
    tokens = torch.where(REAL, TEXTS.tokens, EOS)
    want = models.hidden_states(tiny_llama(), tokens)
    found = models.hidden_states(new_trunk(EOS).adopt(tiny_llama()), tokens)
    assert torch.allclose(found[REAL], want[REAL], atol=1e-5)


def test_each_text_is_read_once():
    """Rejects a memory that knows rows by their place, their width or the model that asks, and one that forgets."""
    trunk = new_trunk()
    policy = trunk.adopt(tiny_llama())
    scorer = trunk.adopt(models.scorer_from_policy(policy, seed=0))
    reference, runs = models.freeze(copy.deepcopy(policy)), runs_of(trunk)
    models.hidden_states(policy, TEXTS.tokens)
    assert len(runs) == len(TEXTS.tokens)
    order = torch.tensor([3, 0, 2])
    part = trim(TEXTS.select(order), int(TEXTS.sequence_lengths[order].max()))
    for model in (policy, reference, scorer):
        models.hidden_states(model, part.tokens)
    assert len(runs) == len(TEXTS.tokens)


def test_a_text_does_not_depend_on_its_batch():
    """Rejects a resumed run whose numbers differ in the last bit because other rows stood beside."""
    one, other = new_trunk(), new_trunk()
    one.adopt(tiny_llama()), other.adopt(tiny_llama())
    together = one.states(TEXTS.tokens)
    for row in range(len(TEXTS.tokens)):
        alone = other.states(TEXTS.tokens[row : row + 1])[0]
        assert torch.equal(alone[REAL[row]], together[row][REAL[row]])


@pytest.mark.parametrize("pad", [PAD, EOS])
def test_a_text_does_not_depend_on_the_width_of_its_batch(pad):
    """Rejects a text that is another one, with other last bits, where it is the longest and no padding follows it."""
    text = [9, 3, 4, *PROMPT_END, 11, 12, EOS] if pad != EOS else [9, 3, 4, *PROMPT_END, 11, 12, 13]
    trunk = new_trunk(pad, prompt_end=PROMPT_END)
    trunk.adopt(tiny_llama())
    runs = runs_of(trunk)
    alone, beside = (trunk.states(torch.tensor([text + [pad] * more])) for more in (0, 3))
    assert torch.equal(alone[0], beside[0, : len(text)]) and len(runs) == 2


@pytest.mark.parametrize("make", [tiny_llama, tiny_neox])
def test_a_prompt_is_read_once(make):
    """Rejects texts that start anew behind their prompt (positions, attention), and a prompt that each of them reads.

    The prompts have 5 and 3 tokens. Behind the first, two texts add 3 and 2, side by side; behind the other one adds 4.
    The last ends its prompt later, at 7 tokens, and adds 1.
    """
    tokens, real = texts_of_two_prompts()
    trunk = new_trunk(EOS, prompt_end=PROMPT_END)
    policy = trunk.adopt(make())
    runs = runs_of(trunk)
    found, want = (models.hidden_states(model, tokens) for model in (policy, make()))
    assert torch.allclose(found[real], want[real], atol=1e-5)
    assert runs == [5, 3, 3, 4, 7, 1]


def test_a_text_does_not_depend_on_who_read_its_prompt():
    """Rejects a resumed run that differs in the last bit because no sampler had read the prompts before."""
    tokens = texts_of_two_prompts()[0][:2]
    one, other = new_trunk(EOS, prompt_end=PROMPT_END), new_trunk(EOS, prompt_end=PROMPT_END)
    policy, _ = one.adopt(tiny_llama()), other.adopt(tiny_llama())
    draw = uniforms("trunk", rows=2, steps=3)
    sample(policy, tokens[:, :5], torch.tensor([5, 5]), draw, temperature=1.0, eos_token_id=EOS, pad_token_id=EOS)
    assert torch.equal(one.states(tokens), other.states(tokens))


def test_a_text_does_not_depend_on_texts_below_other_prompts():
    """Rejects a resumed run that differs in the last bit because its batches mix other posts, or because memory was
    short and some texts of a post had to be read again.
    """
    tokens, _ = texts_of_two_prompts()
    one, other = new_trunk(EOS, prompt_end=PROMPT_END), new_trunk(EOS, prompt_end=PROMPT_END)
    one.adopt(tiny_llama()), other.adopt(tiny_llama())
    together = one.states(tokens)
    assert torch.equal(other.states(tokens[:2]), together[:2])
    assert torch.equal(other.states(tokens[2:]), together[2:])
    first = next(row for row in one.known if row[5:8] == (11, 12, EOS))
    del one.known[first]
    runs = runs_of(one)
    assert torch.equal(one.states(tokens), together)
    assert runs == [3]


def test_what_there_is_no_room_for(monkeypatch):
    """Rejects a memory that grows without end, one that drops what it still uses, and bytes counted without the keys
    and values of prompts: of 5 tokens they are as many as the states, 2 * 16 numbers in the one layer below the top.
    """
    tokens, _ = texts_of_two_prompts()
    monkeypatch.setattr(frozen_trunk, "STATES_BYTES", 4 * 8 * 32)
    monkeypatch.setattr(frozen_trunk, "PROMPTS_BYTES", 4 * 5 * (32 + 32))
    trunk, roomy = new_trunk(EOS, prompt_end=PROMPT_END), FrozenTrunk(trainable_layers=1, pad_token_id=EOS)
    trunk.adopt(tiny_llama()), roomy.adopt(tiny_llama())
    trunk.states(tokens[:1])
    assert trunk.known.currsize == 4 * (5 + 3) * 32 and trunk.known_prompts.currsize == 4 * 5 * (32 + 32)
    trunk.states(tokens[2:3])
    assert list(trunk.known) == [(5, 7, 8), (5, 7, 8, 14, 15, 16, EOS)] and list(trunk.known_prompts) == [(5, 7, 8)]
    assert trunk.known.currsize == 4 * (3 + 4) * 32 and trunk.known_prompts.currsize == 4 * 3 * (32 + 32)
    torch.testing.assert_close(trunk.states(tokens), roomy.states(tokens), rtol=1e-4, atol=1e-5)
    assert trunk.known.currsize <= 4 * 8 * 32


def test_what_is_remembered_holds_nothing_else():
    """Rejects states that are a part of those of all texts read beside, which then stay as long as one of them does."""
    trunk = new_trunk(EOS, prompt_end=PROMPT_END)
    trunk.adopt(tiny_llama())
    trunk.states(texts_of_two_prompts()[0])
    assert all(states.untyped_storage().nbytes() == states.nbytes for states in trunk.known.values())


def test_keys_and_values_go_first(monkeypatch):
    """Rejects texts that are read again only because their prompt's keys and values had to go."""
    tokens, _ = texts_of_two_prompts()
    monkeypatch.setattr(frozen_trunk, "PROMPTS_BYTES", 0)
    trunk = new_trunk(EOS, prompt_end=PROMPT_END)
    trunk.adopt(tiny_llama())
    before, runs = trunk.states(tokens), runs_of(trunk)
    assert torch.equal(trunk.states(tokens), before) and not runs


def test_one_copy_that_never_learns():
    """Rejects a deep copy with a trunk of its own, a trunk with gradients, and a top that is shared by mistake."""
    trunk = new_trunk()
    policy = trunk.adopt(tiny_llama())
    reference = copy.deepcopy(policy)
    scorer = trunk.adopt(models.scorer_from_policy(policy, seed=0))
    critic = copy.deepcopy(scorer)
    for model in (policy, reference, scorer, critic):
        assert model.base_model.layers[0] is trunk.body.layers[0]
        assert model.get_input_embeddings() is policy.get_input_embeddings()
    before = models.hidden_states(reference, TEXTS.tokens)
    models.hidden_states(policy, TEXTS.tokens).sum().backward()
    assert all(weight.grad is None for weight in trunk.body.parameters())
    with torch.no_grad():
        for weight in policy.base_model.layers[1].parameters():
            weight += 1
    assert torch.equal(models.hidden_states(reference, TEXTS.tokens), before)
    assert not torch.equal(models.hidden_states(policy, TEXTS.tokens)[REAL], before[REAL])


def test_another_trunk_is_refused():
    """Rejects the silent exchange of a model's lower layers for those of another one."""
    trunk = new_trunk()
    trunk.adopt(tiny_llama())
    with pytest.raises(DamagedError, match="only top layers train"):
        trunk.adopt(disturb(tiny_llama()))


@pytest.mark.parametrize("make", [tiny_llama, tiny_neox])
def test_sampling_is_that_of_the_whole_model(make):
    """Rejects a cache of the top layers alone, prompts on the wrong edge, and a prompt that is read by every row.

    The four prompts have 1, 6, 5 and 4 tokens; the same ones again cost nothing but the tokens that are written.
    """
    prompts = ragged_prompts(4)
    draw = uniforms("trunk", rows=8, steps=5)
    options = dict(temperature=1.0, eos_token_id=EOS, pad_token_id=PAD)
    twice = prompts.tokens.repeat(2, 1), prompts.lengths.repeat(2)
    trunk = new_trunk()
    policy = trunk.adopt(make())
    runs = runs_of(trunk)
    want, found = (sample(model, *twice, draw, **options) for model in (make(), copy.deepcopy(policy)))
    assert torch.equal(found.tokens, want.tokens)
    assert torch.allclose(found.sampler_log_probs, want.sampler_log_probs, atol=1e-5)
    assert sorted(runs[:4]) == [1, 4, 5, 6] and runs[4] == 1


def test_saved_whole(tmp_path):
    """Rejects a folder that plain from_pretrained cannot load, or that lacks the trunk or its tied head."""
    policy = new_trunk().adopt(tiny_llama())
    policy.save_pretrained(tmp_path)
    want, found = models.hidden_states(policy, TEXTS.tokens), models.hidden_states(
        models.load_policy(tmp_path), TEXTS.tokens
    )  # fmt: skip
    assert torch.allclose(found[REAL], want[REAL], atol=1e-5)


def test_checkpoints_hold_what_learns(tmp_path):
    """Rejects half a gigabyte of frozen weights in every checkpoint, and a top layer that is not restored."""
    policy = new_trunk().adopt(tiny_llama())
    optimizer = make_optimizer([policy.parameters()], learning_rate=1e-3, eps=1e-5)
    checkpoint.save(tmp_path, 1, {"policy": policy}, optimizer, {})
    saved = checkpoint.latest(tmp_path)
    assert set(saved.tensors) == {
        f"policy/{name}" for name, weight in policy.named_parameters() if weight.requires_grad
    }
    other = new_trunk().adopt(tiny_llama())
    with torch.no_grad():
        other.base_model.norm.weight += 1
    saved.restore({"policy": other}, make_optimizer([other.parameters()], learning_rate=1e-3, eps=1e-5))
    assert torch.equal(other.base_model.norm.weight, policy.base_model.norm.weight)
