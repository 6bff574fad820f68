"""Compare methods: the same suite, budget and seeds for all, each (method, seed) a run of its own, and what may be said
of the differences."""

from alignkit.comparison.merge import merge as merge_comparisons
from alignkit.comparison.results import Comparison
from alignkit.comparison.whole import compare

__all__ = ["Comparison", "compare", "merge_comparisons"]
