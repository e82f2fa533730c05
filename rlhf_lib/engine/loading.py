"""Models from a folder or the Hub, whole or not at all: a weight that is missing is never replaced by a random one."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from . import hub
from .files import DamagedError, brief


def load_model(kind: type, source: str | Path, **options) -> nn.Module:
    """`kind.from_pretrained` in float32 and evaluation mode; dropout is off everywhere, as in N+.

    raises  DamagedError naming the source if it cannot be loaded, lacks weights, or holds some that are not finite
    """
    try:
        model, found = kind.from_pretrained(
            *_place(source), dtype=torch.float32, output_loading_info=True, **_gguf(source), **options
        )
    except Exception as error:  # each format and architecture fails in its own way
        raise DamagedError(_why(source, error)) from error
    _refuse(source, "it lacks the weights", found["missing_keys"])
    not_finite = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    _refuse(source, "numbers are not finite in the weights", not_finite)
    return _plain(model).eval()


def load_tokenizer(source: str | Path):
    """The tokenizer of a model; PAD is EOS where it has none, as those of Pythia and Llama.

    raises  DamagedError naming the source
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(*_place(source), **_gguf(source))
    except Exception as error:  # likewise
        raise DamagedError(_why(source, error)) from error
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def save_tokenizer(tokenizer, folder: str | Path) -> None:
    """So that Transformers 4 reads it, too: a tokenizer without a class of its own gets one from 5 that 4 has not."""
    tokenizer.save_pretrained(folder)
    config = Path(folder) / "tokenizer_config.json"
    known = config.read_text(encoding="utf-8").replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"')
    config.write_text(known, encoding="utf-8")


def load_config(source: str | Path):
    """The config of a model, without its weights.

    raises  DamagedError naming the source
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(*_place(source), **_gguf(source))
    except Exception as error:  # likewise
        raise DamagedError(_why(source, error)) from error


def _is_gguf(source: str | Path) -> bool:
    return Path(source).suffix == ".gguf"


def _place(source: str | Path) -> tuple[str | Path]:
    """Where Transformers looks: of a GGUF file, its folder."""
    return (Path(source).parent,) if _is_gguf(source) else (source,)


def _gguf(source: str | Path) -> dict[str, str]:
    return {"gguf_file": Path(source).name} if _is_gguf(source) else {}


def _plain(model: nn.Module) -> nn.Module:
    """Weights from GGUF are float32 by now; but a model that remembers where they came from cannot be saved."""
    if getattr(model, "hf_quantizer", None) is None:
        return model
    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain


def _why(source: str | Path, error: Exception) -> str:
    if Path(source).exists():
        return f"the model in {source} cannot be loaded ({brief(error)}): make or copy that folder again"
    what, advice = hub.why(error, str(source))
    return (
        f"{source} is no folder here, and no model of that name could be fetched ({what}): {advice}; or give the path "
        "of a model's folder"
    )


def _refuse(source: str | Path, complaint: str, names: object) -> None:
    if names := sorted(names):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise DamagedError(
            f"the model in {source} cannot be used: {complaint} {', '.join(names[:3])}{more}; make or copy that folder "
            "again"
        )
