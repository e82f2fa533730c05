"""Before any test: no network, one thread, the same numbers every time, and the annotations of the maths enforced."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", PYTHONHASHSEED="0", CUDA_VISIBLE_DEVICES="")

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("rlhf_lib.maths", "beartype.beartype")  # works only on modules that nobody has imported yet
pytest.register_assert_rewrite("tests.helpers", "tests.maths.specifications")

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
hypothesis.settings.register_profile("course", max_examples=25, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("course")
