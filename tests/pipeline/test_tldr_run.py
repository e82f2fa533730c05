"""TL;DR from local files to the report, by the public command: all of it but the size, with both families of models.

What is right is worked out here from the files themselves, with Transformers alone.
"""

import json
import math
import shutil
from itertools import chain, pairwise
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lib.algorithms.parts import Parts
from rlhf_lib.engine.run_folder import RunFolder, read_lines
from rlhf_lib.pipeline import given
from rlhf_lib.pipeline.pipeline import run_pipeline
from rlhf_lib.pipeline.run import Run
from rlhf_lib.pipeline.scales import world_of
from rlhf_lib.pipeline.settings import load_settings
from rlhf_lib.worlds.tldr import cache
from rlhf_lib.worlds.tldr.cache import CACHE_VARIABLE
from rlhf_lib.worlds.tldr.world import TLDR
from tests.pipeline.runs import silent
from tests.pipeline.test_bad_input import edit, refused
from tests.pipeline.test_cli import invoke
from tests.pipeline.test_smollm2 import stopped_after
from tests.tldr_data import write_data, write_model

SHORT = (
    "sft.steps=2", "sft.batch_size=8", "sft.learning_rate=1e-3",
    "reward_model.steps=6", "reward_model.posts_per_batch=8", "reward_model.learning_rate=3e-3",
    "reward_model.head_learning_rate=1e-2",
    "ppo.updates=3", "ppo.batch_size=8", "ppo.epochs=1", "ppo.learning_rate=1e-3", "ppo.response_length=12",
    "evaluation.posts=25", "evaluation.bootstrap=20",
)  # fmt: skip
PRESET = {"llama": "tldr-t4", "neox": "tldr-pythia-1b"}  # in float16 and in bfloat16


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with data and models; what is tokenised goes there, too."""
    folder = tmp_path_factory.mktemp("tldr")
    write_data(folder / "data")
    for family in PRESET:
        write_model(folder / family, family)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder / "cache"))
        yield folder


def changes(there: Path, family: str, data: Path | None = None) -> list[str]:
    places = {f"data.{name}": (data or there / "data") / name for name in ("references", "preferences")}
    return [*SHORT, f"world.model={there / family}", *(f"{key}={place}" for key, place in places.items())]


def options(there: Path, family: str, data: Path | None = None) -> list[str]:
    sets = chain.from_iterable(("--set", change) for change in changes(there, family, data))
    return ["--preset", PRESET[family], *sets]


def small_run(there: Path, out: Path, family: str = "neox", **rest) -> Run:
    settings = load_settings(PRESET[family], changes(there, family))
    return Run(settings, world_of(settings), RunFolder(out), RunFolder(out), Parts(), silent, **rest)


@pytest.fixture(scope="module")
def finished(there):
    """A run of each family by the public command, and what it said on stderr."""

    def run(family: str) -> tuple[Path, str]:
        less = ("--set", "ppo.updates=1") if family == "llama" else ()
        asked = invoke("run", "--out", str(there / f"out-{family}"), *options(there, family), *less)
        assert asked.exit_code == 0, asked.output
        return there / f"out-{family}", asked.stderr

    return {family: run(family) for family in PRESET}


def rows_of(there: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (there / "data" / name).read_text(encoding="utf-8").splitlines()]


def query_of(row: dict) -> str:
    return f"SUBREDDIT: r/{row['subreddit']}\n\nTITLE: {row['title']}\n\nPOST: {row['post']}\n\nTL;DR:"


@pytest.mark.parametrize("family", PRESET)
def test_all_five_stages(there, finished, family):
    """Rejects a stage that is passed over, a model that plain loading does not know, and weights that did not move."""
    out, _ = finished[family]
    stages = json.loads((out / "results.json").read_text())
    assert list(stages) == ["sft", "preferences", "reward_model", "ppo", "evaluation"]
    models = [AutoModelForCausalLM.from_pretrained(place) for place in (there / family, out / "sft", out / "policy")]
    for before, after in pairwise(models):
        assert not all(torch.equal(b, a) for b, a in zip(before.parameters(), after.parameters(), strict=True))
    AutoModelForSequenceClassification.from_pretrained(out / "value")
    assert AutoTokenizer.from_pretrained(out / "policy").get_vocab()


def test_what_was_evaluated_are_the_posts_of_the_test_split(there, finished):
    """Rejects posts that were trained on, one that comes twice, a post cut elsewhere than at a newline or not at all,
    a reference or a title that lost something on its way through tokens (a space, a character of many bytes), and one
    that was cut and counts as finished: with an EOS that the data do not have it would be scored as another text.
    """
    out, _ = finished["neox"]
    tokenizer = AutoTokenizer.from_pretrained(there / "neox")
    samples = {row["title"]: row for row in read_lines(out / "samples.jsonl")}
    expected = rows_of(there, "references/test.jsonl")
    assert sorted(samples) == sorted(row["title"] for row in expected)
    cut = 0
    for row in expected:
        sample, whole = samples[row["title"]], query_of(row)
        if len(tokenizer(whole).input_ids) <= 512:
            assert sample["prompt"] == whole
        else:
            kept = sample["prompt"].removesuffix("\n\nTL;DR:")
            rest = whole.removesuffix("\n\nTL;DR:").removeprefix(kept)
            assert (
                len(rest) < len(whole) and rest.startswith("\n") and len(tokenizer(sample["prompt"]).input_ids) <= 512
            )
            cut += 1
        if len(tokenizer(" " + row["summary"]).input_ids) < 53:
            assert sample["reference"]["text"] == row["summary"]
        else:
            assert (" " + row["summary"]).startswith(" " + sample["reference"]["text"].rstrip("\ufffd"))
        assert sample["reference"]["finished"] == (len(tokenizer(" " + row["summary"]).input_ids) < 53)
    assert cut == 2
    unfinished = sum(not sample["reference"]["finished"] for sample in samples.values())
    assert unfinished == 2
    report = json.loads((out / "report.json").read_text())
    assert report["reference"]["eos_rate"] == pytest.approx(1 - unfinished / len(samples))


def test_accuracy_is_that_of_the_validation_split(there, finished):
    """Rejects an accuracy on pairs that were trained on, chosen and rejected swapped, a score read before the EOS, and
    texts of which the reward model sees only a part. All is done again here: one text at a time, without padding.
    """
    out, _ = finished["neox"]
    tokenizer = AutoTokenizer.from_pretrained(there / "neox")
    scorer = AutoModelForSequenceClassification.from_pretrained(out / "reward_model")
    rows = pyarrow.parquet.read_table(there / "data" / "preferences" / "validation.parquet").to_pylist()
    right = []
    for row in rows:
        if len(tokenizer(query := query_of(row["info"])).input_ids) > 512:
            continue  # how these are cut is another test's matter
        scores = [score_of(scorer, tokenizer, query + one["text"]) for one in row["summaries"]]
        right.append(scores[row["choice"]] > scores[1 - row["choice"]])
    found = json.loads((out / "results.json").read_text())["reward_model"]
    assert (found["held_out_pairs"], found["pairs"]) == (13, 24)
    unknown = 13 - len(right)
    assert 0 < unknown < 4 and sum(right) > 6
    assert sum(right) <= found["accuracy"] * 13 + 1e-9 and found["accuracy"] * 13 <= sum(right) + unknown + 1e-9


@torch.no_grad()
def score_of(scorer, tokenizer, text: str) -> float:
    ids = torch.tensor([[*tokenizer(text).input_ids, tokenizer.eos_token_id]])
    return float(scorer.score(scorer.base_model(input_ids=ids).last_hidden_state)[0, -1, 0])


def test_the_report_holds_the_data_against_n_plus(there, finished):
    """Rejects a ledger that only the screen sees, statistics of other splits, and a number that a small run cannot
    have called right.
    """
    out, said = finished["neox"]
    report = json.loads((out / "report.json").read_text())
    rows = {row["quantity"]: row for row in report["n_plus"]}
    assert (rows["sft_data.train.rows"]["measured"], rows["sft_data.test.rows"]["measured"]) == (21, 9)
    assert rows["preference_data.validation.rows"]["measured"] == 13
    assert rows["sft_data.train.query.mean"]["comparable"] is False  # another tokenizer than Pythia's
    assert rows["sft_data.train.rows"]["agrees"] is False and "rows are missing" in rows["sft_data.train.rows"]["hint"]
    assert "sft_data.train.rows: 21 rows (N+ 116722" in said and said.index("sft_data") < said.index("SFT")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "116722 ± 0" in page and "rows are missing" in page
    statistics = json.loads((out / "preferences.json").read_text())
    assert statistics["validation"]["chosen_minus_rejected"]["mean"] > 0
    assert not (out / "preferences.jsonl").exists()


def test_limits(there, finished):
    """Rejects the limits of one kind used for the other: 512 for a query, 53 and 169 for a response."""
    out, _ = finished["neox"]
    numbers = json.loads((out / "data.json").read_text())
    assert numbers["sft_data.train.query.max"] <= 512 and numbers["sft_data.train.cut.query"] == 5
    assert numbers["sft_data.train.response.max"] == 53 and numbers["sft_data.train.cut.response"] == 3
    assert numbers["preference_data.train.query.max"] <= 512


def test_the_second_run_does_not_tokenise_again(there, finished, tmp_path, monkeypatch):
    """Rejects minutes of the same work at every start."""
    monkeypatch.setattr(cache, "tokenise", None)
    asked = invoke("run", "--out", str(tmp_path), "--stage", "preferences", "--from", str(finished["neox"][0]),
                   *options(there, "neox"))  # fmt: skip
    assert asked.exit_code == 0, asked.output
    assert "tokenising" not in asked.stderr


def test_resuming(there, finished, tmp_path):
    """Rejects a run that, stopped in the middle of PPO, goes on with other posts or another bit: three updates of eight
    posts need more than the 21 that there are, so that the last one stands in the second pass.
    """
    cut = small_run(there, tmp_path, checkpoint_seconds=0)
    object.__setattr__(cut, "progress", stopped_after(2, "ppo"))
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(cut)
    asked = invoke("run", "--out", str(tmp_path), "--resume", *options(there, "neox"))
    assert asked.exit_code == 0, asked.output
    for name in ("policy/model.safetensors", "value/model.safetensors", "metrics.jsonl", "samples.jsonl", "data.json"):
        assert (tmp_path / name).read_bytes() == (finished["neox"][0] / name).read_bytes(), name


# what the world gives


def world(there: Path, seed: int = 0) -> TLDR:
    data = there / "data"
    return TLDR(seed, model=str(there / "llama"), references=str(data / "references"),
                preferences=str(data / "preferences"))  # fmt: skip


def test_passes(there):
    """Rejects a stream that ends after one pass, keeps its order in the next, leaves posts out, depends on where it was
    started, or gives PPO the posts in the order in which SFT had them.
    """
    posts = world(there).posts("ppo", 63)
    passes = [[tuple(post.query) for post in posts[start : start + 21]] for start in (0, 21, 42)]
    everything = sorted(map(tuple, (world(there).load(*given.REFERENCES).queries[place] for place in range(21))))
    assert [sorted(one) for one in passes] == [everything] * 3
    assert passes[0] != passes[1] != passes[2] != passes[0]
    assert world(there).posts("ppo", 30, start=17) == world(there).posts("ppo", 47)[17:]
    assert [post.query for post in world(there).posts("sft", 21)] != [post.query for post in posts[:21]]
    assert [post.query for post in world(there, seed=1).posts("ppo", 21)] != [post.query for post in posts[:21]]


def test_held_out_posts_do_not_come_again(there):
    """Rejects a win rate that counts a post many times and so looks surer than it is."""
    posts = world(there).posts("test", 500)
    assert len(posts) == len({tuple(post.query) for post in posts}) == 9


def test_summaries_as_tokens(there):
    """Rejects a BOS or a missing space before the summary, a missing or second EOS, and an EOS that somebody typed."""
    here = world(there)
    eos = here.tokenizer.eos_token_id
    ended, cut, empty, typed = here.encode_summaries(
        ["café 🙂", "my dog", "", here.tokenizer.eos_token], finished=[True, False, True, True]
    )
    assert here.tokenizer.decode(ended) == " café 🙂" + here.tokenizer.eos_token
    assert eos not in cut and here.tokenizer.decode(cut) == " my dog"
    assert empty[-1] == eos and ended.count(eos) == typed.count(eos) == 1
    (post, *_) = here.posts("test", 1)
    assert math.isnan(here.gold(post, "what", finished=True)) and post.facts == {}


def test_fewer_pairs_than_asked_for(there):
    """Rejects a count of pairs that ignores the setting, and the first ones of a file that may be sorted."""
    settings = load_settings("tldr-pythia-1b", [*changes(there, "neox"), "preferences.posts=10"])
    run = Run(settings, world_of(settings), RunFolder(there / "x"), RunFolder(there / "x"), Parts(), silent)
    pairs = given.load(run)
    assert pairs.pairs == 10 and list(pairs.training.places) != list(range(10))
    batches = list(pairs.batches(settings.reward_model, seed=0))
    assert len(batches) == 6 and all(len(batch.chosen) == 8 for batch in batches)
    decode = run.world.tokenizer.decode
    for batch in batches:
        chosen = [decode(batch.texts.tokens[row], skip_special_tokens=True) for row in batch.chosen.tolist()]
        rejected = [decode(batch.texts.tokens[row], skip_special_tokens=True) for row in batch.rejected.tolist()]
        assert all(text.endswith("what ? ? ?") for text in chosen)
        assert not any(text.endswith("what ? ? ?") for text in rejected)
    rest = list(pairs.batches(settings.reward_model, seed=0, start=4))
    assert [row.texts.tokens.tolist() for row in rest] == [row.texts.tokens.tolist() for row in batches[4:]]


# what cannot be used


def lacking(name: str):
    return lambda data: (data / name).unlink()


DAMAGE = {
    "a broken row": (
        lambda data: edit(post=" ")(data / "references" / "train.jsonl"),
        "references{slash}train.jsonl, line 2: post is empty; mend that row",
    ),
    "a split is missing": (lacking("preferences/validation.parquet"), "has no validation*.jsonl and no validation*"),
    "a file": (
        lambda data: (shutil.rmtree(data / "preferences"), (data / "preferences").write_text("")),
        "is one file, and training needs splits that do not overlap",
    ),
    "nothing": (lambda data: shutil.rmtree(data / "references"), "references does not exist: name a .jsonl or"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_data_that_cannot_be_used(monkeypatch, capsys, there, tmp_path, case):
    """Named before anything is trained or written, also where only a later stage would have met it."""
    import os

    damage, says = DAMAGE[case]
    data = shutil.copytree(there / "data", tmp_path / "data")
    damage(data)
    line = refused(monkeypatch, capsys, "run", "--out", tmp_path / "out", *options(there, "llama", data))
    assert says.format(slash=os.sep) in line
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name != ".lock"]


def test_broken_rows_left_out(there, tmp_path):
    """Rejects a setting that does nothing, and rows left out in silence."""
    data = shutil.copytree(there / "data", tmp_path / "data")
    edit(post="")(data / "references" / "train.jsonl")
    asked = invoke("run", "--out", str(tmp_path / "out"), "--stage", "sft", "--set", "data.skip_broken=true",
                   *options(there, "llama", data))  # fmt: skip
    assert asked.exit_code == 0, asked.output
    assert "line 2: post is empty" in asked.stderr and "sft_data.train.rows: 20 rows" in asked.stderr


@pytest.mark.parametrize(("model", "says"), [
    ("none", "world.model=none: the world tldr has no model of its own"),
    ("nobody/no-such-model", "HF_HUB_OFFLINE is set, and it was not fetched before"),
])  # fmt: skip
def test_a_model_that_is_not_there(monkeypatch, capsys, there, tmp_path, model, says):
    """Rejects minutes of tokenising before it."""
    line = refused(monkeypatch, capsys, "run", "--out", tmp_path, *options(there, "llama"), "--set",
                   f"world.model={model}")  # fmt: skip
    assert says in line


def test_a_model_whose_context_is_too_short(monkeypatch, capsys, there, tmp_path):
    """Rejects an index out of range in the embedding, hours later, at the first long row."""
    short = shutil.copytree(there / "llama", tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 600}))
    line = refused(monkeypatch, capsys, "run", "--out", tmp_path / "out", *options(there, "llama"), "--set",
                   f"world.model={short}")  # fmt: skip
    assert "reads 600 tokens, and a post with its summary has up to 638" in line
