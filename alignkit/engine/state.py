"""What a method remembers between rounds and versions: plain JSON, looked at wherever a method hands it over.

Needs no model, and no torch.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from typing import Any

from alignkit.calls import calling, whose
from alignkit.errors import ConfigError, PluginError
from alignkit.optimizers import PolicyOptimizer


def checked_state(state: Any, where: str) -> dict[str, Any]:
    """A method's state, which is kept as JSON.

    Raises:
        PluginError: no mapping, or something in it that JSON cannot hold.
    """
    if isinstance(state, Mapping):
        try:
            json.dumps(state := dict(state), allow_nan=False)
        except (TypeError, ValueError) as error:
            what = f"the state cannot be kept ({error})"
            raise PluginError(what, where=where, remedy="keep finite numbers, text, lists and mappings") from error
        return state
    raise PluginError(f"the state is a {type(state).__name__}", where=where, remedy="return a mapping of plain JSON")


def initial_state(method: PolicyOptimizer) -> dict[str, Any]:
    """What a method begins with.

    Raises:
        PluginError: it raised, or gave what JSON cannot hold.
    """
    with calling(method, "initial_state"):
        found = method.initial_state()
    return checked_state(found, f"{whose(method)}.initial_state")


def begun_with(method: PolicyOptimizer, given: Mapping[str, Any] | None, where: str = "improve") -> dict[str, Any]:
    """The state that the first round has: the one given, or the method's own beginning.

    Args:
        method: the policy optimizer.
        given: as an earlier `improve` ended, or None.
        where: the stage.

    Raises:
        ConfigError: what was given is no state of this method: other names, or another kind of value.
        PluginError: see `initial_state`.
    """
    own = initial_state(method)
    if given is None:
        return own
    given = dict(given) if isinstance(given, Mapping) else given
    if not isinstance(given, dict) or set(given) != set(own):
        shown = sorted(map(str, given)) if isinstance(given, dict) else f"a {type(given).__name__}"
        has = f"that of {whose(method)} is of {sorted(own)}" if own else f"{whose(method)} has none as it is set"
        raise ConfigError(
            f"state is of {shown}, and {has}",
            where=where,
            effect="Nothing of it would reach the method, or not all that it needs.",
            remedy="pass the state= of what the same optimizer improved before, or leave it out",
        )
    wrong = [name for name, value in given.items() if own[name] is not None and _kind(value) != _kind(own[name])]
    if wrong:
        what = f"state[{wrong[0]!r}] is {given[wrong[0]]!r}, and begins as {own[wrong[0]]!r}"
        raise ConfigError(what, where=where, remedy="pass the state that improve returned")
    return copy.deepcopy(given)


def _kind(value: Any) -> str:
    """What kind of JSON a value is."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number" if math.isfinite(value) else "no number"
    return type(value).__name__
