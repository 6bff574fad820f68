"""The formats of data files that there are: the core's, and those that plugins bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignkit.data.conversations import columns_hint
from alignkit.data.formats import CORE
from alignkit.data.messages import BadRow
from alignkit.data.row_format import RowFormat, recognised
from alignkit.errors import ConfigError, suggestion

HINTED = (
    "prompt",
    "chosen",
    "rejected",
    "responses",
    "messages",
    "completion",
    "label",
    "rating",
    "margin",
    "tie",
    "text",
)
"""The columns that a hint proposes for one that nobody knows."""


def known_formats() -> list[tuple[str, RowFormat]]:
    """(whose, the format): the core's first, then those of plugins that name theirs in their metadata, or that were
    registered by hand. No other plugin is imported.

    Raises:
        PluginError: a plugin is faulty, and ALIGNKIT_STRICT_PLUGINS asks that this be an error.
    """
    from alignkit.registry.host import default_host

    others = [(r.distribution, r.object) for r in default_host().formats() if r.distribution != "alignkit"]
    return [*(("alignkit", one) for one in CORE), *others]


def format_called(name: str) -> RowFormat:
    """A format by its name, or as `distribution/name`.

    Raises:
        ConfigError: there is none.
    """
    known = known_formats()
    for owner, one in reversed(known):
        if name in (one.name, f"{owner}/{one.name}"):
            return one
    names = [one.name for _, one in known]
    raise ConfigError(f"no format is called {name!r}", where="read_groups", remedy=suggestion(name, names))


def format_of(row: Mapping[str, Any]) -> RowFormat:
    """The format that a row has.

    Raises:
        BadRow: none that is known.
    """
    found = recognised(row, [one for _, one in known_formats()])
    if found is None:
        names = [str(name) for name in row]
        what = f"cannot tell what the columns {sorted(names)} mean"
        raise BadRow("D21", "", what, remedy=f"{columns_hint(names, HINTED)} (alignkit formats lists what is known)")
    return found
