"""Sampling: the interface, and the default decode loop."""

from alignkit.sampling.decode import Sampled
from alignkit.sampling.drawing import Drawing
from alignkit.sampling.sampler import Progress, Sampler, chat, sample_side_by_side

__all__ = ["Drawing", "Progress", "Sampled", "Sampler", "chat", "sample_side_by_side"]
