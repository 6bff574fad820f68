"""Which plugins are installed, read from the metadata of distributions: nothing is imported here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from packaging.requirements import InvalidRequirement, Requirement

from alignkit._version import __version__

GROUP = "alignkit"
RECIPES = "alignkit.recipes"
"""The group in which a distribution may name its recipes, each with its function: their help needs no other plugin."""
FORMATS = "alignkit.formats"
"""The group in which a distribution names the formats of data files that it brings: reading imports no other plugin."""
CORE = "alignkit"

State = Literal["enabled", "disabled", "blocked", "failed", "not loaded"]


@dataclass(frozen=True)
class PluginInfo:
    """One entry point of one installed distribution, and what became of it.

    Args:
        distribution: the distribution's name; for a plugin registered by hand, the name it was given.
        version: the distribution's version.
        entry_point: the entry point's name.
        module: what the entry point names.
        requires: the versions of alignkit it asks for, as its dependencies say; empty for any.
        state: "enabled" (a run uses it), "disabled" (it asks for another core), "blocked" (by the block list),
            "not loaded" (not on the allow list), "failed" (it was loaded and was found faulty).
        reason: why it is not enabled.
        components: what it registered, as "kind name", once loaded.
        import_seconds: how long loading took; None while nothing was imported.
        path: the folder it comes from: the source tree of an editable install, else where it was installed.
        recipes: those that the distribution's metadata names, whichever of its entry points registers them.
        formats: likewise the formats of data files.
        hides: folders of further distributions of this name, which the first on the path keeps from being used.
    """

    distribution: str
    version: str
    entry_point: str
    module: str
    requires: str = ""
    state: State = "enabled"
    reason: str = ""
    components: tuple[str, ...] = ()
    import_seconds: float | None = None
    path: str = ""
    recipes: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    hides: tuple[str, ...] = ()

    @property
    def remark(self) -> str:
        """Why it is not enabled; or that it hides another of its name, which is not to happen without a word."""
        hidden = f"hides another {self.distribution}, in {', '.join(self.hides)}" if self.hides else ""
        return "; ".join(filter(None, (self.reason, hidden)))

    @property
    def id(self) -> str:
        """What tells plugins apart: two distributions may use one entry point name."""
        return f"{self.distribution}:{self.entry_point}"

    @property
    def loaded(self) -> bool:
        """Whether it was imported and its components count."""
        return self.state == "enabled" and self.import_seconds is not None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, one key per field."""
        return {
            **asdict(self),
            "components": list(self.components),
            "recipes": list(self.recipes),
            "formats": list(self.formats),
            "hides": list(self.hides),
            "loaded": self.loaded,
        }


def normalized(name: str) -> str:
    """A distribution name as package indexes compare it: case, dots, dashes and underscores make no difference."""
    return re.sub(r"[-_.]+", "-", name).lower()


def split_names(text: str | None) -> frozenset[str] | None:
    """The normalized names of a comma separated list; None for no list at all, which differs from an empty one.

    Args:
        text: the value of an environment variable.
    """
    return None if text is None else frozenset(normalized(name.strip()) for name in text.split(",") if name.strip())


@dataclass(frozen=True)
class LoadLists:
    """Which distributions may be imported: the block list, and the allow list where there is one.

    Args:
        block: normalized names never to import.
        allow: normalized names to import and no others; None to import all.
    """

    block: frozenset[str]
    allow: frozenset[str] | None

    @classmethod
    def read(cls, block: Iterable[str], allow: Iterable[str] | None) -> LoadLists:
        """The lists given, and those of ALIGNKIT_BLOCK_PLUGINS and ALIGNKIT_LOAD_PLUGINS.

        Args:
            block: added to the environment's list.
            allow: used instead of the environment's list, unless None.
        """
        blocked = frozenset(map(normalized, block)) | (split_names(os.environ.get("ALIGNKIT_BLOCK_PLUGINS")) or set())
        if allow is None:
            return cls(blocked, split_names(os.environ.get("ALIGNKIT_LOAD_PLUGINS")))
        return cls(blocked, frozenset(map(normalized, allow)))

    def judge(self, info: PluginInfo) -> PluginInfo:
        """The plugin with the state these lists and its own requirement give it."""
        name = normalized(info.distribution)
        if info.state != "enabled":
            return info
        if name in self.block:
            return replace(info, state="blocked", reason="on the block list (ALIGNKIT_BLOCK_PLUGINS)")
        if self.allow is not None and name not in self.allow:
            return replace(info, state="not loaded", reason="not on the allow list (ALIGNKIT_LOAD_PLUGINS)")
        return info

    def unknown(self, infos: Iterable[PluginInfo]) -> list[str]:
        """Names on either list that are not installed: a misspelled block list blocks nothing."""
        return sorted((self.block | (self.allow or frozenset())) - {normalized(info.distribution) for info in infos})


def discover(path: list[str] | None = None) -> Iterator[tuple[PluginInfo, EntryPoint | None]]:
    """Every entry point in the group "alignkit", in the order of distribution names.

    Of a distribution found twice on the path the first counts, as it does for `import`, and says what it hides. One
    with unreadable metadata is passed over: it may be anybody's, and cannot be a reason for alignkit not to start.

    Args:
        path: folders to look in; None for `sys.path`.
    """
    found: dict[str, list[tuple[PluginInfo, EntryPoint | None]]] = {}
    places: dict[str, list[str]] = {}
    for distribution in distributions() if path is None else distributions(path=path):
        try:
            entry_points = distribution.entry_points.select(group=GROUP)
            if entry_points:
                entries: list[tuple[PluginInfo, EntryPoint | None]] = [
                    (_info(distribution, e), e) for e in entry_points
                ]
                name = normalized(distribution.name)
                found.setdefault(name, entries)
                places.setdefault(name, []).append(entries[0][0].path)
        except Exception:
            continue
    for name in sorted(found):
        hides = tuple(place for place in dict.fromkeys(places[name][1:]) if not _one_place(place, places[name][0]))
        yield from ((replace(info, hides=hides), entry) for info, entry in found[name])


def _one_place(one: str, other: str) -> bool:
    """Whether two folders are one, or the source tree of the other (an editable install is found by both)."""
    folders = {Path(place).resolve() for place in (one, other)}
    return len({folder.parent if folder.name == "src" else folder for folder in folders}) == 1


def _info(distribution: Distribution, entry_point: EntryPoint) -> PluginInfo:
    info = PluginInfo(
        distribution=distribution.name,
        version=distribution.version,
        entry_point=entry_point.name,
        module=entry_point.value,
        path=_origin(distribution),
        recipes=tuple(sorted(distribution.entry_points.select(group=RECIPES).names)),
        formats=tuple(sorted(distribution.entry_points.select(group=FORMATS).names)),
    )
    try:
        requirement = _core_requirement(distribution)
    except InvalidRequirement as error:
        return replace(info, state="disabled", reason=f"its dependencies cannot be read: {_one_line(str(error))}")
    if requirement is None:
        return info
    info = replace(info, requires=str(requirement.specifier))
    if requirement.specifier.contains(__version__, prereleases=True):
        return info
    return replace(info, state="disabled", reason=f"asks for alignkit{info.requires}; this is {__version__}")


def _core_requirement(distribution: Distribution) -> Requirement | None:
    """What its dependencies say about alignkit, extras left aside."""
    for text in distribution.requires or ():
        if re.match(rf"\s*{GROUP}\b(?![-_.])", text, re.IGNORECASE):
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                return requirement
    return None


def _origin(distribution: Distribution) -> str:
    direct_url = json.loads(distribution.read_text("direct_url.json") or "{}")
    if direct_url.get("dir_info", {}).get("editable"):
        return unquote(urlparse(direct_url["url"]).path)
    return str(distribution.locate_file(""))


def _one_line(text: str) -> str:
    return " ".join(text.split())
