"""The scripts that need a machine which tests have not are tried small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.full
def test_the_script_for_a_gpu_runs_small_on_a_processor():
    small = ["--sizes", "tiny", "--jobs", "sft", "grpo", "--rows", "2", "--steps", "2", "--tokens", "4"]
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *small, "--sequences", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| tiny")]
    assert [row[1] for row in rows] == ["sft", "grpo", "4"]
    for share in (rows[0][-1], rows[1][-1], rows[2][-2], rows[2][-1]):
        assert 0 < float(share) < 1
