"""Memory that was freed stays with the process, on a processor under glibc.

A training step asks for the same tens of megabytes again and again. By default glibc gives what is freed at the end of
its heap back to the system, and takes large blocks from there each time: their pages are then found and cleared anew,
which takes three to five times as long as what is computed in them (benchmarks/results/speed.md).
"""

from __future__ import annotations

import ctypes
import functools
import os

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
"""Names of parameters in glibc's malloc.h."""

TOP = 2**26
"""Bytes by which the heap grows, at the least."""

CHOSEN = ("MALLOC_", "glibc.malloc.")
"""What a user's own choice begins with: a variable's name, or one of the tunables in GLIBC_TUNABLES."""


@functools.cache
def keep_freed() -> bool:
    """Have this process keep what it frees for what it asks for next; it is not given back before the end.

    All threads then take from one heap, which has no limit of its own. Where a user chose otherwise by the environment
    (`MALLOC_TRIM_THRESHOLD_`, `MALLOC_ARENA_MAX`, …, or `glibc.malloc.…` in `GLIBC_TUNABLES`), and where the library is
    not glibc, nothing is done.

    Returns:
        Whether it does now.
    """
    own = any(name.startswith(CHOSEN[0]) for name in os.environ) or CHOSEN[1] in os.environ.get("GLIBC_TUNABLES", "")
    mallopt = None if own or os.name != "posix" else getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    asked = ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, TOP), (ARENA_MAX, 1))
    return all([mallopt(name, value) for name, value in asked])


__all__ = ["keep_freed"]
