"""Tests fail when the code is broken: every breakage of `mutants.py` is caught by the test that it names."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("alignkit_mutants", HERE / "mutants.py")
assert _spec is not None
assert _spec.loader is not None
mutants = importlib.util.module_from_spec(_spec)
sys.modules["alignkit_mutants"] = mutants
_spec.loader.exec_module(mutants)

MUTANTS = mutants.MUTANTS
names = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))


@pytest.fixture(scope="module")
def statuses() -> dict[str, int]:
    """Every mutant tried once, in a process that holds no threads and no state of this one."""
    done = subprocess.run([sys.executable, str(HERE / "mutants.py")], capture_output=True, text=True)
    assert done.stdout, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_list_is_true() -> None:
    """Each old text occurs exactly once, each change is one line and compiles, each name is used once."""
    for mutant in MUTANTS:
        compile(mutant.source(), mutant.file, "exec")
        assert mutant.old != mutant.new
        assert "\n" not in mutant.new.strip().split("\n\n\n")[0], f"{mutant.name} changes more than one line"
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
    assert len(MUTANTS) >= 15


@pytest.mark.timeout(900)
def test_the_sound_source_passes(statuses: dict[str, int]) -> None:
    assert statuses[""] == 0


@pytest.mark.timeout(900)
@names
def test_caught(mutant: object, statuses: dict[str, int]) -> None:
    status = statuses[mutant.name]  # type: ignore[attr-defined]
    assert status == mutants.FAILED, {0: "not caught", -1: "ran too long"}.get(
        status, f"not tried: pytest ended with {status}"
    )
