"""The entries of a key: one name for each thing that a value stands on, and what is still to be looked into."""

from __future__ import annotations

import ast
import hashlib
import re
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit import hidden
from alignkit.errors import ConfigError
from alignkit.identity.distributions import Owners, version_of
from alignkit.identity.first import Reference, first_seen, resolved
from alignkit.identity.forms import Forms, UnknownError
from alignkit.identity.source import Source
from alignkit.identity.spaces import Space, folder_of, is_own
from alignkit.identity.values import canonical_json, digest

REMEDY = "pass it as an argument, give its class a key() method, or for a reward use FunctionReward(…, version=…)"

_CALLED = re.compile(r"([A-Za-z_]\w*)\)?$")
"""By which name a variable, an attribute or a default goes, and not what a `key()` says."""

SHORT = 80
"""Characters of a value that stands in the key as it is."""


@dataclass(frozen=True)
class Written:
    """Code as written: definitions or statements of one source.

    Args:
        source: the file or cell.
        parts: of its tree.
    """

    source: Source
    parts: Sequence[ast.AST]


class Ledger:
    """Names things, and keeps what they are made of until all is known. Subclasses say what code stands on."""

    def __init__(self) -> None:
        self.forms = Forms(self.code, is_own)
        self.documented = False
        self._entries: dict[str, Any] = {}
        self._nodes: dict[str, tuple[Written | None, dict[str, Any]]] = {}
        self._labels: dict[Hashable, tuple[str, Any]] = {}  # what it is of too, so that an id stays its own
        self._users: dict[str, str] = {}
        self._now = ""
        self._code: deque[tuple[str, Callable[[], None]]] = deque()
        self._values: deque[tuple[str, Callable[[], None]]] = deque()

    def code(self, target: Any) -> Any:
        """The reference to a class, function or module; what it stands on is looked into later."""
        raise NotImplementedError

    def entries(self) -> dict[str, Any]:
        """What was found, by name. All code is read before a value is: it tells which values change by themselves.

        Raises:
            ConfigError: something in it cannot be identified.
        """
        while self._code or self.more() or self._values:
            self._now, look = (self._code or self._values).popleft()
            look()
        for label, (written, node) in self._nodes.items():
            texts = [written.source.written(part, self.documented) for part in written.parts] if written else []
            self._entries[label] = digest({**node, "texts": texts, "doc": self.documented and node.get("doc")})
        return self._entries

    def more(self) -> bool:
        """Whether what was read says that other code is to be read too; notes it."""
        return False

    def node(
        self, at: Hashable, name: str, target: Any, describe: Callable[[str], tuple[Written | None, dict[str, Any]]]
    ) -> str:
        """The name of the entry of code; `describe` is called once, with that name."""
        if at not in self._labels:
            label = self._fresh(name)
            self._labels[at] = (label, target)
            self._code.append((label, lambda: self._nodes.__setitem__(label, describe(label))))
        return self._labels[at][0]

    def value(self, at: Hashable, name: str, value: Any, *, lenient: bool = False, space: Space | None = None) -> str:
        """The name of the entry of a value.

        Args:
            at: what is looked up is entered once.
            name: to be called by.
            value: anything.
            lenient: see `Forms.form`.
            space: the globals that it is one of.
        """
        return self.later(at, name, value, lambda label: self.put(label, value, lenient, space))

    def later(self, at: Hashable, name: str, value: Any, put: Callable[[str], None]) -> str:
        """The name of an entry that `put` makes once all code is read."""
        if at not in self._labels:
            called = _CALLED.search(name)
            hidden.hides(called and called[1], value)  # what is struck out of what others write
            label = self._fresh(name)
            self._labels[at] = (label, value)
            self._values.append((label, lambda: put(label)))
        return self._labels[at][0]

    def put(self, label: str, value: Any, lenient: bool = False, space: Space | None = None) -> None:
        """Enter a value.

        Raises:
            ConfigError: it has no plain form.
        """
        try:
            self.put_form(label, self.forms.form(value, lenient, folder_of(space or {})))
        except UnknownError as unknown:
            raise self.refusal(f"a {unknown} has no form that a key could hold", label, REMEDY) from None
        except RecursionError:
            raise self.refusal("it is nested too deep for a key", label, REMEDY) from None

    def put_form(self, label: str, form: Any) -> None:
        """Enter the plain form of a value: itself if it is short, else a digest."""
        text = canonical_json(form)
        long = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        self._entries[label] = form if len(text) <= SHORT else long

    def put_node(self, label: str, written: Written, node: dict[str, Any]) -> None:
        """Enter statements, with what else counts of them, under a name that was given out before."""
        self._nodes[label] = (written, node)

    def first(self, at: Hashable, marks: tuple[Any, ...], value: Any, space: Space) -> tuple[Any, bool]:
        """A value as it was when this place was first asked for, and whether that is all of it.

        Args:
            at: the place, with the `id` of the first of the marks.
            marks: see `first_seen`.
            value: that it holds now.
            space: the globals that it is one of.
        """
        kept = first_seen(at, marks[0], marks, lambda: self._kept(value, folder_of(space)))
        return resolved(kept[0], self.code), kept[1]

    def put_first(self, label: str, value: Any, space: Space) -> None:
        """Enter a value as it was when it was first asked for.

        Raises:
            ConfigError: it has no plain form.
        """
        form, complete = self.first(("value", id(value)), (value,), value, space)
        if complete:
            self.put_form(label, form)
        else:
            self.put(label, value, space=space)

    def _kept(self, value: Any, folder: str) -> tuple[Any, bool]:
        for lenient in (False, True):
            try:
                return Forms(Reference.to, is_own).form(value, lenient, folder), not lenient
            except UnknownError:
                continue
        return None, False

    def library(self, found: Owners, name: str) -> dict[str, str]:
        """The reference to what is not the user's own; its distributions are entered with their versions."""
        for distribution in found or ():
            self._entries[f"library {distribution}"] = version_of(distribution)
        return {"name": name}

    def _fresh(self, name: str) -> str:
        number, label = 1, name
        while label in self._users:
            number += 1
            label = f"{name}#{number}"
        self._users[label] = self._now
        return label

    def refusal(self, what: str, label: str, remedy: str) -> ConfigError:
        """The error for what cannot be identified, with the way that led to it.

        Args:
            what: the fault.
            label: of the code or value at fault.
            remedy: what to do.
        """
        way = [label]
        while self._users.get(way[0]):
            way.insert(0, self._users[way[0]])
        effect = "A change of it would go unseen, and the stage be taken for done."
        return ConfigError(what, where=" -> ".join(way), effect=effect, remedy=remedy)
