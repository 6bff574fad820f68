"""Metrics of the answers of an evaluation, prompt by prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.text.bleu import _bleu_score_compute
from torchmetrics.text import BLEUScore
from torchmetrics.utilities import dim_zero_cat

from alignkit.errors import ConfigError
from alignkit.fields import check_value
from alignkit.metrics.base import Mean, Metric
from alignkit.metrics.specs import ANSWERS, ASKED


class KL(Mean):
    """KL to the reference per answer, nats."""

    spec = ANSWERS["kl"]
    per_prompt = True

    def update(self, kl: Tensor) -> None:  # type: ignore[override]
        super().update(_known(kl))


class Length(Mean):
    """Tokens per answer."""

    spec = ANSWERS["response_length"]
    per_prompt = True

    def update(self, lengths: Tensor) -> None:  # type: ignore[override]
        super().update(_known(lengths))


class Finished(Mean):
    """Share of answers that ended by themselves."""

    spec = ANSWERS["finished"]
    per_prompt = True

    def update(self, finished: Tensor) -> None:  # type: ignore[override]
        super().update(_known(finished))


def always() -> dict[str, Metric]:
    """Those of every evaluation, by name."""
    return {"kl": KL(), "response_length": Length(), "finished": Finished()}


class SelfBLEU(Metric, BLEUScore):
    """BLEU of each answer to a prompt against the others, over all of them at once.

    Args:
        n_gram: the longest n-grams that count, 1 to 4.
        smooth: add one to the counts of n-grams above 1.
    """

    spec = ASKED["self_bleu"]
    per_prompt = True
    answers_needed = 2

    def __init__(self, n_gram: int = 4, smooth: bool = False) -> None:
        check_value("n_gram", n_gram, int, "self_bleu")
        check_value("smooth", smooth, bool, "self_bleu")
        if not 1 <= n_gram <= 4:
            raise ConfigError(f"n_gram={n_gram} must be in [1, 4]", where="self_bleu")
        super().__init__(n_gram=n_gram, smooth=smooth)

    def update(self, responses: Sequence[str]) -> None:  # type: ignore[override]
        if len(responses) > 1:
            others = [[*responses[:place], *responses[place + 1 :]] for place in range(len(responses))]
            super().update(list(responses), others)

    def compute(self) -> Any:
        """Over the n-grams that there are: of answers of two words, those of one and two."""
        orders = int((self.denominator > 0).sum())
        if not orders:
            return {}
        weights = [1 / orders] * orders
        counts = (self.numerator[:orders], self.denominator[:orders])
        return _bleu_score_compute(self.preds_len, self.target_len, *counts, orders, weights, self.smooth)


class Distinct(Metric):
    """Distinct n-grams of words among all of them.

    Args:
        n: words of an n-gram.
    """

    spec = ASKED["distinct"]
    per_prompt = True
    seen: list[Tensor]

    def __init__(self, n: int = 2) -> None:
        super().__init__()
        check_value("n", n, int, "distinct")
        if n < 1:
            raise ConfigError(f"n={n} must be positive", where="distinct")
        self.n = n
        self.add_state("seen", [], dist_reduce_fx="cat")
        self.set_dtype(torch.float64)  # also of the nothing that an idle process brings

    def update(self, responses: Sequence[str]) -> None:
        words = [response.split() for response in responses]
        grams = [tuple(row[i : i + self.n]) for row in words for i in range(len(row) - self.n + 1)]
        if grams:
            self.seen.append(torch.tensor([_number(gram) for gram in grams], dtype=torch.float64))

    def compute(self) -> Any:
        seen = dim_zero_cat(self.seen) if len(self.seen) else torch.zeros(0)
        return len(seen.unique()) / len(seen) if len(seen) else {}


def _known(values: Tensor) -> Tensor:
    return values[~values.isnan()]


def _number(gram: tuple[str, ...]) -> int:
    """An n-gram as 52 bits, which float64 holds exactly; among a million two are alike with probability 1e-4."""
    digest = hashlib.blake2b("\0".join(gram).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 12
