"""The one-line breakages that the tests must catch, as they are written down, and where each stands.

They stand in a `mutants.json` beside each distribution's tests (`tests/` for the core, `plugins/*/tests/`): a list of
objects with the fields of `Mutant`. A mutant names a function, so that a line that moves with its function stays found.
"""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (*sorted(ROOT.glob("plugins/*/src")), ROOT)
"""Folders that hold the modules of the distributions."""
ARITHMETIC = (
    "alignkit.functional.",
    "alignkit.engine.reduction.",
    "alignkit.rewards.",
    "alignkit_dpo.losses.",
    "alignkit_grpo.",
    "alignkit_margin_rm",
    "alignkit_ppo",
)
"""Where the formulas of the papers stand: how these names begin. A slip there trains the wrong thing in silence."""
LISTS = (ROOT / "tests" / "mutants.json", *sorted(ROOT.glob("plugins/*/tests/mutants.json")))


@functools.cache
def _definitions(file: Path) -> dict[str, tuple[int, int]]:
    """First and last line (decorators included) of each function and class of a file, by qualified name; "" is all."""
    text = file.read_text(encoding="utf-8")
    found = {"": (1, text.count("\n") + 1)}

    def walk(node: ast.AST, within: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                found[within + child.name] = (first, child.end_lineno or first)
                walk(child, f"{within}{child.name}.")
            else:
                walk(child, within)

    walk(ast.parse(text), "")
    return found


def _module_file(parts: Sequence[str]) -> tuple[Path, Path] | None:
    """The folder of sources and the file in it that hold a module."""
    for top in SOURCES:
        for file in (top.joinpath(*parts, "__init__.py"), top.joinpath(*parts).with_suffix(".py")):
            if file.is_file():
                return top, file
    return None


def _modules() -> Iterator[tuple[str, Path]]:
    """Every module of the distributions, with its file."""
    for top in SOURCES:
        for file in sorted(top.glob("alignkit*.py")) + sorted(top.glob("alignkit*/**/*.py")):
            parts = file.relative_to(top).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def _elsewhere(qualname: str) -> str:
    """Where a function that is not where it was said to be stands now, if one place alone can be meant."""
    for ending in (qualname, qualname.split(".")[-1]):  # first the method of the class, then any function of the name
        known = [f"{module}.{name}" for module, file in _modules() for name in _definitions(file)]
        found = [name for name in known if name.endswith(f".{ending}")]
        if len(found) == 1:
            return f"; one of that name stands at {found[0]}"
    return ""


@dataclass(frozen=True)
class Place:
    """Where a function stands: a module's file below the folder `top`, lines `first` to `last` (from 1, inclusive)."""

    top: Path
    module: str
    file: Path
    first: int
    last: int


def locate(function: str) -> Place:
    """The place of a function, class or module.

    Args:
        function: module and qualified name with dots between, as "alignkit.functional.gae".

    Raises:
        ValueError: when there is none; says where one of that name stands now.
    """
    parts = function.split(".")
    for length in range(len(parts), 0, -1):
        found = _module_file(parts[:length])
        if found is None:
            continue
        module, qualname = ".".join(parts[:length]), ".".join(parts[length:])
        lines = _definitions(found[1])
        if qualname not in lines:
            raise ValueError(f"nothing named {function}{_elsewhere(qualname)}")
        return Place(found[0], module, found[1], *lines[qualname])
    raise ValueError(f"nothing named {function}{_elsewhere(parts[-1])}")


@dataclass(frozen=True)
class Mutant:
    """One breakage.

    Args:
        name: what is broken, in words.
        function: the function that is broken, with its module ("alignkit.functional.gae"); a class or a module where
            the line stands in no function.
        old: a text that occurs exactly once in the source of the function.
        new: what is written instead.
        test: the pytest node id that must fail, or how it begins.
        fresh: try it in a new process on a mutated copy of the package.
    """

    name: str
    function: str
    old: str
    new: str
    test: str
    fresh: bool = False

    @property
    def quick(self) -> bool:
        """Whether `make test` tries it too."""
        return self.function.startswith(ARITHMETIC)

    @property
    def place(self) -> Place:
        """Where the function stands."""
        try:
            return locate(self.function)
        except ValueError as error:
            raise ValueError(f"mutant {self.name!r}: {error}") from None

    def source(self) -> str:
        """The mutated source of the module.

        Raises:
            ValueError: when there is no such function, or `old` does not occur exactly once in it.
        """
        place = self.place
        lines = place.file.read_text(encoding="utf-8").splitlines(keepends=True)
        body = "".join(lines[place.first - 1 : place.last])
        if (times := body.count(self.old)) != 1:
            raise ValueError(f"mutant {self.name!r}: {self.old!r} occurs {times} times in {self.function}")
        return "".join([*lines[: place.first - 1], body.replace(self.old, self.new), *lines[place.last :]])


MUTANTS = [Mutant(**row) for file in LISTS for row in json.loads(file.read_text(encoding="utf-8"))]


def faults(mutants: Sequence[Mutant]) -> list[str]:
    """What is wrong with the mutants as written, a line each: not found, not one line, no Python, a name used twice."""
    found = []
    names = [mutant.name for mutant in mutants]
    for mutant in mutants:
        try:
            compile(mutant.source(), mutant.function, "exec")
        except (ValueError, SyntaxError) as error:
            found.append(str(error) if isinstance(error, ValueError) else f"mutant {mutant.name!r}: {error}")
        if mutant.old == mutant.new or "\n" in mutant.old.strip() or "\n" in mutant.new.strip():
            found.append(f"mutant {mutant.name!r} must change one line")
        if names.count(mutant.name) > 1:
            found.append(f"mutant {mutant.name!r}: the name is used twice")
    return found
