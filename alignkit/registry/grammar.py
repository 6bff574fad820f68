"""One grammar for a configured component, in Python and on the command line: `[distribution/]name(key=value, …)`.

Values are numbers, text in quotes, True, False, None, lists, dicts and further components. Nothing is evaluated: the
text is read by the small parser below, so that a command line or a file cannot run code.
"""

from __future__ import annotations

import ast
import keyword
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from alignkit.errors import PluginError
from alignkit.hidden import hides, inline

_DISTRIBUTION = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_NAME = re.compile(rf"(?:{_DISTRIBUTION}/)?[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(
    rf"""\s*(?:
      (?P<qualified>{_DISTRIBUTION}/[A-Za-z_][A-Za-z0-9_]*)
    | (?P<number>[-+]?(?:inf(?!\w)|(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])))
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
    | (?P<mark>[()\[\]{{}},=:])
    )""",
    re.VERBOSE | re.ASCII,
)
_WORDS = {"True": True, "False": False, "None": None}
# A component of such a name could not be told from a value, or from a value misspelled.
RESERVED = frozenset({*_WORDS, "true", "false", "none", "null", "inf", "nan"})


class Component:
    """A component by name, with the hyper-parameters that differ from its defaults. Immutable and hashable.

    Two components are equal when their canonical texts are: the order of keywords and list or tuple make no difference.

    Args:
        name: `name` or `distribution/name`.
        params: literals, lists or dicts of them, and components.

    Raises:
        PluginError: for a name or a key that the grammar cannot write, or a value that is neither literal nor
            component.
    """

    __slots__ = ("_params", "_text", "name")
    name: str
    _params: dict[str, Any]
    _text: str

    def __init__(self, name: str, params: Mapping[str, Any] | None = None) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in RESERVED:
            raise PluginError(f"{name!r} is not a component name", remedy="write name or distribution/name")
        for key, value in (params or {}).items():
            hides(key, value)  # noted, so that no message quotes it
        frozen = {_key(name, key): _plain(value, f"{name}({key}=…)") for key, value in sorted((params or {}).items())}
        arguments = ", ".join(f"{key}={_text(value)}" for key, value in frozen.items())
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "_params", frozen)
        object.__setattr__(self, "_text", f"{name}({arguments})" if arguments else name)

    @property
    def params(self) -> dict[str, Any]:
        """The hyper-parameters given, sorted by key; a copy, so that the component stays what it is."""
        return {key: _plain(value, self.name) for key, value in self._params.items()}

    def to_json(self) -> dict[str, Any]:
        """The component as plain JSON, for configurations on disk."""
        return {"component": self.name, "params": {key: _to_json(value) for key, value in self._params.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Component:
        """The component that `to_json` wrote.

        Args:
            data: the decoded JSON object.

        Raises:
            PluginError: when it is not such an object.
        """
        component = _from_json(data)
        if not isinstance(component, cls):
            raise PluginError(f"not a component: {data!r}")
        return component

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"<{inline(self._text)}>"

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Component) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self._text} is immutable: make another with use({self.name!r}, {name}=…)")

    def __reduce__(self) -> tuple[Callable[[str], Component], tuple[str]]:
        return parse, (self._text,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Component:
        return self


def use(name: str, /, **params: Any) -> Component:
    """A component by name with some of its hyper-parameters set: `use("my_loss", beta=0.05)`.

    Args:
        name: `name` or `distribution/name`; it is looked up only when the component is built.
        params: the hyper-parameters; what is left out keeps its default.

    Raises:
        PluginError: see `Component`.
    """
    return Component(name, params)


def parse(text: str) -> Component:
    """Read one component, such as `my_optimizer(kl_coef=0.05, loss=my_loss(beta=0.1), tags=['a'])`.

    Args:
        text: the component in the grammar of this module.

    Raises:
        PluginError: with the position of the first thing that does not fit.
    """
    component: Component = _read(text, _Parser.component)
    return component


def parse_list(text: str) -> list[Component]:
    """Read components separated by commas; commas inside parentheses and quotes belong to their component.

    Args:
        text: for example `first,first(samples_per_prompt=4),second`.

    Raises:
        PluginError: as `parse` does.
    """
    components: list[Component] = _read(text, _Parser.components)
    return components


def _read(text: str, rule: Callable[[_Parser], Any]) -> Any:
    parser = _Parser(text)
    try:
        result = rule(parser)
    except RecursionError:
        raise PluginError("nested too deeply", where=text[:40]) from None
    parser.expect_end()
    return result


class _Parser:
    """Recursive descent over the tokens of one text; every fault is reported with its position."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error("cannot read this", position + _spaces(text, position))
            kind = str(match.lastgroup)
            self.tokens.append(("name" if kind == "qualified" else kind, match[kind], match.start(kind)))
            position = match.end()
        self.tokens.append(("end", "", end))
        self.index = 0

    def error(self, what: str, position: int) -> PluginError:
        rest = self.text[position : position + 20]
        seen = f"at {rest!r}" if rest.strip() else "at the end"
        shown = self.text if len(self.text) <= 100 else self.text[:100] + "…"
        return PluginError(f"{what}, {seen} (column {position + 1} of {shown!r})", remedy="write name(key=value, …)")

    def next(self) -> tuple[str, str, int]:
        token = self.tokens[self.index]
        self.index = min(self.index + 1, len(self.tokens) - 1)
        return token

    def take(self, mark: str) -> bool:
        kind, value, _ = self.tokens[self.index]
        if (kind, value) != ("mark", mark):
            return False
        self.index += 1
        return True

    def expect(self, mark: str, what: str) -> None:
        if not self.take(mark):
            raise self.error(what, self.tokens[self.index][2])

    def expect_end(self) -> None:
        kind, _, position = self.tokens[self.index]
        if kind != "end":
            raise self.error("expected nothing more", position)

    def component(self) -> Component:
        kind, name, position = self.next()
        if kind != "name":
            raise self.error("expected a component name", position)
        if name in RESERVED:
            raise self.error(f"{name} is no component (values are True, False, None)", position)
        return Component(name, self.arguments() if self.take("(") else None)

    def components(self) -> list[Component]:
        components = [self.component()]
        while self.take(","):
            components.append(self.component())
        return components

    def arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        while not self.take(")"):
            kind, key, position = self.next()
            if kind != "name" or not key.isidentifier():
                raise self.error("expected key=value or )", position)
            self.expect("=", f"expected = after {key}; every hyper-parameter is written key=value")
            if key in arguments:
                raise self.error(f"{key} is given twice", position)
            arguments[key] = self.value()
            self.separator(")")
        return arguments

    def separator(self, closing: str) -> None:
        """A comma, or the closing mark left for the caller to take."""
        if not self.take(","):
            kind, mark, position = self.tokens[self.index]
            if (kind, mark) != ("mark", closing):
                raise self.error(f"expected , or {closing}", position)

    def value(self) -> Any:
        kind, text, position = self.tokens[self.index]
        if kind == "name" and text not in _WORDS:
            return self.component()
        self.next()
        if kind == "name":
            return _WORDS[text]
        if kind == "number":
            return self.number(text, position)
        if kind == "string":
            return self.string(text, position)
        if text in ("[", "("):
            return self.items("]" if text == "[" else ")")
        if text == "{":
            return self.pairs()
        raise self.error("expected a value", position)

    def number(self, text: str, position: int) -> int | float:
        try:
            return float(text) if re.search(r"[.eEi]", text) else int(text)
        except ValueError:
            raise self.error("cannot read this number", position) from None

    def string(self, text: str, position: int) -> str:
        try:
            return str(ast.literal_eval(text))
        except (SyntaxError, ValueError):
            raise self.error("cannot read this text", position) from None

    def items(self, closing: str) -> list[Any]:
        items = []
        while not self.take(closing):
            items.append(self.value())
            self.separator(closing)
        return items

    def pairs(self) -> dict[Any, Any]:
        pairs = {}
        while not self.take("}"):
            position = self.tokens[self.index][2]
            key = self.value()
            if isinstance(key, (list, dict, Component)):
                raise self.error("a key must be text or a number", position)
            self.expect(":", "expected : after a key")
            pairs[key] = self.value()
            self.separator("}")
        return pairs


def _spaces(text: str, position: int) -> int:
    return len(text[position:]) - len(text[position:].lstrip())


def _key(name: str, key: str) -> str:
    if not key.isidentifier() or not key.isascii() or keyword.iskeyword(key):
        raise PluginError(f"{key!r} cannot be the name of a hyper-parameter", where=name)
    return key


def _plain(value: Any, where: str) -> Any:
    """The value in the plain types the grammar can write: sequences become tuples, a numpy float a float."""
    if value is None or isinstance(value, (bool, Component)):
        return value
    for number in (int, float, str):
        if isinstance(value, number):
            if value != value:
                raise PluginError("NaN is no hyper-parameter", where=where)
            return number(value)
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item, where) for item in value)
    if isinstance(value, Mapping):
        return dict(sorted(((_dict_key(key, where), _plain(item, where)) for key, item in value.items()), key=_by_text))
    raise PluginError(
        f"{type(value).__name__} is neither a literal nor a component",
        where=where,
        remedy="pass text, numbers, lists, dicts or use(…) here, or build the object itself and pass that",
    )


def _dict_key(key: Any, where: str) -> Any:
    if key is not None and not isinstance(key, (bool, int, float, str)):
        raise PluginError(f"{key!r} cannot be a key: write text or a number", where=where)
    return _plain(key, where)


def _by_text(item: tuple[Any, Any]) -> str:
    return _text(item[0])


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_text(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(key)}: {_text(item)}" for key, item in value.items()) + "}"
    return str(value) if isinstance(value, Component) else repr(value)


def _to_json(value: Any) -> Any:
    """Objects are tagged, so that a dict with the key "component" is not taken for one and keys may be numbers."""
    if isinstance(value, Component):
        return value.to_json()
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[_to_json(key), _to_json(item)] for key, item in value.items()]}
    if isinstance(value, float) and math.isinf(value):
        return {"float": repr(value)}  # JSON has no infinity
    return value


def _from_json(data: Any) -> Any:
    if isinstance(data, list):
        return [_from_json(item) for item in data]
    if not isinstance(data, Mapping):
        return data
    if "component" in data:
        return Component(data["component"], {key: _from_json(value) for key, value in data.get("params", {}).items()})
    if "dict" in data:
        return {_from_json(key): _from_json(value) for key, value in data["dict"]}
    if "float" in data:
        return float(data["float"])
    raise PluginError(f"not a component: {data!r}")
