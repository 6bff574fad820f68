"""Break the code line by line and see whether the tests notice.

`python tests/mutants.py [WORDS]` tries the mutants (see `mutant_sources.py`), or those whose name contains WORDS, and
prints a JSON object of exit statuses: 1 is caught, 0 is missed; on standard error, as they come, status, seconds and
name of each. `--names` tries those of a JSON list on standard input, where "" stands for the sound source. `--check`
looks only whether each is found where it says and changes one line.

A mutant costs a fraction of a second: this process imports the heavy third-party libraries once, and each mutant runs
pytest in a fork of it, where an import hook serves the mutated source. A mutant with `"fresh": true` runs in a new
process on a mutated copy of the package, for tests that start processes of their own.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

from mutant_sources import MUTANTS, ROOT, Mutant, faults

TIMEOUT = 120.0
"""Seconds after which a mutant counts as not caught by its test."""
SOUND_TIMEOUT = 1800.0
"""Seconds that the tests of all mutants may take on the sound source."""
FAILED = 1
"""pytest's exit status when tests ran and failed; any other one means that the mutant was not really tried."""
PRELOAD = (
    "pytest",
    "torch",
    "hypothesis",
    "hypothesis.strategies",
    "hypothesis.extra",
    "datasets",
    "numpy",
    "pluggy",
    "lightning",
    "transformers",
    "peft",
    "transformers.models.llama",
)
"""What every fork would import by itself; nothing of alignkit, whose modules must come from the mutated source."""
DISPENSABLE = ("cacheprovider", "anyio", "unraisableexception", "threadexception", "warnings", "junitxml", "doctest")
"""Plugins of pytest that cost time in every fork."""


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):  # type: ignore[misc]
    """Serves one module from a text, before any other finder is asked."""

    def __init__(self, name: str, path: str, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        package = self.path.endswith("__init__.py")
        return importlib.util.spec_from_file_location(
            fullname,
            self.path,
            loader=self,
            submodule_search_locations=[str(Path(self.path).parent)] if package else None,
        )

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        return self.source.encode()


def _pytest(tests: Sequence[str]) -> int:
    """Run tests in this process; node ids may end in the beginning of a test's name."""
    import hypothesis
    import pytest

    files = sorted({test.split("::")[0] for test in tests})
    wanted = [test.split("::")[-1] for test in tests]

    class Select:
        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            items[:] = [item for item in items if any(item.name.startswith(name) for name in wanted)]

    # Whether a test fails is all that counts: no rewritten assertions, no further plugins, no shrinking of examples.
    options = ["-x", "-q", "--tb=no", "--assert=plain", f"--rootdir={ROOT}", *(f"-pno:{name}" for name in DISPENSABLE)]
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None)
    hypothesis.settings.load_profile("mutants")
    return int(pytest.main([*options, *files], plugins=[Select()]))


def _fork(tests: Sequence[str], mutant: Mutant | None) -> int:
    """Run tests in a fork, with the mutated source if there is one; returns pytest's exit status, -1 past its limit."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            if mutant is not None:
                sys.meta_path.insert(0, _Mutated(mutant.place.module, str(mutant.place.file), mutant.source()))
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                status = _pytest(tests)
        finally:
            os._exit(status)
    return _wait(pid, SOUND_TIMEOUT if mutant is None else TIMEOUT)


def _wait(pid: int, limit: float) -> int:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -1


def _fresh(mutant: Mutant) -> int:
    """Run the mutant's test in a new process, on a copy of what it breaks; returns pytest's exit status."""
    place = mutant.place
    with tempfile.TemporaryDirectory() as folder:
        inside = place.file.relative_to(place.top)
        if len(inside.parts) > 1:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(place.top / inside.parts[0], Path(folder) / inside.parts[0], ignore=ignored)
        (Path(folder) / inside).write_text(mutant.source(), encoding="utf-8")
        # PYTHONSAFEPATH keeps the repository's root, which holds the sound package, off the path.
        paths = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(Path(__file__)), "--test", mutant.test]
        try:
            return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=TIMEOUT).returncode
        except subprocess.TimeoutExpired:
            return -1


def try_all(mutants: Sequence[Mutant], sound: bool = True) -> dict[str, int]:
    """Exit status of each mutant's test; under "" the one of all these tests on the sound source (0 if they pass)."""
    import torch

    torch.set_num_threads(1)  # a fork must not inherit a pool of threads
    for name in PRELOAD:
        importlib.import_module(name)
    torch.testing.assert_close(torch.ones(1), torch.ones(1))  # a second of imports, the first time
    gc.freeze()
    results = {"": _fork(sorted({mutant.test for mutant in mutants}), None)} if sound else {}
    for mutant in mutants:
        start = time.monotonic()
        results[mutant.name] = _fresh(mutant) if mutant.fresh else _fork([mutant.test], mutant)
        seconds = time.monotonic() - start
        print(f"{results[mutant.name]:3d} {seconds:6.1f} s  {mutant.name}", file=sys.stderr, flush=True)
    return results


def main(arguments: Sequence[str]) -> int:
    """Try the mutants whose name contains the argument, or check all as written; 0 when all is well."""
    os.chdir(ROOT)
    if arguments[:1] == ["--test"]:
        return _pytest(arguments[1:])
    if arguments[:1] == ["--check"]:
        print("\n".join(wrong := faults(MUTANTS)) or f"{len(MUTANTS)} mutants, each found once")
        return 1 if wrong else 0
    if arguments[:1] == ["--names"]:
        names = json.load(sys.stdin)
        chosen, sound = [mutant for mutant in MUTANTS if mutant.name in names], "" in names
    else:
        chosen, sound = [mutant for mutant in MUTANTS if not arguments or arguments[0] in mutant.name], True
    results = try_all(chosen, sound)
    print(json.dumps(results))
    return 0 if results.pop("", 0) == 0 and set(results.values()) <= {FAILED} else 1


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT]
    sys.exit(main(sys.argv[1:]))
