"""Tests fail when the code is broken: every breakage of a `mutants.json` is caught by the test that it names.

`make test` tries those of the papers' formulas; `make test-full` all, and first their tests on the sound source, which
in `make test` run by themselves.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
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
PROCESSES = 2
full = pytest.mark.full
names = pytest.mark.parametrize(
    "mutant", [pytest.param(m, id=m.name.replace(" ", "_"), marks=[full] * (not m.quick)) for m in sources.MUTANTS]
)


def _chosen(request: pytest.FixtureRequest) -> list[str]:
    """The names of the mutants that this session wants; "" for the sound source, if it wants that too."""
    here = [item for item in request.session.items if item.path == request.path]
    if any("sound_source" in item.name for item in here):  # it is the tests of all that must pass there
        return ["", *(mutant.name for mutant in sources.MUTANTS)]
    return [item.callspec.params["mutant"].name for item in here if getattr(item, "callspec", None)]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def statuses(request: pytest.FixtureRequest) -> dict[str, int]:
    """Every mutant of this session tried once, in processes that hold no threads and no state of this one."""
    command = [sys.executable, str(HERE / "mutants.py"), "--names"]
    chosen, started = _chosen(request), []
    for part in range(PROCESSES):
        with tempfile.TemporaryFile("w+") as asked:
            json.dump([*filter(None, chosen[part::PROCESSES])] + [""] * ("" in chosen), asked)
            asked.seek(0)
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            started.append(subprocess.Popen(command, stdin=asked, text=True, **pipes))  # type: ignore[call-overload]
    found = dict[str, int]()
    for process in started:
        out, errors = process.communicate()
        assert out, errors
        statuses = json.loads(out.splitlines()[-1])
        found |= statuses | {"": found.get("", 0) or statuses.get("", 0)}
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


@full
@pytest.mark.timeout(5400)
def test_the_sound_source_passes(statuses: dict[str, int]) -> None:
    assert statuses[""] == 0


@pytest.mark.timeout(5400)
@names
def test_caught(mutant: object, statuses: dict[str, int]) -> None:
    status = statuses[mutant.name]  # type: ignore[attr-defined]
    assert status == runner.FAILED, {0: "not caught", -1: "ran too long"}.get(
        status, f"not tried: pytest ended with {status}"
    )
