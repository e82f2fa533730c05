"""The documents name real things."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = re.findall(r"`(rlhf_lib\.[\w.]+)`", (ROOT / "docs" / "n_plus_details.md").read_text(encoding="utf-8"))
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
