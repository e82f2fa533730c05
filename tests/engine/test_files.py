"""Files that are larger than what one wants in memory."""

import hashlib
import tracemalloc

from rlhf_lib.engine.files import digest


def test_a_large_file_is_hashed_in_blocks(tmp_path):
    """Rejects reading it whole: a checkpoint of a large model is as large as the machine's memory."""
    content = b"0123456789abcdef" * 2**21  # 32 MiB
    (tmp_path / "large").write_bytes(content)
    tracemalloc.start()
    found = digest(tmp_path / "large")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == hashlib.sha256(content).hexdigest()
    assert peak < 4 * 2**20
