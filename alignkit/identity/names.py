"""What a definition uses: names with the attributes taken of them, what it imports, and what cannot be seen in it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

CHANGES = frozenset(
    [
        "add",
        "append",
        "appendleft",
        "clear",
        "discard",
        "extend",
        "insert",
        "pop",
        "popitem",
        "popleft",
        "remove",
        "reverse",
        "set",
        "setdefault",
        "sort",
        "update",
    ]
)
"""Methods that change what they are called on."""

EVALUATES = frozenset(("eval", "exec", "globals", "builtins"))
REACHES = frozenset(
    (
        *("__globals__", "__builtins__", "_getframe", "currentframe", "f_globals"),
        *("get_objects", "get_referrers", "getmodule"),
    )
)
"""Attributes, by their names or in a text, through which any name of a module is reached."""

IMPORTS = frozenset(("import_module", "__import__"))
LOADS = frozenset(("spec_from_file_location", "SourceFileLoader", "run_path", "run_module"))
DOCUMENTS = frozenset(("__doc__", "getdoc"))
BELOW = "__subclasses__"
SEEDED = frozenset(
    (
        *("Random", "SystemRandom", "RandomState", "default_rng", "SeedSequence"),
        *("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"),
    )
)
"""What makes a generator of random numbers, each time another one where no seed is given."""

Chain = tuple[str, ...]


@dataclass(frozen=True)
class Import:
    """One name that an import inside a function binds.

    Args:
        module: as written.
        level: how many dots stand before it.
        name: what is taken from it; None for the module.
        bound: what it is called in the function.
        inner: the bound name is the top of `module` rather than the module itself.
    """

    module: str
    level: int = 0
    name: str | None = None
    bound: str = ""
    inner: bool = False


@dataclass
class Uses:
    """What a definition uses.

    Args:
        chains: name -> the attributes taken of it, each as a path; () where the thing itself is used.
        written: paths (name, attributes …) to what the definition changes, other than its own variables.
        rebound: those of them that are made to stand for something else.
        imports: made inside.
        evaluates: it may use any name of its module.
        subclassed: it may use any class that is derived from one that it uses.
        loads: why the code it loads cannot be known; empty where it can.
        documented: it reads docstrings.
    """

    chains: dict[str, set[Chain]] = field(default_factory=lambda: defaultdict(set))
    written: set[Chain] = field(default_factory=set)
    rebound: set[Chain] = field(default_factory=set)
    imports: list[Import] = field(default_factory=list)
    evaluates: bool = False
    subclassed: bool = False
    loads: str = ""
    documented: bool = False


def uses_of(*nodes: ast.AST) -> Uses:
    """What definitions or statements use."""
    reader = _Reader()
    for node in nodes:
        reader.visit(node)
    return reader.uses


def makers(tree: ast.Module, name: str) -> list[ast.stmt]:
    """The statements of a module, outside functions and classes, that make one of its names or go by it."""
    return [node for node in _statements(tree.body) if name in uses_of(node).chains]


def defaults_in(definition: ast.AST) -> dict[str, ast.expr]:
    """The defaults of a function by parameter, as written."""
    arguments = getattr(definition, "args", None) or ast.arguments([], [], None, [], [], None, [])
    named = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(named[len(named) - len(arguments.defaults) :], arguments.defaults, strict=True)]
    pairs += [
        (arg, default) for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default
    ]
    return {arg.arg: default for arg, default in pairs}


def is_fresh(default: ast.expr) -> bool:
    """Whether a value is made where it is written, out of no other name: `memo={}`."""
    return not set(uses_of(default).chains) - {"dict", "list", "set"}


def unseeded(name: str, everywhere: ast.AST, made: Sequence[ast.AST] = ()) -> bool:
    """Whether a generator of random numbers is made without a seed, and none is given to it later.

    Args:
        name: of the generator.
        everywhere: that the name is known.
        made: the values that it is given; default those that it is assigned there.
    """
    values = made or [value for node in ast.walk(everywhere) for value in _assigned(node, name)]
    calls = [call for value in values for call in ast.walk(value) if isinstance(call, ast.Call)]
    makers = {(_path(call.func) or ("",))[-1] for call in calls if not call.args and not call.keywords}
    later = {chain[:1] for chain in uses_of(everywhere).chains.get(name, ())}
    return bool(SEEDED & makers) and not later & {("seed",), ("setstate",), ("bit_generator",)}


def _assigned(node: ast.AST, name: str) -> Iterator[ast.AST]:
    """The values that a statement gives to a name."""
    if isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
        yield from _given(node.target, node.value, name)
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _given(target, node.value, name)


def _given(target: ast.AST, value: ast.AST, name: str) -> Iterator[ast.AST]:
    if isinstance(target, ast.Name) and target.id == name:
        yield value
    elif isinstance(target, (ast.Tuple, ast.List)) and isinstance(value, (ast.Tuple, ast.List)):
        for one, other in zip(target.elts, value.elts, strict=False):
            yield from _given(one, other, name)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that are not compound; of those that are, their parts."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, (ast.stmt, ast.ExceptHandler))]
        if not parts:
            yield node
        for part in parts:
            yield from _statements(part.body if isinstance(part, ast.ExceptHandler) else [part])


class _Reader(ast.NodeVisitor):
    def __init__(self) -> None:
        self.uses = Uses()

    def visit_Name(self, node: ast.Name) -> None:
        self._take(node.id, ())

    def visit_Global(self, node: ast.Global) -> None:
        self.uses.written |= {(name,) for name in node.names}
        self.uses.rebound |= {(name,) for name in node.names}

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.uses.written |= {(name,) for name in node.names}

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = _path(node)
        if not isinstance(node.ctx, ast.Load):
            self._write(node)
            self.uses.rebound |= {path} if path else set()
        if path is None:
            self._note(node.attr)
            self.generic_visit(node)
        else:
            self._take(path[0], path[1:])

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._write(node.value)
        if _path(node.value) == ("sys", "modules"):
            self._module_named(node.slice)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            self._write(node.func.value)
        path = _path(node.func) or ("",)
        if path[-1] in IMPORTS or path == ("sys", "modules", "get"):
            self._module_named(node.args[0] if node.args else node)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and node.value in (*REACHES, BELOW):
            self._note(node.value)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.uses.evaluates |= alias.name == "builtins"
            top = alias.name.partition(".")[0]
            self.uses.imports.append(Import(alias.name, bound=alias.asname or top, inner=not alias.asname))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.uses.evaluates |= node.module == "builtins"
        for alias in node.names:
            if alias.name in IMPORTS and alias.asname not in (None, alias.name):
                self.uses.loads = f"imports by {alias.name} under another name"
            bound = alias.asname or alias.name
            self.uses.imports.append(Import(node.module or "", node.level, alias.name, bound))

    def _write(self, node: ast.AST) -> None:
        path = _changed(node)
        if path is not None:
            self.uses.written.add(path)

    def _take(self, name: str, chain: Chain) -> None:
        self.uses.chains[name].add(chain)
        self.uses.evaluates |= name in EVALUATES
        for word in (name, *chain):
            self._note(word)

    def _note(self, word: str) -> None:
        self.uses.documented |= word in DOCUMENTS
        self.uses.evaluates |= word in REACHES
        self.uses.subclassed |= word == BELOW
        if word in LOADS:
            self.uses.loads = f"loads code by {word}"

    def _module_named(self, node: ast.AST) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            self.uses.imports.append(Import(node.value))
        elif isinstance(node, ast.Name) and node.id == "__name__":
            self.uses.evaluates = True
        else:
            self.uses.loads = "imports a module by a name that is worked out as it runs"


def _path(node: ast.AST) -> Chain | None:
    """`a.b.c` as ("a", "b", "c"); None for what is not names alone."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return (node.id, *reversed(parts)) if isinstance(node, ast.Name) else None


def _changed(node: ast.AST) -> Chain | None:
    """The path to what changes when an attribute or an item of `node` does: `a.b` of `a.b[0].c`."""
    path = _path(node)
    while path is None and isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
        path = _path(node)
    return path
