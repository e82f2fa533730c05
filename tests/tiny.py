"""Models with random weights that run in milliseconds, ragged batches for them, and a model that is one table."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from rlhf_lib.engine.batching import make_texts, pad_rows
from rlhf_lib.maths.records import Prompts, Texts

VOCAB, WIDTH, PAD, EOS = 30, 32, 0, 1
SPECIAL = dict(pad_token_id=PAD, eos_token_id=EOS, bos_token_id=2)
SIZES = dict(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
SPREAD = 0.3  # of the weights: wide enough that tokens differ in probability


def tiny_llama(seed: int = 0, *, vocab: int = VOCAB, attention_dropout: float = 0.0) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab, num_key_value_heads=2, max_position_embeddings=128, initializer_range=SPREAD,
        attention_dropout=attention_dropout, **SIZES, **SPECIAL,
    )  # fmt: skip
    return _seeded(LlamaForCausalLM, config, seed)


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """Learned positions: one that is off by one gives other numbers (rotary ones only count differences)."""
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=128, initializer_range=SPREAD, **SPECIAL
    )
    return _seeded(GPT2LMHeadModel, config, seed)


def tiny_neox(seed: int = 0) -> GPTNeoXForCausalLM:
    """Other names for everything, as in Pythia."""
    config = GPTNeoXConfig(vocab_size=VOCAB, max_position_embeddings=128, initializer_range=SPREAD, **SIZES, **SPECIAL)
    return _seeded(GPTNeoXForCausalLM, config, seed)


MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "neox": tiny_neox}


def _seeded(make, config, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(config).eval()


def disturb(model: nn.Module, by: float = 0.05, seed: int = 9) -> nn.Module:
    """Add noise to every weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += by * torch.randn(weight.shape, generator=generator)
    return model


def random_rows(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Token ids, never PAD nor EOS."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def ragged_prompts(rows: int, seed: int = 0) -> Prompts:
    """Of 1 to 6 tokens."""
    return Prompts(*pad_rows(random_rows([1 + (5 * row) % 6 for row in range(rows)], seed), pad_token_id=PAD))


def ragged_texts(rows: int = 7, seed: int = 0) -> Texts:
    """Prompts of 1 to 6 tokens, responses of 1 to 7; two of three end with EOS."""
    prompts = random_rows([1 + (5 * row) % 6 for row in range(rows)], seed)
    responses = random_rows([1 + (3 * row) % 7 for row in range(rows)], seed + 1)
    responses = [[*response[:-1], EOS] if row % 3 else response for row, response in enumerate(responses)]
    return make_texts(prompts, responses, pad_token_id=PAD, eos_token_id=EOS)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every weight."""
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(one[name], other[name]) for name in one)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest result of any operation had."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor))])
        return result
