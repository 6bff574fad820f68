"""A new distribution, written whole: a small component that works, its test, its page, its licence.

A distribution is `templates/common` with `templates/<kind>` over it. The templates are linted and typed like any other
file; the names in them are replaced, in texts and in paths, and `dot-` at the beginning of one stands for a dot.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from alignkit._version import __version__
from alignkit.errors import ConfigError, PluginError, suggestion
from alignkit.registry.grammar import RESERVED
from alignkit.registry.hookspecs import KINDS
from alignkit.registry.metadata import CORE, normalized

TEMPLATES = Path(__file__).parent / "templates"
USAGE = "usage.md"
"""The part of a README that says how a component of this kind is used; it stands where `<!-- usage -->` does."""
WHERE = "alignkit new-plugin"


@dataclass(frozen=True)
class Names:
    """What a distribution and the component in it are called.

    Args:
        distribution: what pip installs.
        kind: of the component, in the singular.
    """

    distribution: str
    kind: str

    @property
    def module(self) -> str:
        """What Python imports."""
        return re.sub(r"[-_.]+", "_", self.distribution).lower()

    @property
    def component(self) -> str:
        """What the component is registered as: the module without the library's name before it."""
        return self.module.removeprefix(f"{CORE}_")

    @property
    def class_name(self) -> str:
        return "".join(word.capitalize() for word in self.component.split("_"))

    def replaced(self, text: str) -> str:
        """The text of a template, or the path to it, with the names in it."""
        names = {
            "example-plugin": self.distribution,
            "example_plugin": self.module,
            "example_component": self.component,
            "ExampleComponent": self.class_name,
            "example_kind": self.kind,
            "example_range": core_range(__version__),
        }
        return re.sub("|".join(names), lambda found: names[found[0]], text)


def core_range(version: str) -> str:
    """The versions of the core that a plugin written for this one asks for: those with the same minor version.

    Args:
        version: of the core, such as "0.1.0".
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    return f">={major}.{minor},<{major}.{minor + 1}"


def new_plugin(name: str, kind: str, parent: Path | str = ".") -> Path:
    """Write a distribution into a folder of its name, all of it or nothing.

    Args:
        name: of the distribution; the module's and the component's follow from it.
        kind: of the component that it brings.
        parent: where the folder is made.

    Returns:
        the folder.

    Raises:
        ConfigError: the kind or the name will not do.
        PluginError: the name is taken, by a folder, a distribution, a module or a component.
    """
    if kind not in KINDS:
        raise ConfigError(f"no kind of component is called {kind!r}", where=WHERE, remedy=suggestion(kind, KINDS))
    names = Names(name, kind)
    check_name(names)
    check_free(names)
    folder = Path(parent) / name
    if folder.exists():
        raise PluginError(f"{folder} exists", where=WHERE, effect="Nothing was written.", remedy="remove it first")
    check_component(names)
    Path(parent).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as temporary:
        written = Path(temporary) / name
        for path, content in files(names):
            (written / path).parent.mkdir(parents=True, exist_ok=True)
            (written / path).write_text(content, encoding="utf-8")
        written.rename(folder)
    return folder


def files(names: Names) -> Iterator[tuple[PurePosixPath, str]]:
    """(path, text) of every file of the distribution."""
    usage = (TEMPLATES / names.kind / USAGE).read_text(encoding="utf-8")
    for root in (TEMPLATES / "common", TEMPLATES / names.kind):
        for path in sorted(root.rglob("*")):
            place = path.relative_to(root)
            hidden = any(part.startswith((".", "__pycache__")) for part in place.parts)  # what tools leave behind
            if path.is_file() and not hidden and place.name != USAGE:
                text = path.read_text(encoding="utf-8").replace("<!-- usage -->\n", usage)
                parts = [re.sub("^dot-", ".", part) for part in place.parts]
                yield PurePosixPath(names.replaced("/".join(parts))), names.replaced(text)


def check_name(names: Names) -> None:
    """Refuse a name that no package index takes, or that makes no module or component.

    Raises:
        ConfigError: saying which.
    """
    name, remedy = names.distribution, "a name such as alignkit-mine: letters, digits and dashes, a letter first"
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):  # PEP 508, compared as PEP 503 says
        raise ConfigError(f"{name!r} is no name of a distribution", where=WHERE, remedy=remedy)
    for what, word in (("module", names.module), ("component", names.component)):
        if not word.isidentifier() or keyword.iskeyword(word) or word in RESERVED:
            raise ConfigError(f"{name!r} gives the {what} {word!r}, which is no name", where=WHERE, remedy=remedy)


def identifiers(kind: str) -> set[str]:
    """The names that the code of a template uses for something else."""
    found = set()
    for path in (TEMPLATES / kind).rglob("*.py"):
        with path.open("rb") as text:
            found |= {token.string for token in tokenize.tokenize(text.readline) if token.type == tokenize.NAME}
    return found


def check_free(names: Names) -> None:
    """Refuse a name that something else has: it could not be installed beside it, or would hide it.

    Raises:
        PluginError: saying who has it.
    """
    taken = ""
    if names.module in sys.stdlib_module_names or normalized(names.distribution) == CORE:
        taken = "is a module of Python's" if names.module in sys.stdlib_module_names else "is the library itself"
    elif _installed(names.distribution):
        taken = "is installed already"
    elif importlib.util.find_spec(names.module) is not None:
        taken = f"would hide the module {names.module} that is installed"
    if taken:
        raise PluginError(f"{names.distribution!r} {taken}", where=WHERE, remedy="choose another name")


def check_component(names: Names) -> None:
    """Refuse a component's name that its own text uses for something else, or that another distribution has brought.

    Raises:
        PluginError: saying which.
    """
    taken = next(iter(sorted({names.component, names.class_name} & identifiers(names.kind))), "")
    effect = "its text uses it for something else"
    if not taken and (owner := component_owner(names.kind, names.component)):
        taken, effect = names.component, f"the {names.kind} of {owner} has it, and the name alone would say neither"
    if taken:
        what = f"{names.distribution!r} gives the name {taken!r}: {effect}"
        raise PluginError(what, where=WHERE, remedy="choose another name")


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def component_owner(kind: str, name: str) -> str:
    """The distribution that brings a component of this name, or an empty string. Loads the plugins."""
    from alignkit.registry.host import PluginHost

    return next((r.distribution for r in PluginHost(strict=False).components(kind) if r.name == name), "")
