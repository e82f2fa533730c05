"""What the process does with freed memory, in a process of its own: the setting cannot be taken back."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from rlhf_lib.engine.allocator import keep_what_is_freed
torch.set_num_threads(1)
told = sys.argv[1] == "told" and keep_what_is_freed()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def some():
    return [torch.ones(size * 2**18) for size in (40, 8, 3)]
for _ in range(5):
    some()  # until each has found its place
counts = []
for _ in range(5):
    before = faults()
    some()
    counts.append(faults() - before)
print(int(told), min(counts))  # the system may take pages away in between
"""


def faults(how: str) -> tuple[int, int]:
    """Whether the C library could be told, and page faults of the same three tensors once more, the least of five."""
    done = subprocess.run([sys.executable, "-c", CODE, how], text=True, check=True, stdout=subprocess.PIPE)
    told, count = map(int, done.stdout.split())
    return told, count


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted on Linux")
def test_freed_memory_is_used_again():
    """Rejects a setting that the C library does not take, and one that changes nothing."""
    (told, kept), (_, given_back) = faults("told"), faults("not told")
    if not told:
        pytest.skip("this C library cannot be told")
    assert kept < 100 < given_back
