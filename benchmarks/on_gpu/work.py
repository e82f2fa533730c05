"""What is measured: the shapes of real models with random weights, texts of TL;DR's size, and how they are computed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import work as against_trl

PAD, BOS, EOS = against_trl.PAD, against_trl.BOS, against_trl.EOS

LLAMA_1B = dict(  # Llama-3.2-1B
    model_type="llama", vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
    num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True,
)  # fmt: skip
SMOLLM2 = dict(  # SmolLM2-135M
    model_type="llama", vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
    num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
)  # fmt: skip
PYTHIA_410M = dict(
    model_type="gpt_neox", vocab_size=50_304, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
    num_attention_heads=16, tie_word_embeddings=False,
)  # fmt: skip
SMALL = dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
MOST_POSITIONS = 2048
PROMPT_END = EOS + 1  # the last token of every prompt


@dataclass(frozen=True, kw_only=True)
class Work:
    """PPO updates of policy, critic, reference and reward model of one shape."""

    shape: dict  # of a Transformers config
    batch: int = 64  # episodes an update
    prompt: int = 512  # tokens, of every prompt
    response: int = 53  # tokens at most; random models hardly ever end earlier
    epochs: int = 4  # passes over the rollout, one optimiser step each
    updates: int = 3  # the first is not counted
    sampled_at_once: int = 128  # rows, as in the presets for models of this size
    micro_batch: int | None = None  # rows in memory at once; None: as many as the memory budget says will fit
    precision: str = "bfloat16"  # as in engine.precision
    trainable_layers: int | None = None  # at the top, the rest is held once by all models; None: all of them learn
    memory_gib: float | None = None  # what the GPU is said to have, at most; None: what it has

    @property
    def texts(self) -> int:
        """Tokens in the rows of an update."""
        return self.batch * (self.prompt + self.response)


def small(work: Work) -> Work:
    """The same kind of work in a size that a CPU does in seconds."""
    of_groups = {"num_key_value_heads": 2} if "num_key_value_heads" in work.shape else {}
    few = min(work.trainable_layers, 1) if work.trainable_layers else None
    return replace(
        work, shape=work.shape | SMALL | of_groups, batch=work.batch // 8, prompt=24, response=6, epochs=2, updates=2,
        micro_batch=work.micro_batch and 2, sampled_at_once=work.sampled_at_once // 8, trainable_layers=few,
    )  # fmt: skip


def config_of(work: Work):
    """Transformers' config of a model of this shape."""
    from transformers import AutoConfig

    shape = {name: value for name, value in work.shape.items() if name != "model_type"}
    return AutoConfig.for_model(
        work.shape["model_type"], **shape, max_position_embeddings=MOST_POSITIONS, num_labels=1,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS,
    )  # fmt: skip


def for_trl(work: Work, micro_batch: int) -> against_trl.Work:
    """The same work as the comparison with TRL describes it."""
    shape = work.shape
    return against_trl.Work(
        hidden=shape["hidden_size"], layers=shape["num_hidden_layers"], heads=shape["num_attention_heads"],
        kv_heads=shape["num_key_value_heads"], inter=shape["intermediate_size"], vocab=shape["vocab_size"],
        prompt=work.prompt, response=work.response, batch=work.batch, micro_batches=work.batch // micro_batch,
        epochs=work.epochs,
    )  # fmt: skip
