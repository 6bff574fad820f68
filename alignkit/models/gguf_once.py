"""A GGUF file, read once: transformers opens it for the configuration, the tokenizer and the weights, and works out the
names of its tensors anew for each module, which together take half a minute for a vocabulary of 50,000 words. The file
is cut into hundreds of thousands of parts, which numpy does several times as fast for a plain array as for a mapped
file."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """Within it, a file that was opened stays open, and a table of names that was made is used again."""
    if find_spec("gguf") is None:  # transformers says so in its own words
        yield
        return
    import gguf
    import numpy as np

    plain: dict[str, Any] = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    opened: Any = plain["GGUFReader"]

    class Reader(opened):  # type: ignore[misc]
        data: Any

        def _get(self, *args: Any, **kwargs: Any) -> Any:
            if type(self.data) is np.memmap:
                self.data = np.asarray(self.data)  # the same memory
            return super()._get(*args, **kwargs)

    made = {**plain, "GGUFReader": Reader}.items()
    vars(gguf).update({name: functools.cache(each) for name, each in made})
    try:
        yield
    finally:
        vars(gguf).update(plain)
