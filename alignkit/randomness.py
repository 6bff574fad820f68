"""Random numbers by counter: each is a pure function of what it is for, never of what was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def stream_key(*parts: int | str) -> int:
    """A 64-bit key from (seed, stage, round, prompt, occurrence, sample) or any other path of names and numbers."""
    text = "\x1f".join(f"{type(part).__name__[0]}{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def uniforms(keys: np.ndarray, positions: np.ndarray | int) -> np.ndarray:
    """Uniform numbers in [0, 1), one for each (key, position): SplitMix64 of key + position (Steele et al. 2014).

    Args:
        keys: [N] uint64.
        positions: [N] or one number.

    Returns:
        [N] float64 on a grid of 2^-53.
    """
    with np.errstate(over="ignore"):
        z = keys.astype(np.uint64) + (np.asarray(positions, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX1
        z = (z ^ (z >> np.uint64(27))) * _MIX2
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(count: int, *path: int | str) -> list[int]:
    """A shuffled order of `count` items that depends on `path` alone."""
    draws = uniforms(np.full(count, stream_key(*path), dtype=np.uint64), np.arange(count, dtype=np.uint64))
    return [int(i) for i in np.argsort(draws, kind="stable")]


def derived_seed(*path: int | str) -> int:
    """A 31-bit seed for libraries that want one."""
    return stream_key(*path) % (2**31)
