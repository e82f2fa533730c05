"""Small data in the schema of N+: ragged, of several scripts, over-long; and models that read them."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.worlds.test_tldr import comparison, merged, reference, write_json, write_parquet

WORDS = "my dog ate the café cake 🙂 and now 漢字 nobody talks to me , what should i do about it ?"
SIZES = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)


def text(dice: random.Random, words: int) -> str:
    return " ".join(dice.choice(WORDS.split()) for _ in range(words))


def posts(count: int, seed: int) -> list[dict]:
    """Of 1 to 60 words in several lines; every fifth is longer than a query may be."""
    dice = random.Random(seed)
    for number in range(count):
        lines = 110 if number % 5 == 0 else dice.randint(1, 3)
        body = "\n".join(text(dice, dice.randint(1, 20)) for _ in range(lines))
        yield dict(title=text(dice, 3), post=body)


def references(count: int, seed: int) -> list[dict]:
    """The summary repeats the title, so that there is something to learn; every seventh is longer than it may be."""
    return [
        reference(**post, summary=" ".join([post["title"], *WORDS.split()] * 9) if number % 7 == 0 else post["title"])
        for number, post in enumerate(posts(count, seed))
    ]


def comparisons(count: int, seed: int) -> list[dict]:
    """People prefer the summary that is a question, wherever it stands."""
    dice, rows = random.Random(seed), []
    for post in posts(count, seed):
        choice = dice.randint(0, 1)
        texts = [" " + text(dice, dice.randint(1, 8)), " " + text(dice, dice.randint(1, 8))]
        texts[choice] += " what ? ? ?"
        rows.append(comparison(*texts, choice, post=post["post"]))
    return rows


def write_data(folder: Path) -> dict[str, Path]:
    """References as JSON lines, preferences as Parquet in two shards for training."""
    places = {name: folder / name for name in ("references", "preferences")}
    for place in places.values():
        place.mkdir(parents=True)
    write_json(places["references"] / "train.jsonl", references(21, 1), ensure_ascii=False)
    write_json(places["references"] / "test.jsonl", references(9, 2))
    training = comparisons(24, 3)
    write_parquet(places["preferences"] / "train-00000-of-00002.parquet", training[:10])
    write_parquet(places["preferences"] / "train-00001-of-00002.parquet", training[10:])
    write_parquet(places["preferences"] / "validation.parquet", comparisons(13, 4))
    return places


def write_model(folder: Path, family: str) -> Path:
    """A model with random weights and a byte-level BPE tokenizer in a folder, as `from_pretrained` reads them."""
    tokenizer = merged([row["post"] for row in references(21, 1)])
    special = dict(vocab_size=len(tokenizer), max_position_embeddings=1024, eos_token_id=tokenizer.eos_token_id)
    make = {
        "llama": lambda: LlamaForCausalLM(
            LlamaConfig(num_key_value_heads=1, tie_word_embeddings=True, **SIZES, **special)
        ),
        "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **special)),
    }[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
