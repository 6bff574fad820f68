"""Metrics: what each number is (`specs`), what a metric may ask for (`offers`), and the metrics themselves.

A metric is a `torchmetrics.Metric`; torch is loaded when the first one is asked for, not for listings and pages.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from alignkit.metrics.offers import OFFERS, Offer
from alignkit.metrics.specs import RATIOS, MetricSpec

_LAZY = {
    "Metric": "base",
    "Mean": "base",
    "Ratio": "base",
    "values_of": "base",
    "alone": "base",
    "Entropy": "tokens",
    "Perplexity": "tokens",
    "Accuracy": "comparisons",
    "CalibrationError": "comparisons",
    "KL": "answers",
    "Length": "answers",
    "Finished": "answers",
    "SelfBLEU": "answers",
    "Distinct": "answers",
}

__all__ = [
    "KL",
    "OFFERS",
    "RATIOS",
    "Accuracy",
    "CalibrationError",
    "Distinct",
    "Entropy",
    "Finished",
    "Length",
    "Mean",
    "Metric",
    "MetricSpec",
    "Offer",
    "Perplexity",
    "Ratio",
    "SelfBLEU",
    "alone",
    "values_of",
]

if TYPE_CHECKING:
    from alignkit.metrics.answers import KL, Distinct, Finished, Length, SelfBLEU
    from alignkit.metrics.base import Mean, Metric, Ratio, alone, values_of
    from alignkit.metrics.comparisons import Accuracy, CalibrationError
    from alignkit.metrics.tokens import Entropy, Perplexity


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'alignkit.metrics' has no attribute {name!r}")
    return getattr(importlib.import_module(f"alignkit.metrics.{_LAZY[name]}"), name)
