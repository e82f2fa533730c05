"""The documents name real things."""

from __future__ import annotations

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = re.findall(r"`(rlhf_lib\.[\w.]+)`", (ROOT / "docs" / "n_plus_details.md").read_text(encoding="utf-8"))
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
RECORDED = ROOT / "rlhf_lib" / "worlds" / "tiny_tldr" / "assets" / "runs" / "tiny" / "seed0" / "metrics.jsonl"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("*/README.md")]


def resolve(name: str) -> object:
    """The module, class, function or attribute behind a dotted name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", sorted(set(NAMES)))
def test_the_table_of_details_names_code_that_exists(name):
    """Catches a renamed function whose row in docs/n_plus_details.md went stale."""
    resolve(name)


def test_the_table_of_details_is_not_empty():
    assert len(set(NAMES)) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page):
    """Catches a link to a file, or to a heading or anchor in it, that is not there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", ["README.md", "notebooks/README.md"])
def test_every_lesson_is_linked(page):
    """Catches a lesson, or in the README its exercise, that readers of the page would not find."""
    text = (ROOT / page).read_text(encoding="utf-8")
    folders = ("notebooks", "exercises") if page == "README.md" else ("notebooks",)
    for notebook in (path for folder in folders for path in sorted((ROOT / folder).glob("*.ipynb"))):
        target = notebook.relative_to((ROOT / page).parent).as_posix()
        assert f"]({target})" in text, f"{page} does not link to {target}"


def anchors(text: str) -> set[str]:
    """Explicit ids, and headings as GitHub slugs them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'id="([^"]+)"', text))


def test_the_readme_shows_what_a_check_really_says(monkeypatch, tmp_path):
    """Catches a sample in the README that no check says any more."""
    from rlhf_lib.course.checking import judge
    from rlhf_lib.course.exercises import by_name

    monkeypatch.setenv("RLHF_WORK", str(tmp_path))
    exercise = by_name("td_errors")
    twin = next(twin for twin in exercise.twins if twin.says.startswith("you bootstrapped from padding"))
    assert str(judge(exercise, twin.answer)) in (ROOT / "README.md").read_text(encoding="utf-8")


def minutes(path: Path) -> int:
    """What a notebook says of itself: a lesson in its first cell, an exercise on a badge a stub."""
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"About (\d+) minutes" if path.parent.name == "notebooks" else r"· (\d+) minutes", text)
    return sum(map(int, found))


@pytest.mark.parametrize("lesson", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_readme_says_how_long_a_lesson_takes(lesson):
    """Catches a lesson or an exercise that has got longer."""
    exercise = ROOT / "exercises" / lesson.name
    takes = f"{minutes(lesson)} + {minutes(exercise)}" if exercise.exists() else str(minutes(lesson))
    assert f"](notebooks/{lesson.name}) | {takes} | " in (ROOT / "README.md").read_text(encoding="utf-8")


def shown(number: float | None) -> str:
    return "" if number is None else str(number) if isinstance(number, int) else f"{number:.2g}"


@pytest.mark.parametrize("stage", ["sft", "reward_model", "ppo"])
def test_the_table_of_metrics_is_that_of_a_run(stage):
    """Catches a key that no run writes, one that is not explained, another run's numbers, and a name that is gone."""
    lines = METRICS.split(f'`"stage": "{stage}"`')[1].split("\n## ")[0].splitlines()
    table = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    rows = [row for row in map(json.loads, RECORDED.read_text(encoding="utf-8").splitlines()) if row["stage"] == stage]
    keys = dict.fromkeys(key for row in rows for key in row if key != "stage")
    assert [row[0] for row in table] == list(keys)
    assert [row[2:4] for row in table] == [[shown(rows[0].get(key)), shown(rows[-1].get(key))] for key in keys]
    for *_, where in table:
        resolve(where)


def lit(lesson: Path) -> list[str]:
    """The lines of the page that a lesson lights."""
    from rlhf_lib.course.lesson import page

    cells = json.loads(lesson.read_text(encoding="utf-8"))["cells"]
    source = next(text for cell in cells if "\npage(" in (text := "".join(cell["source"])) or text.startswith("page("))
    call = ast.parse(source).body[-1].value
    words = [ast.literal_eval(word) for word in call.args]
    return [line for line in repr(page(*words)).splitlines() if line.startswith(">")]


def test_the_map_of_lesson_00_is_what_the_lessons_light():
    """Catches a line of the page that a lesson lights and the map does not tell, or the other way round."""
    start, *lessons = sorted((ROOT / "notebooks").glob("*.ipynb"))
    told = {}
    for verbs, where in re.findall(r'"\| (`.+?) \| .+ \| ([\d, ]+) \|', start.read_text(encoding="utf-8")):
        told |= dict.fromkeys(re.findall(r"`(\w+)`", verbs), where.split(", "))
    whole_page = ("07", "08")
    lines = {lesson.name[:2]: lit(lesson) for lesson in lessons if lesson.name[:2] not in whole_page}
    assert told == {verb: [n for n in lines if any(f"{verb}(" in line for line in lines[n])] for verb in told}
    assert len(told) == 8
