"""The source of running code: the definition that a function was made from, without comments, docstrings or layout.

Text is kept as it was first read, and compared with the code that runs: a file that is edited while a run goes on
must not lend its new text to the old code, which would then be "done already" for the new.
"""

from __future__ import annotations

import ast
import copy
import importlib.machinery
import linecache
import os
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from alignkit.errors import ConfigError
from alignkit.identity.distributions import PACKAGES, module_owners

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class NoSourceError(Exception):
    """The source of code cannot be read."""


@dataclass(eq=False)
class Source:
    """The text of one file or cell, parsed.

    Args:
        tree: of the whole.
        text: as written.
        file: what it is called.
    """

    tree: ast.Module
    text: str
    file: str
    _texts: dict[tuple[int, bool], str] = field(default_factory=dict)

    @cached_property
    def definitions(self) -> Mapping[tuple[str, int], ast.AST]:
        """Functions by name and first line, that of the first decorator if there is one."""
        nodes = [node for node in ast.walk(self.tree) if isinstance(node, DEFINITIONS)]
        return {(n.name, min([n.lineno, *(d.lineno for d in n.decorator_list)])): n for n in nodes}

    @cached_property
    def lambdas(self) -> list[ast.Lambda]:
        """All of them."""
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.Lambda)]

    @cached_property
    def compiled(self) -> Mapping[tuple[str, int], list[CodeType]]:
        """The code that the text makes, by name and first line; empty where it needs a compiler of its own."""
        found: dict[tuple[str, int], list[CodeType]] = defaultdict(list)
        try:
            waiting = [compile(self.text, self.file, "exec", dont_inherit=True)]
        except (SyntaxError, ValueError):
            return found
        while waiting:
            code = waiting.pop()
            found[code.co_name, code.co_firstlineno].append(code)
            waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        return found

    def makes(self, code: CodeType) -> bool:
        """Whether exactly this code comes of the text."""
        return any(made == code for made in self.compiled.get((code.co_name, code.co_firstlineno), ()))

    def definition(self, code: CodeType) -> ast.AST | None:
        """The node that the code was made from."""
        if code.co_name != "<lambda>":
            return self.definitions.get((code.co_name, code.co_firstlineno))
        around = [node for node in self.lambdas if _holds(node.body, code)]
        return min(around, key=_extent, default=None)

    def code_of(self, node: Any) -> CodeType | None:
        """The code that a definition makes; None where that is not just one."""
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        found = self.compiled.get((node.name, first), [])
        return found[0] if len(found) == 1 else None

    def around(self, node: ast.AST) -> ast.AST | None:
        """The outermost function that a definition stands in."""
        first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)
        nodes: list[Any] = [other for other in self.definitions.values() if other is not node]
        holders = [other for other in nodes if other.lineno <= first and last <= other.end_lineno]
        return min(holders, key=lambda other: other.lineno, default=None)

    def written(self, node: ast.AST, documented: bool) -> str:
        """A node as normalised text: no comments, no layout, and no docstrings unless they are asked for."""
        at = (id(node), documented)
        if at not in self._texts:
            self._texts[at] = ast.unparse(node if documented else _undocumented(node))
        return self._texts[at]


def _holds(body: ast.expr, code: CodeType) -> bool:
    """Whether all of the code's instructions stand in the body."""
    first, last = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
    places = [place for place in code.co_positions() if None not in place and place[3] != place[2]]
    return any(places) and all(
        first <= (line, column) and (end_line, end_column) <= last for line, end_line, column, end_column in places
    )


def _extent(node: ast.Lambda) -> tuple[int, int]:
    lines = (node.end_lineno or node.lineno) - node.lineno
    return lines, (node.end_col_offset or 0) - (0 if lines else node.col_offset)


def _undocumented(node: ast.AST) -> ast.AST:
    stripped = copy.deepcopy(node)
    for inner in ast.walk(stripped):
        if isinstance(inner, (*DEFINITIONS, ast.ClassDef, ast.Module)) and ast.get_docstring(inner, False) is not None:
            inner.body = inner.body[1:] or [ast.Pass()]
    return stripped


@lru_cache(maxsize=256)
def _parse(text: str, file: str) -> Source:
    return Source(ast.parse(text), text, file)


_first: dict[str, tuple[Any, str]] = {}
"""By file: the import that made the module (its spec), and the text that was read then."""


def remember_sources() -> None:
    """Keep the text of the user's modules as they are on disk now: what runs was made from it, later edits were not."""
    for name, module in list(sys.modules.items()):
        file = str(getattr(module, "__file__", None) or "")
        installed = any(f"{os.sep}{folder}{os.sep}" in file for folder in PACKAGES)
        if isinstance(module, ModuleType) and file and not installed and module_owners(module, name) is None:
            _remembered(file, vars(module))


def _remembered(file: str, namespace: Mapping[str, Any]) -> str:
    """The text of an imported module's file as first read; empty for code that came to be in another way."""
    if not _read_as_written(namespace, file):
        return ""
    spec = namespace.get("__spec__")
    if file not in _first or _first[file][0] is not spec:  # never read, or imported anew since
        _first[file] = (spec, _on_disk(file, namespace))
    return _first[file][1]


def _on_disk(file: str, namespace: Mapping[str, Any]) -> str:
    if Path(file).is_file():  # not through linecache, to which an edit within the same instant is none
        try:
            with tokenize.open(file) as text:
                return text.read()
        except (OSError, SyntaxError, UnicodeDecodeError):
            return ""
    linecache.checkcache(file)
    return "".join(linecache.getlines(file, dict(namespace)))


def _candidates(file: str, namespace: Mapping[str, Any]) -> Iterator[Source]:
    for text in dict.fromkeys((_remembered(file, namespace), _on_disk(file, namespace))):
        if text:
            try:
                yield _parse(text, file)
            except SyntaxError:  # half-edited, or a cell in a language of its own
                continue


def source_of(code: CodeType, namespace: Mapping[str, Any]) -> tuple[Source, ast.AST]:
    """The source that code was made from, and its definition there.

    Args:
        code: of a function.
        namespace: its globals.

    Raises:
        NoSourceError: there is none to read.
        ConfigError: the file was edited since it was imported.
    """
    found = [(source, source.definition(code)) for source in _candidates(code.co_filename, namespace)]
    for source, node in found:
        if node is not None and source.makes(code):
            return source, node
    if found and _read_as_written(namespace, code.co_filename):
        raise ConfigError(
            f"{Path(code.co_filename).name} was edited since it was imported",
            where=code.co_qualname,
            effect="What runs is the old code, which can no longer be read.",
            remedy="start again",
        )
    for source, node in reversed(found):  # an import hook made other code of the text: go by name and line
        if node is not None:
            return source, node
    raise NoSourceError


def _read_as_written(namespace: Mapping[str, Any], file: str) -> bool:
    """Whether a module's code is just what Python makes of its file: no import hook had a hand in it."""
    loader = namespace.get("__loader__")
    return type(loader) is importlib.machinery.SourceFileLoader and namespace.get("__file__") == file


def module_source(namespace: Mapping[str, Any]) -> Source | None:
    """The whole text of a module as it was imported; None for one without a file (a notebook)."""
    file = str(namespace.get("__file__") or "")
    return next(_candidates(file, namespace), None) if file.endswith(".py") else None
