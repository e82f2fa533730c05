"""TL;DR: posts of Reddit with summaries and preferences, as prepared by Huang et al. 2024 (N+).

The data come from the Hub or from local JSON lines or Parquet in the same schema (`rows`), are tokenised once
(`encoding`, `cache`), and come out as batches of the library's records (`tokenised`):

    train = load_split(SFT_DATA, SFT, tokenizer, split="train", cache=folder)
    train.texts(places)               Texts, for SFT and for centring the reward model
    train.prompts(places)             Prompts, for PPO: N+ uses the same posts again, shuffled anew in each pass
    pairs = load_split(PREFERENCE_DATA, PREFERENCES, tokenizer, split="train", cache=folder)
    Comparisons(*pairs.pairs(places)) for the reward model (algorithms/reward_model.py)

`places` are numbers from 0 to len(train) - 1; whoever calls decides on their order. Everything that a user can mend is
an engine.files.DamagedError with a message of one line; it comes before anything long starts, except that reading and
tokenising go through all rows once. Whether the numbers are those of N+ (`token_statistics`, `ledger`):

    numbers = flat("sft_data.train", token_statistics(train))
    for finding in compare(numbers, tokenizer="EleutherAI/pythia-1b-deduped"):
        print(finding.line)

The splits of SFT_DATA are train, validation and test; those of PREFERENCE_DATA are train, validation and
validation_cnndm, and the last one is about news articles: this world has no layout for them and refuses its rows.
"""

from .cache import load_split
from .ledger import Finding, compare, read_ledger
from .rows import PREFERENCES, SFT, Kind, Limits
from .token_statistics import flat, token_statistics
from .tokenised import Tokenised, TokenRows

# As on the Hub. The card of the first lists the columns subreddit, title, post, summary; the second has those of
# openai/summarize_from_feedback (info, summaries, choice), which tldr_dataset.py of N+ reads and keeps.
SFT_DATA = "cleanrl/summarize_from_feedback_tldr_3_filtered_oai_preprocessing_1704427060"
PREFERENCE_DATA = "mnoukhov/summarize_from_feedback_oai_preprocessing_1706381144"

__all__ = [
    "PREFERENCES",
    "PREFERENCE_DATA",
    "SFT",
    "SFT_DATA",
    "Finding",
    "Kind",
    "Limits",
    "TokenRows",
    "Tokenised",
    "compare",
    "flat",
    "load_split",
    "read_ledger",
    "token_statistics",
]
