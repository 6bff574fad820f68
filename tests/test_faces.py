"""The faces are what stays as it is: `alignkit`, `alignkit.plugin`, `alignkit.testing`. Plugins use nothing else."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FACES = ("alignkit", "alignkit.plugin")
WITH_TESTING = (*FACES, "alignkit.testing")


def from_the_core(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of what a file imports from the core, anywhere in it, under `TYPE_CHECKING` too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and re.fullmatch(r"alignkit(\..*)?", node.module or ""):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names if re.fullmatch(r"alignkit(\..*)?", a.name))


def beside(pattern: str, faces: tuple[str, ...]) -> dict[str, list[str]]:
    """What files import from the core beside what the faces offer."""
    offered = {face: set(importlib.import_module(face).__all__) | {"__version__"} for face in faces}
    paths = sorted(ROOT.glob(pattern))
    assert len(paths) >= 12, "no plugins were found"
    found = {}
    for path in paths:
        used = [(m, n) for m, n in from_the_core(path) if not (m in faces and (not n or n in offered[m]))]
        if used:
            found[path.relative_to(ROOT).as_posix()] = [f"{module}.{name}".rstrip(".") for module, name in used]
    return found


def test_a_plugin_imports_from_the_two_faces_alone() -> None:
    assert beside("plugins/*/src/**/*.py", FACES) == {}


def test_the_tests_of_a_plugin_need_no_more_than_testing_beside_them() -> None:
    assert beside("plugins/*/tests/**/*.py", WITH_TESTING) == {}


def test_the_docs_show_no_other_module() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("plugins/*/README.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    shown = set(re.findall(r"^\s*(?:from|import) (alignkit[\w.]*)", text, re.MULTILINE))
    assert {module for module in shown if module.split(".")[0] == "alignkit"} == set(WITH_TESTING)


@pytest.mark.parametrize("face", WITH_TESTING)
def test_every_name_of_a_face_is_there(face: str) -> None:
    module = importlib.import_module(face)
    assert len(set(module.__all__)) == len(module.__all__) > 20
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module '{face}' has no attribute 'no_such'"):
        module.no_such  # noqa: B018


@pytest.mark.parametrize("face", FACES)
def test_type_checkers_see_the_names_that_are_there(face: str) -> None:
    """The list that is looked up at run time is the one written out for editors, each name from the same module."""
    module = importlib.import_module(face)
    (block,) = (n for n in ast.parse(Path(module.__file__ or "").read_text()).body if isinstance(n, ast.If))
    shown = {(node.module, alias.name) for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert shown == {(home, name) for home, names in module._HOMES.items() for name in names.split()}


def test_the_docstring_of_the_authors_face_tells_every_name() -> None:
    import alignkit.plugin

    told = re.findall(r"`(\w+)`", alignkit.plugin.__doc__ or "")
    assert sorted(told) == alignkit.plugin.__all__


def test_a_type_checker_refuses_a_misspelled_name_and_sees_the_others(tmp_path: Path) -> None:
    """A module-level `__getattr__` that it could see would make every name a name."""
    names = "\n".join(f"from {face} import {', '.join(importlib.import_module(face).__all__)}" for face in FACES)
    (tmp_path / "author.py").write_text(f"{names}\nfrom alignkit import Rnu\nfrom alignkit.plugin import Btach\n")
    read = [str(ROOT / "alignkit" / f"{name}.py") for name in ("__init__", "plugin", "_lazy", "_version")]
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=skip", "author.py", *read]
    environment = {"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    seen = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False).stdout
    wrong = [line for line in seen.splitlines() if line.startswith("author.py")]
    assert [re.findall(r'has no attribute "(\w+)"', line) for line in wrong] == [["Rnu"], ["Btach"]], seen
