"""TL;DR data: rows that are named when they are broken, queries that are cut, a cache that is not believed blindly."""

import json
import random
import re
import threading
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial

import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_lib.engine.files import DamagedError
from rlhf_lib.worlds import tldr
from rlhf_lib.worlds.tldr import PREFERENCES, SFT, Limits, cache, compare, flat, load_split, token_statistics
from rlhf_lib.worlds.tldr.encoding import cut_post, encode_queries, encode_responses, tokenise
from rlhf_lib.worlds.tldr.rows import Post, Row, read_rows
from rlhf_lib.worlds.tldr.sources import HubSplit, find_source

EOS = "<|endoftext|>"
WORDS = ["SUBREDDIT", ":", " r", "/", "\n", "TITLE", "POST", "TL", ";", "DR", *(f" {c}" for c in "abcdef"), *"abcdef"]
HEADINGS = len("SUBREDDIT: r/\n\nTITLE: \n\nPOST: \n\nTL;DR:")  # bytes


def finish(core, pad=None, bos=None):
    if bos:
        core.add_special_tokens([bos])
        ids = [(bos, core.token_to_id(bos))]
        core.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=EOS, pad_token=pad, bos_token=bos)


def words(**special):
    """One token a word with its leading space, one a mark: lengths can be counted by eye."""
    ids = {token: place for place, token in enumerate(["<unk>", EOS, "[PAD]", *WORDS])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]|\s"), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([EOS, "[PAD]"])
    return finish(core, **special)


def characters(**special):
    """One token a byte, so that any text can be written: lengths are those of UTF-8."""
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([EOS])
    return finish(core, **special)


def merged(texts):
    """Byte-level BPE as Pythia's and Llama's, trained on the texts."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[EOS], show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    core.decoder = decoders.ByteLevel()
    return finish(core)


def reference(post="a b", summary="c d", title="a", **more):
    return {"id": "t3_1", "subreddit": "b", "title": title, "post": post, "summary": summary, **more}


def comparison(first=" c", second=" d e", choice=1, post="a b", **more):
    info = {"id": "t3_1", "subreddit": "b", "title": "a", "post": post, "site": None, "article": None}
    summaries = [{"text": text, "policy": "sup2", "note": None} for text in (first, second)]
    return {"info": info, "summaries": summaries, "choice": choice, "batch": "batch3", **more}


def write_json(path, rows, **options):
    path.write_text("".join(json.dumps(row, **options) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path, rows):
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def load(place, kind=SFT, tokenizer=None, **options):
    return tokenise(
        read_rows(find_source(place, "train"), kind, **options), kind, tokenizer or words(), kind.limits
    )  # fmt: skip


def rows_of(*posts):
    return [Row(f"file, line {place}", Post("b", "a", post), {}) for place, post in enumerate(posts, 1)]


def queries_of(tokenizer, limit, *posts):
    return [tokenizer.decode(ids) for ids, _ in encode_queries(rows_of(*posts), tokenizer, limit)]


def same(one, other):
    columns = [{"query": split.queries, **split.responses} for split in (one, other)]
    return columns[0].keys() == columns[1].keys() and all(
        torch.equal(getattr(rows, part), getattr(columns[1][name], part))
        for name, rows in columns[0].items()
        for part in ("tokens", "lengths", "cut")
    )


# what a row becomes


@pytest.mark.parametrize("tokenizer", [words(), words(pad=EOS), words(pad="[PAD]")], ids=["no PAD", "PAD=EOS", "PAD"])
def test_a_reference_to_the_last_token(tmp_path, tokenizer):
    """Rejects another layout, a missing or second leading space, a missing EOS, left padding, and lengths that are
    counted from token ids (wrong where PAD is EOS).
    """
    path = write_json(tmp_path / "train.jsonl", [reference(), reference(post="a b\nc", summary=" d e f a")])
    split = load(path, tokenizer=tokenizer)
    texts, prompts = split.texts([1, 0]), split.prompts([1, 0])
    written = [
        "SUBREDDIT: r/b\n\nTITLE: a\n\nPOST: a b\nc\n\nTL;DR: d e f a" + EOS,
        "SUBREDDIT: r/b\n\nTITLE: a\n\nPOST: a b\n\nTL;DR: c d" + EOS,
    ]
    read = [tokenizer.decode(row[:n]) for row, n in zip(texts.tokens, texts.sequence_lengths, strict=True)]
    assert read == written
    query = 5 + 2 + 3 + 2 + 4 + 2 + 4  # SUBREDDIT: r/b, TITLE: a, POST: a b, TL;DR: and two newlines between them
    assert prompts.lengths.tolist() == texts.prompt_lengths.tolist() == [query + 2, query]
    assert texts.sequence_lengths.tolist() == [query + 2 + 5, query + 3]
    assert texts.has_eos.tolist() == [True, True]
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    assert texts.tokens[1, query + 3 :].tolist() == [pad] * 4
    assert torch.equal(prompts.tokens[1, :query], texts.tokens[1, :query])


def test_choice(tmp_path):
    """Rejects pairs that ignore the choice or read it the wrong way round, and a space added to one that is there."""
    path = write_json(tmp_path / "train.jsonl", [comparison(choice=0), comparison(choice=1), comparison("f", " a")])
    texts, chosen, rejected = load(path, PREFERENCES).pairs([0, 1, 2])
    tokenizer = words()
    ends = [
        tokenizer.decode(texts.tokens[row, texts.prompt_lengths[row] : texts.sequence_lengths[row]])
        for row in [*chosen.tolist(), *rejected.tolist()]
    ]
    assert [end.removesuffix(EOS) for end in ends] == [" c", " d e", " a", " d e", " c", " f"]


def test_special_tokens():
    """Rejects a BOS before the response, none before the query, and an EOS that a writer typed taken for the end."""
    tokenizer = characters(bos="<s>")
    ((query, _),) = encode_queries(rows_of(f"x{EOS}y"), tokenizer, 512)
    ((response, _),) = encode_responses([f"x{EOS}y"], tokenizer, [53])
    assert query[0] == tokenizer.bos_token_id and len(query) == HEADINGS + 1 + len(f"bax{EOS}y")
    assert response.index(tokenizer.eos_token_id) == len(response) - 1 == len(f" x{EOS}y")


def test_tokenizers_that_cannot_serve(tmp_path):
    """Rejects a silent run with responses that never end, and one with queries that are over before they begin."""
    path = write_json(tmp_path / "train.jsonl", [reference()])
    endless, ending = words(), words()
    endless.eos_token = None
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, ending.eos_token_id)]
    )
    with pytest.raises(DamagedError, match="no EOS token"):
        load(path, tokenizer=endless)
    with pytest.raises(DamagedError, match="add_eos_token=False"):
        load(path, tokenizer=ending)


# limits


def test_cut_at_the_last_newline_that_suffices():
    """Rejects a cut in the middle of a line, one at the first newline, one that keeps the newline, and one that cuts
    what fits exactly.
    """
    post = "one\ntwo\n\nthree"
    room = HEADINGS + len("ba")
    kept = {
        len(post): post, len(post) - 1: "one\ntwo\n", len("one\ntwo\n") - 1: "one\ntwo", len("one\ntwo") - 1: "one"
    }  # fmt: skip
    for limit, expected in kept.items():
        assert queries_of(characters(), room + limit, post) == [Post("b", "a", expected).query], limit


def test_without_a_newline_characters_go():
    """Rejects a refusal, an empty post, and half a character (its bytes are tokens of their own here)."""
    room = HEADINGS + len("ba")
    assert queries_of(characters(), room + 8, "abcdefghij") == [Post("b", "a", "abcdefgh").query]
    assert queries_of(characters(), room + 9, "ab🙂🙂🙂") == [Post("b", "a", "ab🙂").query]
    assert queries_of(characters(), room + 2, "\nabc") == [Post("b", "a", "").query]  # as N+: the newline comes first


def n_plus_cut(post, tokenizer, limit):
    """How N+ cuts, one step at a time: at the last newline, else before the last character."""
    while len(tokenizer(post.query).input_ids) > limit:
        newline = post.body.rfind("\n")
        post = replace(post, body=post.body[: newline if newline >= 0 else len(post.body) - 1])
    return post


@pytest.mark.parametrize("seed", range(4))
def test_cuts_are_those_of_n_plus(seed):
    """Rejects a shortcut through long posts that cuts more, or elsewhere, than going step by step."""
    dice = random.Random(seed)
    posts = [
        "".join(dice.choices("aaabbc  .,é🙂漢" + "\n" * (place % 3), k=dice.randint(1, 200))) for place in range(40)
    ]
    for tokenizer in (characters(), merged(posts)):
        limit = HEADINGS + 40
        expected = [n_plus_cut(row.post, tokenizer, limit).query for row in rows_of(*posts)]
        assert queries_of(tokenizer, limit, *posts) == expected


def test_a_huge_post_takes_few_steps():
    """Rejects one tokenisation for each of a million characters, or newlines: hours."""
    for body in ("x" * 10**6, "x\n" * 500_000):
        post, steps = Post("b", "a", body), 0
        while (excess := len(post.body) - 400) > 0:
            post, steps = cut_post(post, excess), steps + 1
        assert 395 <= len(post.body) <= 400 and steps < 60


def test_headings_alone_too_long():
    """Rejects an endless loop, and a query over the limit, where nothing is left to cut; the row is named."""
    row = Row("posts.jsonl, line 7", Post("b", "a" * 600, "text"), {})
    with pytest.raises(DamagedError, match=r"posts\.jsonl, line 7: without its post the query still has \d+ tokens"):
        encode_queries([row], characters(), 512)


def test_response_limits(tmp_path):
    """Rejects rows that are left out (N+ keeps them), an EOS forced onto a text that was cut, an EOS that does not
    count, a total limit that is ignored, and rows that fit exactly but count as cut.
    """
    query = HEADINGS + len("ba") + 4
    rows = [reference("post", "x" * length) for length in (8, 9, 20)]
    path = write_json(tmp_path / "train.jsonl", rows)
    for limits in (Limits(query=query, response=10, total=1000), Limits(query=query, response=99, total=query + 10)):
        split = tokenise(read_rows(find_source(path, "train"), SFT), SFT, characters(), limits)
        assert split.responses["response"].lengths.tolist() == [10, 10, 10]
        assert split.responses["response"].cut.tolist() == [False, True, True]
        assert split.texts([0, 1, 2]).has_eos.tolist() == [True, False, False]


def test_limits_are_those_of_n_plus():
    """Rejects limits of one kind used for the other."""
    assert SFT.limits == Limits(query=512, response=53, total=562)
    assert PREFERENCES.limits == Limits(query=512, response=169, total=638)
    with pytest.raises(ValueError, match="total greater than query"):
        Limits(query=512, response=53, total=512)


# broken rows


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


BROKEN = {
    "post is missing": (SFT, without(reference(), "post")),
    "summary must be text, not null": (SFT, reference(summary=None)),
    "title must be text, not int": (SFT, reference(title=3)),
    "post is empty": (SFT, reference(post=" \n ")),
    "summary is empty": (SFT, reference(summary="")),
    "post has half a character (a lone surrogate) at 1": (SFT, reference(post="a\ud800")),
    "info is missing": (PREFERENCES, without(comparison(), "info")),
    "info must be an object with subreddit, title and post, not str": (PREFERENCES, comparison() | {"info": "a"}),
    "info.title is missing": (PREFERENCES, comparison() | {"info": without(comparison()["info"], "title")}),
    "info.post is empty": (PREFERENCES, comparison(post="")),
    "summaries[1].text is empty": (PREFERENCES, comparison(second=" ")),
    "summaries[0].text must be text, not null": (PREFERENCES, comparison(first=None)),
    "summaries must be a list of two objects, each with a text": (
        PREFERENCES, comparison() | {"summaries": ["a", "b"]},
    ),
    "choice must be 0 or 1, the place of the better summary, not 2": (PREFERENCES, comparison(choice=2)),
    "choice must be 0 or 1, the place of the better summary, not -1": (PREFERENCES, comparison(choice=-1)),
    "choice must be 0 or 1, the place of the better summary, not True": (PREFERENCES, comparison(choice=True)),
    "choice must be 0 or 1, the place of the better summary, not 1.0": (PREFERENCES, comparison(choice=1.0)),
    "it compares summaries of a news article (CNN/DM), not of a post": (
        PREFERENCES, comparison() | {"info": comparison()["info"] | {"post": None, "article": "news"}},
    ),
}  # fmt: skip
SOUND = {SFT.name: reference(), PREFERENCES.name: comparison()}


@pytest.mark.parametrize("complaint", BROKEN)
def test_a_broken_row_names_its_line(tmp_path, complaint):
    """Rejects an exception from deep inside, a line counted from 0 or without the empty ones, and a row that is used
    although it cannot be right (a choice of -1 or True would be taken for a place).
    """
    kind, row = BROKEN[complaint]
    path = write_json(tmp_path / "train.jsonl", [SOUND[kind.name], row])
    path.write_text(path.read_text(encoding="utf-8").replace("\n", "\n\n", 1), encoding="utf-8")
    with pytest.raises(DamagedError, match=f"^{re.escape(f'{path}, line 3: {complaint}; mend')}") as caught:
        load(path, kind)
    assert "\n" not in str(caught.value)
    assert len(load(path, kind, skip_broken=True)) == 1


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"post": ', "not JSON (Expecting value, column 9)"),
        (b"[1]", "not a JSON object"),
        (json.dumps(reference(post="caf\u00e9"), ensure_ascii=False).encode("latin-1"), "not UTF-8 (byte 59 is 0xe9)"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_cannot_be_read(tmp_path, line, complaint):
    """Rejects a decoder's own words without file and line, and a guess at another encoding."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(json.dumps(reference()).encode() + b"\r\n" + line + b"\n")
    with pytest.raises(DamagedError, match=re.escape(f"{path}, line 2: {complaint}")):
        load(path)


def test_a_file_in_utf_16(tmp_path):
    """Rejects "not JSON" for what PowerShell writes: the encoding is the fault."""
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(reference()), encoding="utf-16")
    with pytest.raises(DamagedError, match=r"line 1: not UTF-8 \(byte 0 is 0xff\)"):
        load(path)


def test_a_broken_row_of_parquet_names_its_number(tmp_path, monkeypatch):
    """Rejects a number within the block that was read instead of within the file."""
    monkeypatch.setattr("rlhf_lib.worlds.tldr.sources.ROWS_AT_ONCE", 2)
    rows = [comparison(), comparison(), comparison(), comparison(choice=7), comparison()]
    path = write_parquet(tmp_path / "train.parquet", rows)
    with pytest.raises(DamagedError, match=re.escape(f"{path}, row 3 (counted from 0): choice must be 0 or 1")):
        load(path, PREFERENCES)
    assert len(load(path, PREFERENCES, skip_broken=True)) == 4


def test_parquet_with_text_that_is_no_text(tmp_path):
    """Rejects a block of rows given up for one that is not UTF-8, and an error without its number."""
    raw = pyarrow.array([b"a b", b"caf\xe9", b"c"], pyarrow.binary())
    column = pyarrow.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    table = pyarrow.table({**{name: ["a"] * 3 for name in ("subreddit", "title", "summary")}, "post": column})
    pyarrow.parquet.write_table(table, path := tmp_path / "train.parquet")
    with pytest.raises(DamagedError, match=r"row 1 \(counted from 0\): a text is not UTF-8"):
        load(path)
    assert len(load(path, skip_broken=True)) == 2


def test_files_that_cannot_be_used(tmp_path):
    """Rejects a Parquet file that is named only by pyarrow's words, a missing column found rows later, an empty file
    that trains on nothing, and a mistyped path that is looked for on the Hub.
    """
    lacking = write_parquet(tmp_path / "lacking.parquet", [without(reference(), "summary")])
    whole = write_parquet(tmp_path / "whole.parquet", [reference()])
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-20])
    empty = write_json(tmp_path / "empty.jsonl", [])
    for path, complaint in {
        lacking: f"{lacking} lacks the column summary; it has id, subreddit, title, post",
        cut: f"{cut} cannot be read as Parquet",
        empty: f"{empty} has no rows",
        tmp_path / "none.jsonl": "does not exist: name a .jsonl or .parquet file",
        tmp_path / "folder": "does not exist",
    }.items():
        with pytest.raises(DamagedError, match=re.escape(complaint)):
            load(path)


def test_what_is_left_out_is_said(tmp_path, capsys):
    """Rejects silence about rows left out, a line for each of many, and a split of which nothing is left."""
    path = write_json(tmp_path / "train.jsonl", [*[reference(post="")] * 5, reference()])
    assert len(load(path, skip_broken=True)) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"left out: {path}, line 1: post is empty"
    assert len(said) == 4 and said[3] == f"left out: 2 more rows of {path}"
    with pytest.raises(DamagedError, match="has no rows that can be used"):
        load(write_json(tmp_path / "none.jsonl", [reference(post="")]), skip_broken=True)


# where rows come from

POSTS = [reference(post="a\u2028b\x85c"), reference(summary="é🙂漢字"), reference()]
SPLITS = {"references": [row | {"query_token": [1, 2]} for row in POSTS]}  # as N+ publishes them
SPLITS["preferences"] = [comparison(post="a\x0bb\x1cc"), comparison(" é🙂", " 漢字", 0)]


@pytest.mark.parametrize("kind", [SFT, PREFERENCES], ids=lambda kind: kind.name)
def test_json_parquet_and_the_hub_give_the_same(tmp_path, kind, monkeypatch):
    """Rejects a reader that splits lines at other separators, drops a mark of byte order into the first name, mixes
    the order of shards, takes validation_cnndm for validation, or loses rows between two blocks.
    """
    rows = SPLITS[kind.name]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file = tmp_path / "any.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    hub = tmp_path / "hub"
    hub.mkdir()
    write_parquet(hub / "data" / "train-00000-of-00002.parquet", rows[:1])
    write_parquet(hub / "data" / "train-00001-of-00002.parquet", rows[1:])
    write_parquet(hub / "data" / "train_other-00000-of-00001.parquet", rows[:1])
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
    remote = HubSplit(str(hub), "train")
    assert isinstance(find_source("owner/name@main", "train"), HubSplit)
    split = load(file, kind, characters())
    monkeypatch.setattr("rlhf_lib.worlds.tldr.encoding.ROWS_AT_ONCE", 2)
    assert same(split, load(hub, kind, characters()))
    assert same(split, tokenise(read_rows(remote, kind), kind, characters(), kind.limits))
    assert remote.fingerprint() == HubSplit(str(hub), "train").fingerprint()
    (where, _), *_ = remote.rows(kind.columns)
    assert where == f"{hub}, split train, row 0 (counted from 0)"


def test_a_folder_without_the_split(tmp_path):
    """Rejects another split taken instead, and one of two formats chosen without a word."""
    write_json(tmp_path / "train.jsonl", [reference()])
    with pytest.raises(DamagedError, match=r"has no validation\*\.jsonl"):
        find_source(tmp_path, "validation")
    write_parquet(tmp_path / "train.parquet", [reference()])
    with pytest.raises(DamagedError, match=r"both as \.jsonl and as \.parquet"):
        find_source(tmp_path, "train")


def test_no_network():
    """Rejects a traceback of many pages: one line says what is missing and what can be done."""
    with pytest.raises(DamagedError, match=r"could not be had from the Hub .* or name local") as caught:
        find_source("owner/no-such-dataset", "train").fingerprint()
    assert "\n" not in str(caught.value)


# tokenised once


@pytest.fixture
def cached(tmp_path):
    """Loads the split of a file through the cache."""
    write_json(tmp_path / "train.jsonl", SPLITS["references"])

    def call(tokenizer=None, place=tmp_path / "train.jsonl", **options):
        return load_split(place, SFT, tokenizer or characters(), split="train", cache=tmp_path / "cache", **options)

    return call


def folder_of(tmp_path):
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    return folder


def test_tokenised_once(cached, tmp_path, monkeypatch, capsys):
    """Rejects a key that changes from run to run, with the path, or with what the tokenizer padded last, and a cache
    that gives back something else than was put in.
    """
    made = cached()
    assert "it is not in the cache yet" in capsys.readouterr().err
    monkeypatch.setattr(cache, "tokenise", None)
    (tmp_path / "elsewhere.jsonl").write_bytes((tmp_path / "train.jsonl").read_bytes())
    used = characters(pad=EOS)
    used(["a", "a b"], padding=True, truncation=True, max_length=1)
    for again in (cached(), cached(place=tmp_path / "elsewhere.jsonl"), cached(used)):
        assert same(made, again)
        assert torch.equal(made.texts([0, 1, 2]).tokens, again.texts([0, 1, 2]).tokens)
    assert capsys.readouterr().err == ""


def flip_a_byte(folder):
    content = bytearray((folder / "tokens.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "tokens.safetensors").write_bytes(content)


DAMAGE = {
    "a byte": flip_a_byte,
    "cut short": lambda folder: (folder / "tokens.safetensors").write_bytes(b"\0" * 100),
    "no tensors": lambda folder: (folder / "tokens.safetensors").unlink(),
    "no facts": lambda folder: (folder / "facts.json").unlink(),
    "facts cut short": lambda folder: (folder / "facts.json").write_text('{"made_from"', encoding="utf-8"),
    "facts of another kind": lambda folder: (folder / "facts.json").write_text("[]", encoding="utf-8"),
    "binary facts": lambda folder: (folder / "facts.json").write_bytes(b"\xff\xfe"),
    "other facts": lambda folder: (folder / "facts.json").write_bytes(
        (folder / "facts.json").read_bytes().replace(b'"response": 53', b'"response": 54')
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again(cached, tmp_path, capsys, damage):
    """Rejects tokens that nobody wrote being trained on, and a run that cannot start for a file it can make itself."""
    made = cached()
    DAMAGE[damage](folder_of(tmp_path))
    capsys.readouterr()
    assert same(made, cached())
    assert f"the cache in {folder_of(tmp_path)} is damaged" in capsys.readouterr().err
    assert same(made, cached())
    assert capsys.readouterr().err == ""


def test_a_stale_cache_is_not_used(cached, tmp_path, capsys):
    """Rejects a key without the data, the tokenizer, its BOS, or the limits: old tokens for new settings."""
    path, before = tmp_path / "train.jsonl", cached()
    capsys.readouterr()
    for change, call in {
        "settings": lambda: cached(limits=Limits(response=5, total=562)),
        "tokenizer": lambda: cached(characters(bos="<s>")),
    }.items():
        assert not same(before, call())
        assert f"the cache was made with other {change}\n" in capsys.readouterr().err
    write_json(path, [reference(post="other")])
    assert len(cached()) == 1
    assert "the cache was made with other data\n" in capsys.readouterr().err


def test_a_kill_while_writing_leaves_nothing_that_counts(cached, tmp_path, monkeypatch):
    """Rejects a cache written in place, which would be found half full."""
    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cached()
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir() and not path.name.startswith(".")]
    assert len(cached()) == len(cached()) == 3


@pytest.mark.parametrize("form", ["jsonl", "parquet", "hub"])
def test_a_disk_without_room_for_the_cache(tmp_path, monkeypatch, form):
    """Rejects minutes of tokenising that end in a disk that is full, and a demand far beyond what is written."""
    rows = [reference(post="word " * 300, summary="x" * 60)] * 50
    write_json(tmp_path / "train.jsonl", rows)
    place = tmp_path / "train.jsonl" if form == "jsonl" else write_parquet(tmp_path / "data" / "train.parquet", rows)
    if form == "hub":
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
        monkeypatch.setattr(cache, "find_source", lambda place, split: HubSplit(str(tmp_path / "data"), split))
    call = partial(load_split, place, SFT, characters(), split="train", cache=tmp_path / "cache")
    usage = cache.shutil.disk_usage(tmp_path)
    free = [1000]
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: usage._replace(free=free[0]))
    if form != "parquet":  # fifty equal rows are packed to next to nothing
        with pytest.raises(DamagedError, match=r"cache has 0 MiB free, and .* up to \d+: make room, or name a folder"):
            call()
        assert not [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")]
    free[0] = 2**20
    call()
    (written,) = (tmp_path / "cache").glob("*/tokens.safetensors")
    assert written.stat().st_size < 2**20


def test_of_several_at_once_one_tokenises(cached, monkeypatch):
    """Rejects the processes of one launch all doing the same work, into one draft."""
    calls, results = [], []
    monkeypatch.setattr(cache, "tokenise", lambda *given: calls.append(1) or tokenise(*given))
    threads = [threading.Thread(target=lambda: results.append(cached())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and len(calls) == 1 and same(results[0], results[2])


# numbers


def test_statistics_by_hand(tmp_path):
    """Rejects a median of one of the two middle rows, a response without its EOS, and a difference the wrong way."""
    rows = [
        comparison(" " + "c" * chosen, " " + "d" * rejected, 0)
        for chosen, rejected in ((1, 3), (2, 0 + 1), (9, 1), (4, 1))
    ]
    numbers = token_statistics(load(write_json(tmp_path / "t.jsonl", rows), PREFERENCES, characters()))
    query = HEADINGS + len("baa b")
    assert numbers["rows"] == 4
    assert numbers["query"] == {"mean": query, "median": query, "max": query}
    assert numbers["chosen"] == {"mean": 6.0, "median": 5.0, "max": 11}  # 3, 4, 11, 6: a space and EOS are counted
    assert numbers["rejected"] == {"mean": 3.5, "median": 3.0, "max": 5}
    assert numbers["query_and_chosen"]["max"] == query + 11
    assert numbers["chosen_minus_rejected"] == {"mean": 2.5, "median": 2.0, "max": 8}
    assert numbers["cut"] == {"query": 0, "chosen": 0, "rejected": 0}
    assert flat("x", {"a": {"b": 1}, "c": 2}) == {"x.a.b": 1, "x.c": 2}


def test_every_number_of_the_data_can_be_measured(tmp_path):
    """Rejects a ledger that calls a statistic by another name than ours: it would never be compared."""
    sft = token_statistics(load(write_json(tmp_path / "s.jsonl", [reference()])))
    preferences = token_statistics(load(write_json(tmp_path / "p.jsonl", [comparison()]), PREFERENCES))
    ours = {*flat("sft_data", sft), *flat("preference_data", preferences)}
    of_data = [e["quantity"].split(".") for e in tldr.read_ledger()["expected"] if "_data." in e["quantity"]]
    assert {".".join([data, *rest]) for data, _, *rest in of_data} <= ours


def test_the_ledger_is_whole():
    """Rejects a number without source or provenance, given twice, or that contradicts those it is made of, and a hint
    that can never be given.
    """
    ledger = tldr.read_ledger()
    values = {entry["quantity"]: entry["value"] for entry in ledger["expected"]}
    assert len(values) == len(ledger["expected"])
    for entry in ledger["expected"]:
        assert entry["provenance"] in ("CODE", "CARD", "DERIVED", "PLOT", "DOCS", "WIKI"), entry
        assert entry["source"] and entry["unit"] and entry["tolerance"] >= 0, entry
        assert all(abs(value - entry["value"]) <= entry["tolerance"] for value in entry.get("values", [])), entry
    train = "preference_data.train"
    for name in ("chosen", "rejected"):
        total = values[f"{train}.query.mean"] + values[f"{train}.{name}.mean"]
        assert values[f"{train}.query_and_{name}.mean"] == pytest.approx(total, abs=0.015)  # three rounded numbers
    for hint in ledger["hints"]:
        assert all(any(fnmatchcase(name, pattern) for name in values) for pattern in hint["quantities"]), hint


def findings(**measured):
    return compare({name.replace("__", "."): value for name, value in measured.items()}, tokenizer="org/Pythia-1b")


def test_the_bugs_that_the_data_can_have(tmp_path):
    """Rejects hints that do not fit what the bug does. The lengths come from a split that is made with each bug; only
    their distance from the sound split is compared, as if that had N+'s numbers.
    """
    dice = random.Random(0)
    texts = ["".join(dice.choices("abc ", k=9)).strip() or "a" for _ in range(50)]
    tokenizer = characters()
    sound = [len(ids) for ids, _ in encode_responses(texts, tokenizer, [53] * 50)]
    bugs = {
        "EOS is not appended": [len(tokenizer(f" {text}").input_ids) for text in texts],
        "a BOS before it": [len(characters(bos="<s>")(f" {text}{EOS}").input_ids) for text in texts],
        "a second leading space": [len(tokenizer(f"  {text}{EOS}").input_ids) for text in texts],
    }
    for hint, lengths in bugs.items():
        deviation = (sum(lengths) - sum(sound)) / 50
        (finding,) = findings(sft_data__train__response__mean=33.77 + deviation)
        assert not finding.agrees and hint in finding.hint and hint in finding.line


@pytest.mark.parametrize(
    ("measured", "hint"),
    [
        (dict(sft_data__train__response__mean=33.85), "leading space is missing"),
        (dict(preference_data__train__chosen_minus_rejected__mean=-2.56), "choice is read the wrong way round"),
        (dict(preference_data__train__chosen_minus_rejected__mean=0.1), "choice is ignored"),
        (dict(preference_data__train__query__max=900), "not cut at 512"),
        (dict(preference_data__train__query__mean=347.68), "a space after TL;DR:"),
        (dict(preference_data__validation__rows=83802 + 2284), "CNN/DM"),
        (dict(sft_data__train__rows=116000), "rows are missing"),
        (dict(sft_data__train__cut__response=116722), "BOS"),
        (dict(results__reward_model__1b__accuracy=0.52), "wrong token"),
        (dict(results__ppo__6_9b__kl_per_sequence=26.0), ""),
        (dict(sft_data__train__response__mean=33.7712), ""),
    ],
)  # fmt: skip
def test_hints(measured, hint):
    """Rejects hints that go with the wrong sign or size, and a hint where the numbers agree."""
    for finding in findings(**measured):
        assert finding.agrees == (hint == "")
        assert hint in finding.hint and bool(finding.hint) == bool(hint)


def test_lengths_of_another_tokenizer_are_not_judged():
    """Rejects a bug hinted at because Llama counts other tokens; rows do not depend on the tokenizer."""
    measured = {"sft_data.train.response.mean": 31.0, "sft_data.train.rows": 1, "unknown": 3.0}
    rows, lengths = compare(measured, tokenizer="meta-llama/Llama-3.2-1B")
    assert (rows.comparable, lengths.comparable) == (True, False)
    assert rows.hint and not lengths.hint and "another tokenizer" in lengths.line
