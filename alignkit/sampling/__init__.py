"""Sampling: the interface, and the default decode loop."""

from alignkit.sampling.decode import Sampled
from alignkit.sampling.drawing import Drawing
from alignkit.sampling.sampler import Progress, Sampler, sample_side_by_side
from alignkit.sampling.voice import Voice

__all__ = ["Drawing", "Progress", "Sampled", "Sampler", "Voice", "sample_side_by_side"]
