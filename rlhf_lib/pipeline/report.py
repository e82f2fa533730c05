"""report.html: what a finished run looks like, on one page that needs no network.

Read `write_report`, then what it puts on the page: sentences and numbers, then examples. `pictures` draws the plots.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import jinja2
from markupsafe import Markup

from ..algorithms.step_zero import LIMITS
from ..engine.evaluation import is_copy, repeats_itself
from ..engine.precision import slack
from ..engine.run_folder import read_lines
from ..worlds.tiny_tldr.summaries import SLOT_OF
from .errors import MissingInputError
from .pictures import pictures
from .settings import PRESETS, Settings, from_json, keys, value_of

SPACE = "\N{NO-BREAK SPACE}"
WRITERS = {"sft": "SFT", "policy": "PPO", "reference": "reference"}
HOLDS = {
    "kl_before_first_update": "Policy and reference are the same model (nats a token).",
    "ratio_error_before_first_update": "Training sees the probabilities that the rollout saw (ratio less 1).",
    "sampler_forward_gap": "Texts are drawn from the distribution that is scored (nats, the worst token).",
    "sampler_kl": "They are on average as well (nats a token; rounding averages out, a filter does not).",
}


def write_report(folder: str | Path) -> Path:
    """Write report.html into the folder of a run and return its path. The same folder gives the same bytes.

    raises  MissingInputError if the run has no report.json yet
    """
    folder = Path(folder)
    if not (folder / "report.json").is_file():
        raise MissingInputError(
            f"{folder / 'report.json'} does not exist: the run's evaluation makes it, so finish the run first with "
            f"python -m rlhf_lib run --out {folder}"
        )
    template = _environment().get_template("report.html.j2")
    page = folder / "report.html"
    page.write_text(template.render(**contents(folder)) + "\n", encoding="utf-8", newline="\n")
    return page


def contents(folder: Path) -> dict:
    """Everything the template shows."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    metrics, samples = (_rows(folder / name) for name in ("metrics.jsonl", "samples.jsonl"))
    settings = folder / "settings.json"
    chosen = from_json(settings.read_text(encoding="utf-8")) if settings.is_file() else None
    return dict(
        report=report,
        headline=headline(report, sum(row.get("stage") == "ppo" for row in metrics)),
        checks=checks(report.get("ppo") or {}, chosen.engine.precision if chosen else "float32"),
        groups=examples(samples),
        unpicked=[example(row) for row in samples[:12]],
        posts=len(samples),
        yardstick=yardstick(samples),
        pictures=pictures(report, metrics, samples),
        settings=compare_with_preset(chosen) if chosen else [],
        changes=changes_on_the_way(report.get("changes") or []),
    )


# --------------------------------------------------------------------------------------------- sentences and numbers


def headline(report: dict, updates: int) -> str:
    """The result in one sentence."""
    ppo = report.get("ppo") or {}
    rate, interval = ppo.get("win_rate_vs_sft"), ppo.get("win_rate_vs_sft_interval")
    if not _is_number(rate):
        return f"A run of the preset {report.get('preset')} whose summaries were not compared yet"
    after = f"After {updates} PPO update{'s' * (updates != 1)}" if updates else "After PPO"
    sentence = f"{after} the summaries win {percent(rate, 0)} of comparisons against those of the SFT policy"
    if not (interval and all(map(_is_number, interval))):
        return sentence
    low, high = interval
    unclear = ": no clear difference" if low <= 0.5 <= high else ""
    return sentence.replace("%", f"% [{100 * low:.0f},{SPACE}{100 * high:.0f}]", 1) + unclear


def checks(found: dict, precision: str) -> list[dict]:
    """The step-zero checks with their limits in this precision; `holds` is None where the number is not there."""
    limits = {name: limit * slack(name, precision) for name, (limit, _) in LIMITS.items()}
    return [
        dict(
            name=name, says=HOLDS.get(name, name), found=found.get(name), limit=limits[name],
            where_to_look=where_to_look, holds=abs(found[name]) < limits[name] if _is_number(found.get(name)) else None,
        )
        for name, (_, where_to_look) in LIMITS.items()
    ]  # fmt: skip


def compare_with_preset(settings: Settings) -> list[dict]:
    """Every setting as `run --set` takes it, and whether it differs from the preset's."""
    preset = PRESETS.get(settings.preset, Settings())
    values = {key: value_of(settings, key) for key in keys(settings)}
    return [
        dict(key=key, value=str(value).lower(), changed=key != "seed" and value != value_of(preset, key))
        for key, value in values.items()
    ]


def changes_on_the_way(rows: list[dict]) -> list[dict]:
    """Each setting that a resumed run changed: what it was and is, and since when."""
    return [
        dict(key=key, before=str(before).lower(), now=str(now).lower(), since=_since(row))
        for row in rows
        for key, (before, now) in row["changed"].items()
    ]


def _since(row: dict) -> str:
    """An older run did not write down the step."""
    done = f", after step {row['steps_done']}" if row.get("steps_done") else ""
    return f"stage {row['stage']}{done}"


def number(value: object, digits: int = 2) -> str:
    """With so many digits after the point; "n/a" for what is missing or not finite."""
    return f"{value:.{digits}f}".replace("-", "−") if _is_number(value) else "n/a"


def percent(value: object, digits: int = 1) -> str:
    return f"{number(100 * value, digits)}{SPACE}%" if _is_number(value) else "n/a"


def tiny(value: object) -> str:
    """Three significant digits."""
    return f"{value:.3g}".replace("-", "−") if _is_number(value) else "n/a"


def _exactly(show: Callable) -> Callable:
    """A filter that shows a rounded value and carries the exact one in a <data> element."""

    def markup(value: object, *rest: int) -> str:
        exact = Markup('<data value="{}">{}</data>')
        return exact.format(json.dumps(value), show(value, *rest)) if _is_number(value) else "n/a"

    return markup


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _rows(path: Path) -> list[dict]:
    return read_lines(path) if path.is_file() else []


def _environment() -> jinja2.Environment:
    """Whatever a model wrote is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update({show.__name__: _exactly(show) for show in (number, percent, tiny)})
    return environment


# ---------------------------------------------------------------------------------------------------- the examples


def examples(samples: list[dict], most: int = 2) -> list[dict]:
    """Groups of posts by what PPO changed: how many there are, and a few of them, no post twice."""
    gains = [(_worth(row["policy"]) - _worth(row["sft"]), row) for row in samples]
    copies = {name: [row for row in samples if is_copy(row[name]["text"], row["title"])] for name in WRITERS}
    groups = {
        "Improved": [row for gain, row in sorted(gains, key=lambda pair: -pair[0]) if gain > 0],
        "Got worse": [row for gain, row in sorted(gains, key=lambda pair: pair[0]) if gain < 0],
        f"Same {yardstick(samples)}": [row for gain, row in gains if gain == 0],
        "PPO copied the title": copies["policy"],
        "SFT copied the title": copies["sft"],
        "PPO said it twice": [row for row in samples if repeats_itself(row["policy"]["text"])],
    }
    shown: list[dict] = []
    for name, rows in groups.items():
        new = [row for row in rows if row not in shown][:most]
        shown += new
        groups[name] = dict(name=name, count=len(rows), examples=[example(row) for row in new])
    return list(groups.values())


def yardstick(samples: list[dict]) -> str:
    """What the summaries were judged by: gold, or the score of the reward model."""
    return "score" if samples and "score" in samples[0]["policy"] else "gold"


def example(row: dict) -> dict:
    """One post with what everybody wrote; a word that contradicts the facts carries the fact."""
    written = [dict(row[name], by=by, words=claims(row[name]["text"], row["facts"])) for name, by in WRITERS.items()]
    return dict(row, written=written)


def claims(text: str, facts: dict[str, str]) -> list[tuple[str, str | None]]:
    """Each word with the fact that it contradicts, or None."""
    facts_of = [(word, facts.get(SLOT_OF.get(word, ""))) for word in text.split()]
    return [(word, fact if word in SLOT_OF and word != fact else None) for word, fact in facts_of]


def _worth(summary: dict) -> float:
    """Gold, or the reward model's score where nobody gave gold."""
    worth = summary.get("gold", summary.get("score"))
    return worth if _is_number(worth) else math.nan
