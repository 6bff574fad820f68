"""Sampling: the interface, the default decode loop, random numbers by counter."""

from alignkit.sampling.sampler import Sampler, chat, occurrences, sample_side_by_side

__all__ = ["Sampler", "chat", "occurrences", "sample_side_by_side"]
