"""A long input costs its cache and one chunk, no more: peak memory of a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "length.py"
SLACK_MIB = 48  # allocator and libraries; a mask of one chunk against 32k tokens alone would be 128


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("kind", ["score", "generate"])
def test_32k_tokens_hold_no_mask_and_no_copy_of_the_cache(kind):
    command = [sys.executable, str(SCRIPT), "--one", kind, "32768"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    row = json.loads(output.splitlines()[-1])
    assert row["cache_mib"] == 32768 * 2 * 2 * 1 * 16 * 4 / 2**20  # tokens × (k, v) × layers × heads × dim × bytes
    assert row["grown_mib"] < row["needed_mib"] + SLACK_MIB
