"""The work that the benchmarks measure: models, prompts and settings of one PPO update, the same for every system."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

PAD, BOS, EOS = 0, 1, 2  # of the random models


@dataclass(frozen=True, kw_only=True)
class Work:
    """Shapes of one PPO update. With `tiny_tldr` models and prompts are the shipped ones, else random."""

    tiny_tldr: bool = False
    hidden: int = 128  # width of the models
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None  # of keys and values; as many as of queries by default
    inter: int = 352  # width of the feed-forward part
    vocab: int = 4096
    prompt: int = 48  # tokens; the shipped posts have their own lengths
    response: int = 24  # tokens at most
    batch: int = 32  # episodes an update
    micro_batches: int = 2  # pieces of a batch that are in memory at once
    epochs: int = 4  # one optimiser step each
    lean: bool = True  # of ours alone: with `ppo.lean`

    @property
    def rows(self) -> int:
        """Of a micro-batch."""
        return self.batch // self.micro_batches


@dataclass(frozen=True)
class Models:
    """Each with weights of its own. The reference is whatever a system makes of the policy."""

    policy: nn.Module
    critic: nn.Module
    reward_model: nn.Module


# (a), (b), (c) of the comparison: fixed lengths, a wide vocabulary, and texts that end where they end
WORKS = {
    "fixed lengths": Work(),
    "wide vocabulary": Work(vocab=49152, layers=2, prompt=32, response=32, batch=16, micro_batches=1),
    "natural lengths": Work(tiny_tldr=True, inter=256, vocab=169, batch=128, micro_batches=4),
}


def make_models(work: Work, seed: int) -> Models:
    """The models of this work; the random ones are Llamas that tie input and output embeddings."""
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification

    from rlhf_lib.engine.models import load_policy, load_scorer
    from rlhf_lib.worlds.tiny_tldr.world import ASSETS

    if work.tiny_tldr:
        policy, critic, reward_model = (
            load_policy(ASSETS / "sft"), load_scorer(ASSETS / "reward_model"), load_scorer(ASSETS / "reward_model"),
        )  # fmt: skip
    else:
        torch.manual_seed(seed)
        config = llama_config(work)
        policy = LlamaForCausalLM(config).eval()
        critic, reward_model = (LlamaForSequenceClassification(config).eval() for _ in range(2))
    return Models(policy, critic, reward_model)


def llama_config(work: Work):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=work.vocab, hidden_size=work.hidden, intermediate_size=work.inter, num_hidden_layers=work.layers,
        num_attention_heads=work.heads, num_key_value_heads=work.kv_heads or work.heads,
        max_position_embeddings=max(512, work.prompt + work.response), num_labels=1,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, tie_word_embeddings=True,
    )  # fmt: skip


def make_prompts(work: Work, batches: int, seed: int) -> list[list[int]]:
    """Prompts for so many batches, as token ids."""
    if work.tiny_tldr:
        from rlhf_lib.worlds.tiny_tldr.world import TinyTLDR

        world = TinyTLDR(seed)
        return world.encode_prompts(world.posts("ppo", work.batch * batches))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(EOS + 1, work.vocab, (work.batch * batches, work.prompt), generator=generator).tolist()


def make_tokenizer(work: Work):
    """What names PAD and EOS, and pads prompts."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    if work.tiny_tldr:
        from rlhf_lib.worlds.tiny_tldr.tokenizer import make_tokenizer

        return make_tokenizer()
    words = Tokenizer(models.WordLevel({f"t{number}": number for number in range(work.vocab)}, unk_token="t3"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=f"t{PAD}", bos_token=f"t{BOS}", eos_token=f"t{EOS}"
    )
