"""What a stage's work returns: small, plain JSON that its record keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError


def small_results(value: Any, where: str) -> dict[str, Any]:
    """The results as they are written: scalars of NumPy and torch as numbers, tuples as lists; nothing is None or {}.

    Args:
        value: what `Stage.work` returned.
        where: the stage's name, for errors.

    Raises:
        ConfigError: no mapping, or something in it that JSON cannot hold, by its path.
    """
    if value is not None and not isinstance(value, Mapping):
        what = f"its work returned a {type(value).__name__}"
        raise ConfigError(what, where=where, remedy="return a mapping of small results")
    return {str(name): _plain(one, f"{where}: result[{name!r}]") for name, one in (value or {}).items()}


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(one, f"{where}[{name!r}]") for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, f"{where}[{place}]") for place, one in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    number = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
    if isinstance(number, (bool, int)) or (isinstance(number, float) and math.isfinite(number)):
        return number
    shown = f"{number}" if isinstance(number, float) else f"a {type(value).__name__}"
    raise ConfigError(f"{shown} cannot be kept", where=where, remedy="return finite numbers, text, lists and mappings")
