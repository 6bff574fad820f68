"""Two processes learn what one learns: the same samples, the same gradients, the same numbers in the log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("processes_script.py")
METHODS = Path(__file__).with_name("processes_methods_script.py")


def run(command, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    one = run([sys.executable, str(SCRIPT), str(tmp_path / "one")], tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    two = run([*launch, str(SCRIPT), str(tmp_path / "two"), "ddp"], tmp_path)
    assert two["samples"] == one["samples"]
    assert two["stages"] == one["stages"] == 3
    assert two["meters"] == one["meters"]
    assert two["cut"] == one["cut"] in (2, 3, 4)
    assert [row.keys() for row in two["steps"]] == [row.keys() for row in one["steps"]]
    for a, b in zip(one["steps"], two["steps"], strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
        # Tokens of an untrained model have nearly the same entropy; one micro-batch counted twice changes it by 3e-6.
        assert b["entropy"] == pytest.approx(a["entropy"], rel=1e-7)
    assert len(one["gradients"]) == len(two["gradients"]) == 4
    for a, b in zip(one["gradients"], two["gradients"], strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)  # the order of float32 sums differs; 1e-6 measured


def weights(folder):
    """Every weight that a stage wrote, by file and name."""
    files = sorted(f for f in Path(folder).rglob("*.safetensors") if f.name != "metrics.safetensors")
    return {(str(f.relative_to(folder)), name): t.double() for f in files for name, t in load_file(f).items()}


@pytest.mark.slow
def test_two_processes_reach_the_weights_of_one(tmp_path):
    """Half a minute: what one process trains, two do, whatever a pass leaves untouched. A value head has no gradient
    from a stream, nor the output layer of a value model from anything: DDP's own sum waited for them, and died."""
    one = run([sys.executable, str(METHODS), str(tmp_path / "one")], tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    two = run([*launch, str(METHODS), str(tmp_path / "two"), "ddp"], tmp_path)
    assert list(two["stages"]) == list(one["stages"])
    for name, folder in one["stages"].items():
        alone, both = weights(folder), weights(two["stages"][name])
        assert list(alone) == list(both)
        assert len(alone) > 0, name
        for where, right in alone.items():
            # Eight steps of 1e-3, and float32 sums in another order: 1.2e-7 measured.
            assert (both[where] - right).abs().max() < 1e-6, (name, where)
    assert two["gradients"] == [[3.0] * 6, [3.0] * 6, [1.0] * 2, [2.0] * 2, None]
