"""A model and its tokenizer from a GGUF file, as llama.cpp writes it: what the smollm2 world starts from."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rlhf_lib.engine.files import DamagedError
from rlhf_lib.engine.loading import load_model, load_tokenizer
from tests.tiny import tiny_llama

gguf = pytest.importorskip("gguf", reason="the package gguf writes the file that this test reads: pip install gguf")

SPECIAL_TOKENS = ["<unk>", "<s>", "<end>"]
MERGES = [("b", "i"), ("bi", "k"), ("bik", "e"), ("Ġ", "bike"), ("Ġ", "m"), ("Ġm", "y")]
TEXT = "my bike , my é <end>"
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def byte_tokenizer() -> Tokenizer:
    """Every byte, a few merges, and three special tokens in front: SmolLM2's kind."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL_TOKENS, *alphabet, *(a + b for a, b in MERGES)]
    tokenizer = Tokenizer(BPE(vocab={word: place for place, word in enumerate(words)}, merges=MERGES))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def side_by_side(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Queries or keys as llama.cpp wants them: rows that rotate together as neighbours, not half a head apart."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write_gguf(path, model, tokenizer: Tokenizer, change=side_by_side, without=()) -> None:
    """A Llama in float32, with its tokenizer."""
    config, words = model.config, tokenizer.get_vocab()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(words, key=words.get))
    writer.add_token_types([3] * len(SPECIAL_TOKENS) + [1] * (len(words) - len(SPECIAL_TOKENS)))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    for role, place in (("unk", 0), ("bos", 1), ("eos", 2), ("pad", 2)):
        getattr(writer, f"add_{role}_token_id")(place)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        name = gguf_name(name)
        if name not in without:
            kind = name.split(".")[-2]
            writer.add_tensor(name, (change(weight, heads[kind]) if kind in heads else weight).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """Of a weight that Hugging Face calls `name`."""
    outside = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
               "lm_head.weight": "output.weight"}  # fmt: skip
    if name in outside:
        return outside[name]
    _, _, layer, *path, weight = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(path)]}.{weight}"


@pytest.fixture
def source():
    """Heads in groups, and a head of its own beside the embedding."""
    tokenizer = byte_tokenizer()
    return tiny_llama(vocab=tokenizer.get_vocab_size()), tokenizer


def test_the_same_model_and_tokens(tmp_path, source):
    """Rejects queries and keys in llama.cpp's order, heads that are counted wrongly, weights in half precision, tokens
    with other numbers, a tokenizer without PAD or that pads on the left, and a model that cannot be saved.
    """
    model, tokenizer = source
    write_gguf(tmp_path / "model.gguf", model, tokenizer)
    found = load_model(AutoModelForCausalLM, tmp_path / "model.gguf")
    read = load_tokenizer(tmp_path / "model.gguf")
    tokens = read(TEXT).input_ids
    assert tokens == tokenizer.encode(TEXT).ids and read.decode(tokens) == TEXT
    assert read.eos_token == read.pad_token == "<end>" and read.padding_side == "right"
    with torch.no_grad():
        logits = [one(torch.tensor([tokens])).logits for one in (found, model)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    found.save_pretrained(tmp_path / "folder")
    read.save_pretrained(tmp_path / "folder")
    again = load_model(AutoModelForCausalLM, tmp_path / "folder")
    assert all(weight.equal(again.state_dict()[name]) for name, weight in found.state_dict().items())
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "folder").encode(TEXT) == tokens


def test_the_order_matters(tmp_path, source):
    """Rejects a comparison above that could not tell the two orders apart."""
    model, tokenizer = source
    write_gguf(tmp_path / "model.gguf", model, tokenizer, change=lambda weight, heads: weight)
    found = load_model(AutoModelForCausalLM, tmp_path / "model.gguf")
    tokens = torch.tensor([tokenizer.encode(TEXT).ids])
    with torch.no_grad():
        assert (found(tokens).logits - model(tokens).logits).abs().max() > 0.1


@pytest.mark.parametrize("damage", ["a weight is missing", "cut short"])
def test_a_damaged_file_is_refused(tmp_path, source, damage):
    """Rejects random weights in the place of missing ones, and a traceback."""
    path = tmp_path / "model.gguf"
    write_gguf(path, *source, without=["blk.1.ffn_up.weight"] if damage == "a weight is missing" else ())
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DamagedError, match=r"model\.gguf"):
        load_model(AutoModelForCausalLM, path)
