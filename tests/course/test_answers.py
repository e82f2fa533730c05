"""The learner's folder: answers are kept, readable, loadable, and never lost; progress and hints are remembered."""

from __future__ import annotations

import json

import pytest

from rlhf_lib.course import answers, hint, progress
from rlhf_lib.course.checking import check
from rlhf_lib.course.exercises import PREAMBLES, by_name, of_lesson
from rlhf_lib.course.work import Demonstration, leave_no_trace, work_folder
from tests.course.written import solution, solved, written

LESSON = "03_gae"
OTHER = '''def returns(advantages, values, action_mask):
    """Another way to say it, "quoted"."""
    check_one_wider(values, advantages)
    return torch.where(action_mask, advantages + values_before(values), 0.0)
'''


def earlier(folder):
    return sorted((folder / "answers" / "earlier").glob("*.py"))


def test_the_file_is_plain_python_in_the_order_of_the_exercises(work_folder):
    """Rejects a file that does not run by itself, and answers in the order in which they happened to pass."""
    for name in ("td_errors", "returns", "gae"):
        assert getattr(check, name)(solved(name)).passed
    text = (work_folder / "answers" / f"{LESSON}.py").read_text(encoding="utf-8")
    namespace: dict = {}
    exec(compile(text, "answers", "exec"), namespace)
    lesson = {exercise.name for exercise in of_lesson(LESSON)}
    assert [name for name in namespace if name in lesson] == ["td_errors", "gae", "returns"]
    assert PREAMBLES[LESSON].strip() in text


def test_what_an_answer_replaces_is_kept(work_folder):
    """Rejects a second answer that overwrites the first without a trace."""
    assert check.returns(solved("returns")).passed
    assert check.returns(solved("returns")).passed
    assert earlier(work_folder) == []
    assert check.returns(written(OTHER, PREAMBLES[LESSON])).passed
    (kept,) = earlier(work_folder)
    assert solution("returns").strip() in kept.read_text(encoding="utf-8")
    assert answers.sources_of(LESSON) == {"returns": OTHER}


def test_a_wrong_answer_does_not_replace_a_right_one(work_folder):
    """Rejects a check that keeps what failed."""
    check.returns(solved("returns"))
    check.returns(written("def returns(advantages, values, action_mask):\n    return advantages\n"))
    assert answers.sources_of(LESSON)["returns"].strip() == solution("returns").strip()
    assert progress(LESSON).rows[-1].status == "passed"


def test_a_file_broken_by_hand_is_set_aside(work_folder):
    """Rejects a check that crashes on the learner's own edits, and one that throws them away."""
    check.returns(solved("returns"))
    path = work_folder / "answers" / f"{LESSON}.py"
    path.write_text("def returns(:\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"03_gae.py cannot be read \(line 1"):
        assert check.returns(solved("returns")).passed
    assert any(kept.read_text(encoding="utf-8") == "def returns(:\n" for kept in earlier(work_folder))
    assert "returns" in answers.load(LESSON)


def test_hints_come_one_at_a_time():
    """Rejects hints that all come at once, or start again at each call."""
    steps = [hint("gae").text for _ in range(4)]
    assert steps == [*by_name("gae").hints, by_name("gae").hints[-1]]
    assert hint("gae", 1).text == by_name("gae").hints[0]
    assert progress(LESSON).rows[1].hints == 3
    with pytest.raises(ValueError, match="1 to 3, not 4"):
        hint("gae", 4)
    with pytest.raises(KeyError, match="did you mean 'gae'"):
        hint("gea")


def test_progress_counts_tries_and_forgets_nothing(work_folder):
    """Rejects progress that counts untouched stubs, or falls back when a later try is wrong."""
    wrong = written("def td_errors(values, rewards, action_mask, *, gamma):\n    return rewards\n")
    stub = written("def td_errors(values, rewards, action_mask, *, gamma):\n    raise NotImplementedError\n")
    for function, status, tries in ((stub, "not attempted", 0), (wrong, "wrong", 1), (solved("td_errors"), "passed", 2),
                                    (wrong, "passed", 3)):  # fmt: skip
        check.td_errors(function)
        row = progress(LESSON).rows[0]
        assert (row.status, row.tries) == (status, tries)
    assert "1 of 3 passed" in repr(progress(LESSON))
    assert progress().done == 1
    with pytest.raises(KeyError, match="03_gea"):
        progress("03_gea")


def test_a_damaged_record_is_set_aside(work_folder):
    """Rejects progress that crashes for good after one bad write, and one that deletes the evidence."""
    check.td_errors(solved("td_errors"))
    (work_folder / "progress.json").write_text('{"td_errors": {"tr', encoding="utf-8")
    with pytest.warns(UserWarning, match="progress.json cannot be read"):
        assert progress(LESSON).done == 0
    (kept,) = (work_folder / "earlier").glob("progress-*.json")
    assert kept.read_text(encoding="utf-8") == '{"td_errors": {"tr'
    check.td_errors(solved("td_errors"))
    assert json.loads((work_folder / "progress.json").read_text(encoding="utf-8"))["td_errors"]["passed"]


def test_work_is_at_the_top_of_the_course(tmp_path, monkeypatch):
    """Rejects a second my_work/ in every folder that a notebook is opened from."""
    monkeypatch.delenv("RLHF_WORK")
    (tmp_path / "course.py").touch()
    deep = tmp_path / "my_work" / "deeper"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert work_folder() == tmp_path / "my_work"


@pytest.mark.parametrize("named", [True, False])
def test_a_demonstration_is_over_at_its_end(named, work_folder, tmp_path, monkeypatch):
    """Rejects tries of a demonstration that count as the learner's, progress that goes on looking at them, and parts of
    one demonstration that do not know of each other.
    """
    if not named:
        monkeypatch.delenv("RLHF_WORK")
        monkeypatch.chdir(tmp_path)
    check.td_errors(solved("td_errors"))
    demonstration = Demonstration()
    with demonstration:
        assert progress(LESSON).done == 0
        check.returns(solved("returns"))
    assert [row.status for row in progress(LESSON).rows] == ["passed", "not attempted", "not attempted"]
    with pytest.raises(ZeroDivisionError), demonstration:
        assert [row.status for row in progress(LESSON).rows] == ["not attempted", "not attempted", "passed"]
        raise ZeroDivisionError
    assert progress(LESSON).done == 1


def test_a_panel_says_where_the_answer_is(tmp_path, monkeypatch):
    """Rejects a place that the learner would look for in vain."""

    def said() -> str:
        return check.td_errors(solved("td_errors")).next_step

    kept = "Kept in {}: runs can train with it."
    assert said() == kept.format("answers/03_gae.py of a temporary folder")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    assert said() == kept.format(tmp_path / "my_work" / "answers" / "03_gae.py")
    monkeypatch.delenv("RLHF_WORK")
    (tmp_path / "course.py").touch()
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")
    assert said() == kept.format("my_work/answers/03_gae.py")
    assert (tmp_path / "my_work" / "answers" / "03_gae.py").exists()


def test_solutions_leave_no_trace(work_folder):
    """Rejects a page of solutions that passes for the learner's own work."""
    leave_no_trace()
    check.td_errors(solved("td_errors"))
    assert not (work_folder / "answers").exists()
    assert progress(LESSON).done == 1
