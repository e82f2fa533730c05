"""One token a word, in Hugging Face's format. Tokens carry their leading space: decoding gives the exact text back."""

from __future__ import annotations

import re
from string import Formatter

from . import grammar

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
WORD = r" ?[\w/;:]+| ?[.,?!]|\n\n"


def vocabulary() -> list[str]:
    """Every token, special ones first; the place in this list is the token id."""
    words = dict.fromkeys(word for text in _texts() for word in re.findall(WORD, text))
    return [PAD, EOS, UNK, *words]


def make_tokenizer():
    """A `PreTrainedTokenizerFast` over `vocabulary()`; EOS is never added by itself."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: place for place, word in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=EOS, unk_token=UNK, clean_up_tokenization_spaces=False,
        model_max_length=128, padding_side="right",
    )  # fmt: skip


def _texts() -> list[str]:
    """Texts that together hold every word of the world, as they stand in a post (each behind a space)."""
    layout = ["SUBREDDIT:", "\n\n", "TITLE:", "POST:", "TL;DR:"]
    sentences = [
        *(f"r/{name}" for name in grammar.SUBREDDITS),
        *(word for words in grammar.SLOTS.values() for word in words),
        grammar.CLAUSE, *grammar.MAIN_OPENERS, *grammar.ASIDE_OPENERS, *grammar.ASKS, *grammar.ASIDE_ASKS,
        *grammar.FILLERS, *grammar.TITLE_VAGUE, *grammar.SUMMARY, *grammar.VAGUE.values(),
        *grammar.REACTIONS, *(f"{slot}:" for slot in grammar.SLOTS), *grammar.VERDICTS,
    ]  # fmt: skip
    return layout + [" " + _without_fields(sentence) for sentence in sentences]


def _without_fields(template: str) -> str:
    return " ".join("".join(text for text, *_ in Formatter().parse(template)).split())
