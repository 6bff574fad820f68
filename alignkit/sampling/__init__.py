"""Sampling: the interface, and the default decode loop."""

from alignkit.sampling.decode import Sampled
from alignkit.sampling.drawing import Drawing
from alignkit.sampling.progress import Progress, shown
from alignkit.sampling.sampler import Sampler, chat, occurrences, sample_side_by_side

__all__ = ["Drawing", "Progress", "Sampled", "Sampler", "chat", "occurrences", "sample_side_by_side", "shown"]
