"""The page of a run: self-contained, reproducible, safe to open, right about the numbers, whole without some parts."""

import itertools
import math
import re
import shlex
from dataclasses import asdict
from html.parser import HTMLParser

import matplotlib
import pytest

from rlhf_lib.engine.run_folder import RunFolder
from rlhf_lib.pipeline import pictures
from rlhf_lib.pipeline.errors import UserError
from rlhf_lib.pipeline.report import checks, examples, headline, write_report
from rlhf_lib.pipeline.settings import load_settings

HOSTILE = "<script>alert(1)</script>\"'><img src=https://example.org/x onerror=alert(1)>{{ 7 * 7 }}&amp;"
CHANGES = ["ppo.kl_coef=0.07", "sft.max_grad_norm=none", "sft.imitate_query=true", "evaluation.posts=4"]
SETTINGS = load_settings("tiny", CHANGES, seed=3)
VOID = {"meta", "br", "wbr", "img", "link"}


def summary(text, gold, finished=True):
    return {"text": text, "finished": finished, "gold": gold}


def sample(sft, policy, title="my cousin hid my tent"):
    facts = {"who": "cousin", "did": "hid", "what": "tent", "ask": "sue"}
    reference = summary("my cousin hid my tent", 3.0)
    return {"prompt": f"POST: {title}", "title": title, "facts": facts, "sft": sft, "policy": policy,
            "reference": reference}  # fmt: skip


BETTER = sample(summary("my uncle hid my tent", 1.0), summary("my cousin hid my tent , should i sue ?", 4.0))
WORSE = sample(summary("cousin hid my tent , do i sue ?", 4.0), summary("cousin hid my lamp , do i sue", 1.0, False))
SAME = sample(summary("a cousin", 1.0), summary("a cousin", 1.0), title="need advice about my cousin")
TWICE = sample(summary("my uncle hid", 1.0), summary("my uncle hid my uncle hid", 0.0), title="need advice")


def means(gold):
    copying = {"title_copy_rate": gold / 16, "repetition_rate": gold / 32}
    return {"gold": gold, "rouge_l": 0.5125, **copying, "response_length": 8.25, "eos_rate": 0.875}


def report():
    wins = {
        "win_rate_vs_sft": 0.8216, "win_rate_vs_sft_interval": [0.7813, 0.8502], "length_matched_posts": 2,
        "win_rate_vs_sft_length_matched": 0.7421, "win_rate_vs_reference": 0.6125, "kl_per_sequence": 2.302,
    }  # fmt: skip
    zero = {"kl_before_first_update": 3e-8, "ratio_error_before_first_update": 2e-4, "sampler_forward_gap": 5.25e-6}
    return {
        "preset": "tiny", "seed": 3, "seconds": {"total": 100.5, "sft": 40.5, "ppo": 60.0}, "peak_memory_mib": 777.0,
        "sft": means(1.651), "reference": means(1.302), "ppo": {**means(3.539), **wins, **zero},
        "reward_model": {"accuracy": 0.7063, "accuracy_ceiling": 0.7389, "held_out_pairs": 24, "pairs": 60},
        "versions": {"python": "3.11", "torch": "2.6"}, "parts": {"gae": "rlhf_lib.maths.advantages.gae:0123"},
    }  # fmt: skip


def metrics():
    names = ("kl_per_sequence", "entropy_per_token", "score", "gold", "response_length", "eos_rate", "clip_fraction",
             "approx_kl", "value_loss", "explained_variance", "grad_norm_policy", "grad_norm_value")  # fmt: skip
    rows = [{"stage": "sft", "step": step, "loss": 2 / step, "grad_norm": 1.0} for step in range(1, 71)]
    rows += [{"stage": "reward_model", "step": step, "loss": 0.7, "agreement": 0.5} for step in (1, 2)]
    return rows + [{"stage": "ppo", "update": at, **{name: (at + 1) / 4 for name in names}} for at in range(3)]


@pytest.fixture
def run(tmp_path):
    out = RunFolder(tmp_path)
    out.write_json("report.json", report())
    out.write_json("settings.json", asdict(SETTINGS))
    out.write_lines("metrics.jsonl", metrics())
    out.write_lines("samples.jsonl", [BETTER, WORSE, SAME])
    return out


class Page(HTMLParser):
    """Tags with their attributes, the exact numbers with what is shown, and the text; checks that tags are closed."""

    def __init__(self, run):
        super().__init__()
        self.html = write_report(run.path).read_text(encoding="utf-8")
        self.tags, self.open, self.numbers, self.text = [], [], [], ""
        self.feed(self.html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg"} & set(self.open):
            self.text += data
        if self.open and self.open[-1] == "data":
            self.numbers.append((float(self.tags[-1][1]["value"]), data))

    def words(self):
        return " ".join(self.text.split())

    def all(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]


def assert_alone(page):
    """Nothing is fetched, nothing runs; links lead to places on the page."""
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "image", "iframe", "object", "embed", "base", "form", "audio", "video"}
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"src", "srcset", "action", "poster"}
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.all("href") + page.all("xlink:href")} <= set(ids)
    assert all(link.startswith("#") for link in page.all("href") + page.all("xlink:href"))
    assert set(re.findall(r"url\((.)", page.html)) <= {"#"} and "@import" not in page.html


def test_the_page_needs_nothing_else(run):
    page = Page(run)
    assert_alone(page)
    assert "://" not in page.html
    assert page.html.count("<figure>") == 11


def test_the_same_run_gives_the_same_bytes(run):
    first = write_report(run.path).read_bytes()
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.hashsalt": None, "axes.facecolor": "red"}):
        assert write_report(run.path).read_bytes() == first
    assert b"\r" not in first and str(run.path).encode() not in first


def test_what_a_model_wrote_stays_text(run):
    bad = sample(summary(HOSTILE, 1.0), summary(HOSTILE, 2.0), title=HOSTILE)
    bad["facts"] = {**bad["facts"], "who": HOSTILE}
    bad["sft"]["text"] += " boss"  # contradicts the hostile fact, which lands in an attribute
    run.write_lines("samples.jsonl", [bad])
    run.write_json("report.json", {**report(), "preset": HOSTILE, "versions": {HOSTILE: HOSTILE}})
    page = Page(run)
    assert_alone(page)
    assert HOSTILE in page.text and "not what happened: " + HOSTILE in page.all("title")


def test_the_numbers_are_those_of_the_report(run):
    page, ppo = Page(run), report()["ppo"]
    exact = {value for value, _ in page.numbers}
    inside = [report()["sft"], report()["reference"], {k: v for k, v in ppo.items() if k != "length_matched_posts"}]
    for name, value in [pair for numbers in inside for pair in numbers.items()]:
        assert set(value if isinstance(value, list) else [value]) <= exact, name
    assert {0.7063, 0.7389, 100.5, 777.0, 1e-6, 1e-5, 1e-4} <= exact
    for value, shown in page.numbers:
        if shown.endswith("%"):
            assert math.isclose(100 * value, float(shown.rstrip("\xa0%")), abs_tol=0.5001)
        else:
            assert math.isclose(value, float(shown.replace("−", "-")), abs_tol=0.5001 if value > 50 else 0.00501)
    assert "After 3 PPO updates the summaries win 82 % [78, 85] of comparisons against those of the SFT" in page.words()
    assert "on the 2 posts where" in page.words()


@pytest.mark.parametrize("interval, unclear", [([0.4, 0.6], True), ([0.51, 0.6], False), ([0.3, 0.4], False)])
def test_a_headline_does_not_claim_a_difference_that_may_be_chance(interval, unclear):
    found = headline({"ppo": {"win_rate_vs_sft": 0.5, "win_rate_vs_sft_interval": interval}}, 1)
    assert found.startswith("After 1 PPO update the") and found.endswith(": no clear difference") == unclear


def test_the_checks_are_marked_by_a_word(run):
    words = Page(run).words()
    assert words.count("✓ holds") == 2 and words.count("✗ broken") == 1  # the ratio is off by 2e-4, limit 1e-5
    assert "look at dropout and masks" in words and "look at temperature" not in words


def test_checks_have_the_limits_of_their_precision():
    """Rejects limits of float32 for all, one that a negative mean passes, and a check of what an older run lacks."""
    found = {"sampler_forward_gap": 0.02, "sampler_kl": -0.02}
    holds = {p: {row["name"]: row["holds"] for row in checks(found, p)} for p in ("float32", "bfloat16")}
    assert [holds[p]["sampler_forward_gap"] for p in holds] == [False, True]
    assert [holds[p]["sampler_kl"] for p in holds] == [False, False]
    assert holds["bfloat16"]["kl_before_first_update"] is None


def test_examples_fall_into_the_right_groups():
    """Rejects a group of the wrong writer's summaries, and a post that is shown twice."""
    found = {group["name"]: group for group in examples([BETTER, WORSE, SAME, TWICE])}
    counts = {"Improved": 1, "Got worse": 2, "Same gold": 1, "PPO copied the title": 0, "SFT copied the title": 1,
              "PPO said it twice": 1}  # fmt: skip
    assert {name: group["count"] for name, group in found.items()} == counts
    assert found["SFT copied the title"]["examples"] == []  # it is among the improved already: no post twice
    assert found["Got worse"]["examples"][0]["title"] == WORSE["title"]


def test_wrong_words_are_marked_for_every_reader(run):
    """BETTER: the SFT policy says uncle, not cousin. WORSE: PPO says lamp, not tent, and finds no end."""
    page = Page(run)
    marked = [attributes.get("title") for tag, attributes in page.tags if attributes.get("class") == "wrong"]
    told = {title for title in marked if title}
    assert told == {"not what happened: cousin", "not what happened: tent"}
    assert "uncle (wrong) hid" in page.words() and "lamp (wrong) ," in page.words()
    assert "do i sue (no end)" in page.words()
    assert "text-decoration: underline wavy" in page.html


def test_gold_and_score_are_drawn_over_the_root_of_the_kl(monkeypatch):
    """Rejects KL in place of its root, one of the two curves missing, the two exchanged, and an alt of other curves."""
    found = {"kl_per_sequence": (0.0, 4.0, 9.0), "gold": (1.5, 3.5, 2.5), "score": (0.25, 2.0, 3.75)}
    rows = [{"stage": "ppo", "update": at, **{name: found[name][at] for name in found}} for at in range(3)]
    monkeypatch.setattr(pictures, "_picture", lambda figure, title, alt, caption: (figure, alt))
    figure, alt = pictures.against_distance(rows)
    for axes, metric, label in zip(figure.axes, ("gold", "score"), ("gold, at most 4", "score of"), strict=True):
        assert axes.get_title("left").startswith(label) or axes.get_title().startswith(label)
        assert axes.lines[0].get_xydata().tolist() == [[x, y] for x, y in zip((0, 2, 3), found[metric], strict=True)]
        ends = [line.get_xydata().tolist() for line in axes.lines[1:]]
        assert ends == [[[0, found[metric][0]]], [[3, found[metric][-1]]]]
    assert alt == [
        "√KL: from 0 to 3, between 0 and 3",
        "gold, at most 4: from 1.5 to 2.5, between 1.5 and 3.5",
        "score of the reward model: from 0.25 to 3.75, between 0.25 and 3.75",
    ]


@pytest.mark.parametrize("stage, heading", [("ppo", "PPO"), ("reward_model", "Reward model"), ("sft", "SFT")])
def test_a_stage_that_was_not_run_here_is_said_to_be_missing(run, stage, heading):
    run.write_lines("metrics.jsonl", [row for row in metrics() if row["stage"] != stage])
    words = Page(run).words()
    assert words.count("not run here") == 1 and f"{heading}: not run here" in words


def test_only_the_report_is_needed(run):
    for name in ("metrics.jsonl", "samples.jsonl", "settings.json"):
        (run / name).unlink()
    run.write_json("report.json", {"preset": "tiny", "seed": 3, "sft": None, "ppo": {}})
    page = Page(run)
    assert_alone(page)
    assert "not compared yet" in page.words() and "settings.json is not here" in page.words()
    assert page.numbers and {value for value, _ in page.numbers} == {1e-6, 1e-5, 1e-4, 5e-6}  # limits, else n/a


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("missing", [math.nan, None, math.inf])
def test_numbers_that_are_not_there(run, missing):
    ppo = {**report()["ppo"], "win_rate_vs_sft": missing, "kl_before_first_update": missing, "gold": missing}
    run.write_json("report.json", {**report(), "ppo": ppo, "seconds": {"total": missing, "sft": missing}})
    run.write_lines("metrics.jsonl", [{**row, "gold": missing, "loss": missing} for row in metrics()])
    run.write_lines("samples.jsonl", [sample(summary("", missing), summary("x", 1.0))])
    page = Page(run)
    assert "1.65 → n/a" in page.words() and "(nothing)" in page.words()
    assert any("loss: n/a" in label for label in page.all("aria-label"))
    assert not re.search(r"\b(nan|inf|None)\b", page.text) and "nan" not in " ".join(page.all("d")).lower()


def test_a_run_without_a_report(tmp_path):
    with pytest.raises(UserError, match="finish the run first"):
        write_report(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_the_command_on_the_page_has_the_settings_of_the_run(run):
    command = re.search(r"<pre><code>(.*?)</code></pre>", write_report(run.path).read_text(encoding="utf-8")).group(1)
    words = shlex.split(command)
    changes = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
    assert set(changes) == set(CHANGES)
    assert load_settings(words[words.index("--preset") + 1], changes, seed=3) == SETTINGS and "--seed 3" in command


def test_what_was_changed_on_the_way_stands_below_the_command(run):
    """Rejects a page that promises the same run though no command gives it, a change without its place, and one of an
    older run, which kept no step, that is shown after step 0.
    """
    assert "gives the same run" in Page(run).words() and "Changed on the way" not in Page(run).words()
    changed = {"ppo.micro_batch_size": [32, 4], "engine.gradient_checkpointing": [False, True]}
    rows = [
        {"stage": "ppo", "steps_done": 7, "changed": changed},
        {"stage": "evaluation", "changed": {"world.sampled_at_once": [512, 5]}},
    ]
    run.write_json("report.json", {**report(), "changes": rows})
    page = Page(run)
    assert "gives the same run" not in page.words()
    table = re.search(r"<th scope=\"col\">Changed on the way.*?</table>", page.html, re.DOTALL)[0]
    cells = [re.findall(r"<t[hd][^>]*>(?:<code>)?([^<]*)", row) for row in table.split("<tr>")[1:]]
    assert cells == [
        ["ppo.micro_batch_size", "32", "4", "stage ppo, after step 7"],
        ["engine.gradient_checkpointing", "false", "true", "stage ppo, after step 7"],
        ["world.sampled_at_once", "512", "5", "stage evaluation"],
    ]


def test_readers_who_cannot_see_the_page(run):
    page = Page(run)
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    pictures = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(pictures) == 11 and all(len(attributes["aria-label"]) > 20 for attributes in pictures)
    assert "gold, at most 4: from 0.25 to 0.75, between 0.25 and 0.75" in page.html
    assert ("html", {"lang": "en"}) in page.tags


def luminance(colour):
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_by_day_and_by_night(run):
    colours = re.findall(r"--(\w+): (#\w{6})", write_report(run.path).read_text(encoding="utf-8"))
    assert len(colours) == 20
    for theme in (dict(colours[:10]), dict(colours[10:])):
        for text in ("ink", "soft", "first", "second", "good", "bad"):
            for ground in ("page", "card"):
                light, dark = sorted((luminance(theme[text]), luminance(theme[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
