"""A GGUF file, read once: transformers opens it for the configuration, the tokenizer and the weights, and works out the
names of its tensors anew for each module, which together take half a minute for a vocabulary of 50,000 words."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from importlib.util import find_spec


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """Within it, a file that was opened stays open, and a table of names that was made is used again."""
    if find_spec("gguf") is None:  # transformers says so in its own words
        yield
        return
    import gguf

    plain = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    vars(gguf).update({name: functools.cache(made) for name, made in plain.items()})
    try:
        yield
    finally:
        vars(gguf).update(plain)
