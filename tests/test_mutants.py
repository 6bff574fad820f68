"""Tests fail when the code is broken: every breakage of a `mutants.json` is caught by the test that it names."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    """A module beside this one; pytest does not put the folder of tests on the path."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


sources, runner = _load("mutant_sources"), _load("mutants")
names = pytest.mark.parametrize("mutant", sources.MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))


@pytest.fixture(scope="module")
def statuses() -> dict[str, int]:
    """Every mutant tried once, in two processes that hold no threads and no state of this one."""
    command = [sys.executable, str(HERE / "mutants.py"), "--part"]
    parts = [
        subprocess.Popen([*command, f"{part}/2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for part in range(2)
    ]
    found = dict[str, int]()
    for part in parts:
        out, errors = part.communicate()
        assert out, errors
        statuses = json.loads(out.splitlines()[-1])
        found |= statuses | {"": found.get("", 0) or statuses[""]}
    return found


def test_each_is_found_once_in_its_function_and_changes_one_line() -> None:
    assert "\n".join(sources.faults(sources.MUTANTS)) == ""
    assert len(sources.MUTANTS) >= 200


def test_a_function_that_moved_is_named_with_its_new_place() -> None:
    def fault(function: str, old: str = "return") -> str:
        return "\n".join(sources.faults([sources.Mutant("m", function, old, "pass", "t")]))

    assert fault("alignkit.gone.gae").endswith(
        "nothing named alignkit.gone.gae; one of that name stands at alignkit.functional.gae"
    )
    assert fault("alignkit.functional.no_such") == "mutant 'm': nothing named alignkit.functional.no_such"
    assert "occurs 0 times in alignkit.functional.gae" in fault("alignkit.functional.gae", "no such text")


@pytest.mark.timeout(900)
def test_the_sound_source_passes(statuses: dict[str, int]) -> None:
    assert statuses[""] == 0


@pytest.mark.timeout(900)
@names
def test_caught(mutant: object, statuses: dict[str, int]) -> None:
    status = statuses[mutant.name]  # type: ignore[attr-defined]
    assert status == runner.FAILED, {0: "not caught", -1: "ran too long"}.get(
        status, f"not tried: pytest ended with {status}"
    )
