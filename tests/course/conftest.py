"""Every test works in a folder of its own: nobody's answers are touched."""

import pytest


@pytest.fixture(autouse=True)
def work_folder(tmp_path, monkeypatch):
    folder = tmp_path / "my_work"
    monkeypatch.setenv("RLHF_WORK", str(folder))
    return folder
