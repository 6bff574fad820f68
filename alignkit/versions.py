"""Which versions a run used."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache

LIBRARIES = (
    "alignkit",
    "torch",
    "lightning",
    "torchmetrics",
    "transformers",
    "datasets",
    "peft",
    "safetensors",
    "tokenizers",
    "numpy",
)


@cache
def versions() -> dict[str, str]:
    """Versions of Python, of the libraries that results depend on, and of every installed plugin distribution."""
    found = {"python": platform.python_version()}
    plugins = {e.dist.name for e in importlib.metadata.entry_points(group="alignkit") if e.dist is not None}
    for name in (*LIBRARIES, *sorted(plugins)):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
