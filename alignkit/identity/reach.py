"""From the names in code to what they stand for: globals, closures, attributes of modules, imports inside functions."""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import sys
import types
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignkit.identity.distributions import Owners, module_owners, owners
from alignkit.identity.ledger import Ledger, Written
from alignkit.identity.names import IMPORTS, Chain, Import, Uses, makers, unseeded, uses_of
from alignkit.identity.source import Source, module_source
from alignkit.identity.spaces import (
    PRIVATE,
    Space,
    function_owners,
    is_code,
    is_evaluator,
    is_own,
    names_in,
    places,
    space_name,
    spellings,
)

DRAWN = frozenset(("Random", "Generator", "RandomState", "count", "cycle"))
"""Classes, not the user's own, whose instances change as they are used: they count by how they are made."""


LOADING = "import it by name, or for a reward use FunctionReward(…, version=…)"
"""The remedy for code that is loaded in a way that cannot be followed."""


@dataclass(frozen=True)
class Scope:
    """Where code stands.

    Args:
        label: its name in the key.
        space: its globals.
        cells: its closure, as values.
        closure: the same, as cells.
        names: those that are not local to it; None: all.
        makes: the variables of the closure that the surrounding function makes, and its definition.
        source: what it is written in.
        lenient: see `Forms.form`.
    """

    label: str
    space: Space
    cells: Mapping[str, Any] = field(default_factory=dict)
    closure: Mapping[str, types.CellType] = field(default_factory=dict)
    names: frozenset[str] | None = None
    makes: tuple[frozenset[str], ast.AST | None] = (frozenset(), None)
    source: Source | None = None
    lenient: bool = False


class Reach(Ledger):
    """Finds what names stand for. Subclasses say what is in code."""

    def __init__(self) -> None:
        super().__init__()
        self._written: set[tuple[int, str]] = set()  # of globals and of cells, with no name
        self._rebound: set[tuple[int, str]] = set()
        self.subclassed = False

    def whole(self, space: Space) -> str:
        """The reference to a whole module, with those it imports."""
        raise NotImplementedError

    def names(self, uses: Uses, scope: Scope) -> dict[str, Any]:
        """What each name that code uses stands for, by name.

        Raises:
            ConfigError: it loads code that cannot be known.
        """
        self.documented |= uses.documented
        self.subclassed |= uses.subclassed
        self._note_changes(uses, scope)
        found: dict[str, Any] = {}
        for name in sorted(uses.chains):
            for real in spellings(name, scope.names):
                for chain in sorted(uses.chains[name]):
                    found[".".join((name, *chain))] = self._name(real, chain, uses, scope)
        for each in uses.imports:
            found[str(each)] = self.imported(each, uses.chains.get(each.bound) or {()}, scope)
        if uses.evaluates or (uses.subclassed and module_source(scope.space) is not None):
            found["*"] = self.whole(scope.space)
        if uses.loads:
            raise self.refusal(f"it {uses.loads}", scope.label, LOADING)
        return {name: reference for name, reference in found.items() if reference is not None}

    def _note_changes(self, uses: Uses, scope: Scope) -> None:
        for path in uses.written:
            for real in spellings(path[0], scope.names):
                if real in scope.closure:
                    self._written.add((id(scope.closure[real]), ""))
                    continue
                found = set(places((real, *path[1:]), scope.space))
                self._written |= found
                if path in uses.rebound:  # by its own name, or as an attribute of its module
                    self._rebound |= {place for place in found if place[1] == (real, *path[1:])[-1]}

    def _name(self, name: str, chain: Chain, uses: Uses, scope: Scope) -> Any:
        if name in scope.cells:
            return self._cell(name, chain, scope)
        if name in scope.space and name not in PRIVATE:
            return self._global(scope.space, (name, *chain), scope)
        return None

    def _cell(self, name: str, chain: Chain, scope: Scope) -> Any:
        """What a closure holds."""
        value = scope.cells[name]
        if isinstance(value, types.ModuleType):
            return self.attribute(value, chain, scope)
        if is_evaluator(value):
            return self.whole(scope.space)
        if is_code(value):
            return self.code(value)
        at, label = (scope.label, "cell", name), f"{scope.label}[{name}]"
        return self.later(at, label, value, lambda label: self._put_cell(label, name, value, scope))

    def _put_cell(self, label: str, name: str, value: Any, scope: Scope) -> None:
        """Enter what a closure holds; a variable that code changes as it was first seen. Where that does not say all of
        it, the function around counts besides, with what that uses."""
        cell, (made, around) = scope.closure[name], scope.makes
        changes = drawn(value) or (id(cell), "") in self._written
        if not changes or name not in made or around is None or scope.source is None:
            self.put(label, value, scope.lenient, scope.space)
            return
        fresh = drawn(value) and unseeded(name, around)
        first, complete = (None, False) if fresh else self.first(("cell", id(cell)), (cell,), value, scope.space)
        if complete:
            self.put_form(label, first)
            return
        outer = scope.source.code_of(around)
        found = self.names(uses_of(around), Scope(label, scope.space, names=outer and names_in(outer), lenient=True))
        self.put_node(label, Written(scope.source, [around]), {"names": found, "first": first})

    def _global(self, space: Space, path: Chain, scope: Scope) -> Any:
        """What a path that begins with a global leads to."""
        name, value = path[0], space[path[0]]
        if isinstance(value, types.ModuleType):
            return self.attribute(value, path[1:], scope)
        if is_evaluator(value):  # under another name
            return self.whole(scope.space)
        if (value is importlib.import_module or value is builtins.__import__) and name not in IMPORTS:
            raise self.refusal("it imports under another name", scope.label, LOADING)
        if is_code(value):
            return self.code(value)
        label = f"{space_name(space)}.{name}".lstrip(".")
        if isinstance(value, (types.SimpleNamespace, Namespace)) and path[1:] and path[1] in vars(value):
            inner, at = vars(value)[path[1]], (id(value), path[1])
            return self.value(at, f"{label}.{path[1]}", inner, lenient=scope.lenient, space=space)
        return self.later(
            (id(space), name), label, space, lambda label: self.put_made(label, name, value, scope, space)
        )

    def put_made(
        self, label: str, name: str, value: Any, scope: Scope, space: Space, cell: types.CellType | None = None
    ) -> None:
        """Enter what a global holds; one that code changes as it was first seen, with the statements that make it.

        Args:
            label: of the entry.
            name: of the global.
            value: that it holds.
            scope: where it is used.
            space: whose global it is.
            cell: through which code reaches the same.
        """
        source, place = module_source(space), (id(space), name)
        changes = place in self._written or (id(cell), "") in self._written or drawn(value)
        if source is None or not changes:
            self.put(label, value, scope.lenient, space)
            return
        statements = makers(source.tree, name)
        uses = uses_of(*statements)
        uses.chains.pop(name, None)
        node = {"names": self.names(uses, Scope(label, space, lenient=True))}
        if not (drawn(value) and unseeded(name, source.tree)):
            same = () if place in self._rebound else (value,)
            at = ("global", *place, *map(id, same))
            node["first"], _ = self.first(at, (space, space.get("__spec__"), *same), value, space)
        self.put_node(label, Written(source, statements), node)

    def attribute(self, module: types.ModuleType, chain: Chain, scope: Scope) -> Any:
        """What a path that begins with a module leads to: through modules to the first thing that is none."""
        if module is builtins:
            return self.whole(scope.space)
        own = module_owners(module, module.__name__) is None
        if not chain or (own and chain[0] not in vars(module)):
            return self.code(module)
        value = vars(module).get(chain[0])
        if value is sys.argv and module is sys:
            return self.value("sys.argv", "sys.argv", sys.argv[1:])
        if isinstance(value, types.ModuleType):
            return self.attribute(value, chain[1:], scope)
        if own:
            return None if chain[0] in PRIVATE else self._global(vars(module), chain, scope)
        if isinstance(value, types.FunctionType) and function_owners(value) is None:  # the user put it there
            return self.code(value)
        return self.code(module)

    def imported(self, each: Import, chains: set[Chain], scope: Scope) -> Any:
        """What an import inside a function brings, of which `chains` are used."""
        module = self._load(each, scope.space)
        if not isinstance(module, types.ModuleType):
            return module
        taken: Chain = () if each.name is None else (each.name,)
        if each.inner:  # `import a.b` binds a, from which b is reached
            inner = tuple(each.module.split(".")[1:])
            chains = {chain[len(inner) :] for chain in chains if chain[: len(inner)] == inner} or {()}
        return [self.attribute(module, (*taken, *chain), scope) for chain in sorted(chains)]

    def whole_import(self, each: Import, space: Space) -> Any:
        """What an import brings where the whole importing module counts: the whole imported one."""
        module = self._load(each, space)
        if not isinstance(module, types.ModuleType):
            return module
        taken = vars(module).get(each.name or "")
        return [self.code(module), *([self.code(taken)] if isinstance(taken, types.ModuleType) else [])]

    def _load(self, each: Import, space: Space) -> Any:
        """The module of an import, loaded if it is the user's own; the reference to it if it is not or fails."""
        try:
            package = space.get("__package__") or str(space.get("__name__") or "").rpartition(".")[0]
            name = importlib.util.resolve_name("." * each.level + each.module, package)
            found = _module_owners(name)
            if found is not None:
                return sys.modules.get(name) or self.library(found, name)
            module = importlib.import_module(name)
            if each.name not in (None, "*") and each.name not in vars(module) and hasattr(module, "__path__"):
                importlib.import_module(f"{name}.{each.name}")
            return module
        except Exception as error:  # it would fail there too, and be dealt with there or not
            return {"import": str(each), "fails": type(error).__name__}


def _module_owners(name: str) -> Owners:
    """Whose a module is, whether it is loaded or not.

    Raises:
        ModuleNotFoundError: there is none.
    """
    top = name.partition(".")[0]
    if top in sys.modules:
        return module_owners(sys.modules[top], top)
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise ModuleNotFoundError(top)
    return owners(top, spec.origin if spec.origin and spec.has_location else "")


def drawn(value: Any) -> bool:
    """Whether a value is a generator of random numbers or the like, another one each time that it is used."""
    return type(value).__name__ in DRAWN and not is_own(type(value))


def makes_of(source: Source, definition: ast.AST) -> tuple[frozenset[str], ast.AST | None]:
    """The variables that the outermost function around a definition assigns, its parameters left out, and itself."""
    outer = source.around(definition)
    if outer is None:
        return frozenset(), None
    stored = {n.id for n in ast.walk(outer) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return frozenset(stored - {n.arg for n in ast.walk(outer) if isinstance(n, ast.arg)}), outer
