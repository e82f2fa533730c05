"""The shape of a model, and how many weights it has: all that a budget needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FAMILIES = {"llama": "llama", "gpt_neox": "gpt_neox"}  # Transformers' model_type: whose operations are counted


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder of one of `FAMILIES`. A policy and a scorer of one shape differ in their head alone."""

    layers: int
    width: int  # of a state
    heads: int
    feed_forward: int  # width of the feed-forward part
    vocabulary: int
    kv_heads: int | None = None  # heads of keys and values; as many as of queries by default
    head_width: int | None = None  # width / heads by default
    rotated: int | None = None  # numbers of a head that turn with its position; all of them by default
    tied: bool = False  # the policy's head is its embedding
    family: str = "llama"

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ValueError(f"the operations of {self.family!r} are not known; those of {', '.join(FAMILIES)} are")
        for name, default in (("kv_heads", "heads"), ("head_width", "ordinary_head"), ("rotated", "head_width")):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(self, default))
        for name in ("layers", "width", "heads", "feed_forward", "vocabulary", "kv_heads", "head_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def of(cls, config: PretrainedConfig) -> ModelShape:
        """The shape that a Transformers config describes.

        raises  ValueError if the model is of no known family
        """
        if config.model_type not in FAMILIES:
            raise ValueError(
                f"the operations of {config.model_type!r} are not known; of {', '.join(FAMILIES)} they are"
            )
        return cls(
            layers=config.num_hidden_layers, width=config.hidden_size, heads=config.num_attention_heads,
            feed_forward=config.intermediate_size, vocabulary=config.vocab_size, tied=config.tie_word_embeddings,
            kv_heads=getattr(config, "num_key_value_heads", None), head_width=getattr(config, "head_dim", None),
            rotated=_rotated(config), family=FAMILIES[config.model_type],
        )  # fmt: skip

    @property
    def ordinary_head(self) -> int:
        return self.width // self.heads

    @property
    def queries(self) -> int:
        """Numbers in the queries of one state."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Numbers in the keys of one state, and in its values."""
        return self.kv_heads * self.head_width

    @property
    def embedding(self) -> int:
        """Weights of the embedding, and of a head that is not tied to it."""
        return self.vocabulary * self.width

    @property
    def norm(self) -> int:
        """Weights of one norm; a LayerNorm has a bias, too."""
        return self.width if self.family == "llama" else 2 * self.width

    @property
    def layer(self) -> int:
        """Weights of one layer."""
        linear = self.width * (2 * self.queries + 2 * self.keys)
        if self.family == "llama":
            return linear + 3 * self.width * self.feed_forward + 2 * self.norm
        biases = self.queries + 2 * self.keys + self.width + self.feed_forward + self.width
        return linear + 2 * self.width * self.feed_forward + biases + 2 * self.norm

    @property
    def body(self) -> int:
        """Weights without a head."""
        return self.embedding + self.layers * self.layer + self.norm

    @property
    def policy(self) -> int:
        """Weights of a causal language model."""
        return self.body + (0 if self.tied else self.embedding)

    @property
    def scorer(self) -> int:
        """Weights of a critic or a reward model: one number a state."""
        return self.body + self.width

    @property
    def largest_in_a_layer(self) -> int:
        """Numbers in the largest single weight of a layer; GPT-NeoX has queries, keys and values in one."""
        projections = self.queries + (2 * self.keys if self.family == "gpt_neox" else 0)
        return self.width * max(self.feed_forward, projections)


def _rotated(config: PretrainedConfig) -> int | None:
    """Pairs of numbers turn. Where Transformers keeps their share of a head has changed with its version."""
    share = getattr(config, "rotary_pct", None) or getattr(config, "rope_parameters", {}).get("partial_rotary_factor")
    numbers = share and int(config.hidden_size // config.num_attention_heads * share)
    return numbers and numbers + numbers % 2
