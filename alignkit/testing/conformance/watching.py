"""What code does beside what it returns: the global random states that it moves, the rows that it changes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

from alignkit.groups import Groups
from alignkit.testing.conformance.outcome import refuse

T = TypeVar("T")


def twice_alike(work: Callable[[], T], differ: Callable[[T, T], str], *rows: Groups, what: str = "it") -> None:
    """Two calls agree, the first moves no global random state, and neither changes the rows.

    Args:
        work: calls what is tried.
        differ: in what two results differ; an empty string where they agree.
        rows: that it is given.
        what: what is tried, for the message.

    Raises:
        Failed: naming what it moves, where two calls differ, or that rows were changed.
    """
    before = [each.digest() for each in rows]
    with watched_randomness() as moved:
        first = work()
    if moved:
        refuse(f"{what} moves the global random state of {', '.join(moved)}")
    if where := differ(first, work()):
        refuse("two calls on the same differ", where)
    if [each.digest() for each in rows] != before:
        refuse(f"{what} changes the rows that it is given")


@contextmanager
def watched_randomness() -> Iterator[list[str]]:
    """A list that names, once the block has ended, whose global random state it moved; it is put back as it was.

    Inside the states are arbitrary ones of our own, so that a seed that is set anew each time is noticed too.
    """
    kept = random.getstate(), torch.get_rng_state(), np.random.get_state()
    moved: list[str] = []
    random.seed(271828)
    torch.manual_seed(271828)
    np.random.seed(271828)
    before = random.getstate(), torch.get_rng_state(), _numpy()
    try:
        yield moved
        after = random.getstate(), torch.get_rng_state(), _numpy()
        same = (before[0] == after[0], torch.equal(before[1], after[1]), before[2] == after[2])
        moved += [name for name, still in zip(("Python", "torch", "numpy"), same, strict=True) if not still]
    finally:
        random.setstate(kept[0])
        torch.set_rng_state(kept[1])
        np.random.set_state(kept[2])


def _numpy() -> tuple[bytes, int]:
    """numpy's global state as something that can be compared."""
    state = np.random.get_state(legacy=False)["state"]  # type: ignore[index, call-overload]
    return state["key"].tobytes(), int(state["pos"])
