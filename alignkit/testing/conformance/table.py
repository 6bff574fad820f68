"""What was found as text: a line for each check, and one that an author can paste."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence

from alignkit._version import __version__
from alignkit.identity.distributions import version_of
from alignkit.registry.host import PluginHost
from alignkit.testing.conformance.outcome import Outcome

COLUMNS = ("component", "check", "verdict", "what")

LIBRARIES = ("torch", "transformers", "lightning", "datasets", "peft")
"""Whose versions the summary names beside the core's and the plugin's."""


def rows(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str, str]]:
    """The cells of a table, failures first; what shows a failure again stands below what is wrong."""
    order = {"fail": 0, "pass": 1, "does not apply": 2}
    listed = sorted(outcomes, key=lambda one: order[one.verdict])
    return [(one.subject, one.check, one.verdict, "\n".join(filter(None, (one.text, one.reproduce)))) for one in listed]


def summary(name: str, outcomes: Sequence[Outcome], host: PluginHost) -> str:
    """One line: what was checked, in which versions, and how it ended."""
    counts = Counter(one.verdict for one in outcomes)
    components = {one.subject for one in outcomes if ":" in one.subject}
    plugins = {f"{i.distribution} {i.version}" for i in host.plugins() if i.distribution in _brought(outcomes, host)}
    versions = [f"alignkit {__version__}", *(f"{library} {version_of(library)}" for library in LIBRARIES)]
    failed = f"{counts['fail']} failed: {_failed(outcomes)}" if counts["fail"] else "0 failed"
    return (
        f"conformance of {', '.join(sorted(plugins)) or name}: {len(components)} components, {counts['pass']} passed, "
        f"{failed}, {counts['does not apply']} do not apply ({', '.join(versions)}, Python {platform.python_version()})"
    )


def _failed(outcomes: Sequence[Outcome]) -> str:
    return ", ".join(f"{one.subject} {one.check}" for one in outcomes if one.verdict == "fail")


def _brought(outcomes: Sequence[Outcome], host: PluginHost) -> set[str]:
    """The distributions whose components were checked."""
    labels = {one.subject for one in outcomes}
    named = {record.distribution for record in host.components() if f"{record.kind}:{record.name}" in labels}
    return named if ":" in next(iter(labels), "") else labels & {info.distribution for info in host.plugins()}
