"""From a declared stage to the method of `Run` that makes it, with its full signature and its docs."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from alignkit.errors import ConfigError, suggestion
from alignkit.stages.base import Stage

P = ParamSpec("P")
H = TypeVar("H")


class Runner(Protocol):
    """Whatever makes stages."""

    def make(self, declared: Stage[H], /) -> H:
        """Find the stage or make it."""
        ...


def verb(declaration: Callable[P, Stage[H]]) -> Callable[Concatenate[Any, P], H]:
    """A method that declares the stage and has it made: the stage's fields are its arguments.

    Args:
        declaration: a subclass of `Stage`.
    """

    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> H:
        try:
            signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise _wrong_call(error, kind, kwargs) from None
        return self.make(declaration(*args, **kwargs))

    kind: Any = declaration
    signature = _signature(kind)
    call.__name__, call.__qualname__, call.__doc__ = kind.verb, f"Run.{kind.verb}", documentation(kind)
    call.__annotations__ = {p.name: p.annotation for p in signature.parameters.values() if p.annotation is not p.empty}
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _wrong_call(error: TypeError, kind: type, given: Mapping[str, Any]) -> ConfigError:
    """An argument that is missing, or that there is none of, with the nearest name."""
    names = [each.name for each in dataclasses.fields(kind)]  # type: ignore[arg-type]
    strange = [name for name in given if name not in names]
    what = f"there is no argument {strange[0]!r}" if strange else str(error)
    return ConfigError(what, where=f"run.{kind.verb}", remedy=suggestion(strange[0], names) if strange else "")  # type: ignore[attr-defined]


def _signature(kind: type[Stage[Any]]) -> inspect.Signature:
    """The declaration's, with `self` before and the stage's name last."""
    found = inspect.signature(kind)
    parameters = sorted(found.parameters.values(), key=lambda p: (p.kind, *_place(kind, p.name)))
    if any(p.default == "" for p in parameters if p.name == "name"):
        parameters = [p.replace(default=kind.verb) if p.name == "name" else p for p in parameters]
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    return inspect.Signature([first, *parameters], return_annotation=_result(kind))


def _place(kind: type, name: str) -> tuple[bool, bool]:
    """Where an argument is listed: the verb's own first, then what it has in common with others, its name last."""
    return name == "name", name not in inspect.get_annotations(kind)


def _result(kind: type) -> Any:
    handle = inspect.signature(kind.handle).return_annotation  # type: ignore[attr-defined]
    return handle if isinstance(handle, str) else inspect.Signature.empty


def documentation(kind: type) -> str:
    """A class's docstring, its "Args:" completed by those of the fields that it inherits, bases first."""
    own = inspect.getdoc(kind) or ""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            texts |= _arguments(inspect.cleandoc(base.__doc__ or ""))
    fields = [each.name for each in dataclasses.fields(kind)]
    names = sorted((n for n in texts if n in fields), key=lambda n: (*_place(kind, n), list(texts).index(n)))
    listed = "\n".join(texts[name] for name in names)
    head, _, rest = own.partition("\nArgs:\n")
    after = re.search(r"^\S", rest, re.MULTILINE)
    tail = f"\n{rest[after.start() :]}" if after else ""
    return f"{head.rstrip()}\n\nArgs:\n{listed}\n{tail}".rstrip() + "\n"


def _arguments(text: str) -> dict[str, str]:
    """The entries of a docstring's "Args:" by name, as they are written."""
    _, _, rest = text.partition("\nArgs:\n")
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        entry = re.match(r"^    (\w+(?:, \w+)*):", line)
        if entry:
            names = entry[1].split(", ")
            found.update({name: [] for name in names})
        if names and line.strip():
            found[names[0]].append(line)
    return {name: "\n".join(lines) for name, lines in found.items() if lines}
