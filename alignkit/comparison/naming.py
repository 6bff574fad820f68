"""What methods are called in a table and on the page: by their names, as far as these tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alignkit.comparison.declared import START
from alignkit.comparison.results import Comparison
from alignkit.errors import AlignkitError
from alignkit.registry.grammar import Component, parse_list


def called(labels: Sequence[str]) -> dict[str, str]:
    """By label what a method is called: names alone, with the arguments in which it differs from others of these names.

    Args:
        labels: as the methods were written.
    """
    steps = {label: _steps(label) for label in labels if label != START}
    found = {}
    for label, own in steps.items():
        alike = [other for other in steps.values() if _names(other) == _names(own)]
        found[label] = ",".join(str(_telling(each, [other[k] for other in alike])) for k, each in enumerate(own))
    every = list(found.values())
    return {label: found[label] if found.get(label) and every.count(found[label]) == 1 else label for label in labels}


def in_short(found: Comparison) -> Comparison:
    """The same comparison, its methods by what they are called."""
    names = called([each.method for each in found.standings])
    return replace(
        found,
        standings=tuple(replace(each, method=names[each.method]) for each in found.standings),
        differences=tuple(replace(each, a=names[each.a], b=names[each.b]) for each in found.differences),
        cells=tuple(replace(cell, method=names[cell.method]) for cell in found.cells),
        trials={names.get(label, label): rows for label, rows in found.trials.items()},
    )


def _steps(label: str) -> list[Component]:
    """The steps of a label; one that is no component is called by the whole of it."""
    try:
        return parse_list(label)
    except AlignkitError:
        return []


def _names(steps: Sequence[Component]) -> list[str]:
    return [each.name for each in steps]


def _telling(own: Component, alike: Sequence[Component]) -> Component:
    """The component with those of its arguments in which not all are the same."""
    values = [other.params for other in alike]
    same = {k for k, v in own.params.items() if all(k in each and each[k] == v for each in values)}
    return Component(own.name, {k: v for k, v in own.params.items() if k not in same})
