"""One very small finished run that many tests look at."""

from pathlib import Path

import pytest

from rlhf_lib.pipeline.pipeline import run_pipeline
from tests.pipeline.runs import small_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of a run of all five stages."""
    folder = tmp_path_factory.mktemp("finished")
    run_pipeline(small_run(folder))
    return folder
