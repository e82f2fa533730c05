"""The shipped files: the ones named, small, readable offline, and consistent with each other."""

import json
import shutil
import socket

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_lib.engine.loading import save_tokenizer
from rlhf_lib.pipeline import assets
from rlhf_lib.pipeline.settings import PRESETS
from rlhf_lib.worlds.tiny_tldr.tokenizer import make_tokenizer
from rlhf_lib.worlds.tiny_tldr.world import TinyTLDR

LARGEST = 3_000_000  # bytes


@pytest.fixture(scope="module")
def rollout():
    return assets.load_rollout()


def test_the_files_are_the_ones_named():
    """Rejects a file that was rebuilt, edited, added or lost without a new manifest."""
    assert assets.changed_files() == []


def test_a_changed_file_is_noticed(tmp_path, monkeypatch):
    """Rejects a comparison that overlooks a changed byte, a file too many, or one too few."""
    folder = tmp_path / "assets"
    shutil.copytree(assets.ASSETS, folder)
    monkeypatch.setattr(assets, "ASSETS", folder)
    monkeypatch.setattr(assets, "MANIFEST", folder / "manifest.json")
    content = (folder / "base/config.json").read_bytes()
    (folder / "base/config.json").write_bytes(content.replace(b" ", b"\n", 1))
    (folder / "sft/config.json").unlink()
    (folder / "extra.json").write_text("{}")
    assert assets.changed_files() == ["base/config.json", "extra.json", "sft/config.json"]


def test_each_file_is_small():
    """Rejects optimiser states, float64 weights or a fat head in the package."""
    sizes = {path.name: path.stat().st_size for path in assets.ASSETS.rglob("*") if path.is_file()}
    assert {name for name, size in sizes.items() if size >= LARGEST} == set()
    assert not [name for name in sizes if not name.endswith((".safetensors", ".json", ".jsonl", ".html", ".jinja"))]


@pytest.mark.parametrize("name", ["base", "sft", "reward_model"])
def test_tokenizer_of_the_shipped_models(name):
    """Rejects models made with another vocabulary than the world's: every id would mean another word."""
    from transformers import AutoTokenizer

    shipped, ours = AutoTokenizer.from_pretrained(assets.ASSETS / name), make_tokenizer()
    assert shipped.get_vocab() == ours.get_vocab()


def test_tokenizers_that_transformers_4_reads(tmp_path):
    """Rejects the class that Transformers 5 names and 4 has not, in what is shipped and in what a run saves."""
    save_tokenizer(make_tokenizer(), tmp_path)
    for folder in (tmp_path, *(assets.ASSETS / name for name in ("base", "sft", "reward_model"))):
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_loading_needs_no_network(monkeypatch):
    """Rejects a configuration that points to the Hub."""

    def refuse(*args):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    policy = AutoModelForCausalLM.from_pretrained(assets.ASSETS / "sft")
    scorer = AutoModelForSequenceClassification.from_pretrained(assets.ASSETS / "reward_model")
    assert scorer.config.num_labels == 1
    assert policy.dtype == scorer.dtype == torch.float32


def test_rows_of_the_rollout_are_the_posts_named(rollout):
    """Rejects a rollout of other posts than those its docstring names, and padding that is no padding."""
    tokenizer, posts = make_tokenizer(), TinyTLDR(0).posts("rollout", assets.ROLLOUT_POSTS)
    spans = zip(rollout.tokens.tolist(), rollout.prompt_lengths.tolist(), strict=True)
    assert [tokenizer.decode(row[:end]) for row, end in spans] == [post.prompt for post in posts]
    last = rollout.tokens.gather(1, rollout.sequence_lengths[:, None] - 1).squeeze(1)
    assert torch.equal(last == tokenizer.eos_token_id, rollout.has_eos)
    counts = rollout.sequence_lengths - rollout.prompt_lengths
    assert torch.equal(rollout.action_mask.sum(1), counts)
    place = torch.arange(rollout.tokens.shape[1])
    assert (rollout.tokens[place >= rollout.sequence_lengths[:, None]] == tokenizer.pad_token_id).all()


@torch.no_grad()
def test_the_shipped_models_made_the_rollout(rollout):
    """Rejects a rollout of other weights, another temperature, or a shift by one, against plain Transformers."""
    policy = AutoModelForCausalLM.from_pretrained(assets.ASSETS / "sft").eval()
    temperature = PRESETS["tiny"].ppo.temperature
    log_probs = (policy(input_ids=rollout.tokens).logits / temperature).log_softmax(-1)
    for row, mask in enumerate(rollout.action_mask):
        states = mask.nonzero().squeeze(1)
        chosen = rollout.tokens[row, states + 1]
        expected = log_probs[row, states, chosen]
        entropies = torch.distributions.Categorical(logits=log_probs[row, states]).entropy()
        for recorded in (rollout.old_log_probs, rollout.ref_log_probs, rollout.sampler_log_probs):
            torch.testing.assert_close(recorded[row, states], expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(rollout.old_entropies[row, states], entropies, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_shipped_reward_model_scored_the_rollout(rollout):
    """Rejects values and scores of another model, or without its offset; the score is Transformers' own, at the end."""
    scorer = AutoModelForSequenceClassification.from_pretrained(assets.ASSETS / "reward_model").eval()
    offset = scorer.config.reward_offset
    scores = scorer(input_ids=rollout.tokens).logits.squeeze(1) - offset
    torch.testing.assert_close(rollout.scores, scores, rtol=0, atol=1e-4)
    values = scorer.score(scorer.model(input_ids=rollout.tokens).last_hidden_state).squeeze(2) - offset
    real = torch.arange(rollout.tokens.shape[1]) < rollout.sequence_lengths[:, None]
    torch.testing.assert_close(rollout.values[real], values[real], rtol=0, atol=1e-4)
