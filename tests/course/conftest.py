"""Every test works in a folder of its own: nobody's answers are touched."""

import pytest

from tests.helpers import annotations_off


@pytest.fixture(autouse=True)
def work_folder(tmp_path, monkeypatch):
    folder = tmp_path / "my_work"
    monkeypatch.setenv("RLHF_WORK", str(folder))
    return folder


@pytest.fixture(autouse=True)
def as_a_learner_runs_it():
    """Without the enforced annotations of the other tests: they would refuse wrong arguments before the library can."""
    with annotations_off():
        yield
