"""The structure: no module needs itself to be imported, not even for a type checker, and no function is long."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (ROOT / "alignkit", *sorted(ROOT.glob("plugins/*/src/*")))


def modules() -> dict[str, Path]:
    """Every module of the core and of the plugins: its name and its file."""
    files = [path for source in SOURCES for path in ([source] if source.is_file() else sorted(source.rglob("*.py")))]
    return {name_of(path): path for path in files if path.suffix == ".py"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    inside = parts[parts.index("src") + 1 :] if "src" in parts else parts
    return ".".join(inside).removesuffix(".__init__")


def imported(text: str) -> Iterator[tuple[str, str]]:
    """(module, name taken from it) of every import; the name is empty for a plain one."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import, which this test does not follow"
            yield from ((node.module or "", name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            yield from ((name.name, "") for name in node.names)


def graph(texts: Mapping[str, str]) -> dict[str, set[str]]:
    """What each module imports of the others. A name that is a module of its package counts as that module."""
    known: dict[str, set[str]] = {}
    for module, text in texts.items():
        found = {f"{a}.{b}" if f"{a}.{b}" in texts else a for a, b in imported(text)}
        known[module] = (found & set(texts)) - {module}
    return known


def circle(known: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle, in order; empty where there is none."""
    try:
        TopologicalSorter(known).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_of_the_repository_is_in_a_circle() -> None:
    texts = {name: path.read_text(encoding="utf-8") for name, path in modules().items()}
    assert {"alignkit.run.run", "alignkit_rlaif.http", "alignkit_ppo"} <= set(texts)
    assert not circle(graph(texts))


@pytest.mark.parametrize(
    ("back", "found"),
    [
        ("from a.one import f", True),
        ("def g():\n    import a.one", True),
        ("class C:\n    def g(self):\n        from a import one", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.one import f", True),
        ("from a import elsewhere", False),
    ],
)
def test_a_circle_is_seen_wherever_the_import_stands(back: str, found: bool) -> None:
    assert bool(circle(graph({"a": "", "a.one": "from a.two import g", "a.two": back}))) is found


def lengths(path: Path) -> Iterator[tuple[str, int]]:
    """Lines of code of every function of a file: what it says of itself and blank lines left out."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            first = body[0].lineno if body else node.lineno
            inside = lines[node.lineno - 1 : node.body[0].lineno - 1] + lines[first - 1 : node.end_lineno]
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", sum(bool(line.strip()) for line in inside)


def test_no_function_of_the_core_is_longer_than_sixty_lines() -> None:
    found = [each for path in sorted((ROOT / "alignkit").rglob("*.py")) for each in lengths(path)]
    assert len(found) > 500
    assert [each for each in found if each[1] > 60] == []
