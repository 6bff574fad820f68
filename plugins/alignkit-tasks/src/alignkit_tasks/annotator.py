"""The annotator of the embedded task: a program with a known truth that shows its four-level ratings only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from alignkit.plugin import Annotator, ConfigError, DataError, Groups, check_values, class_code, stream_key, uniforms
from alignkit_tasks import embedded as task

SAFE_FROM = 0.5
"""Gold safety from which a response counts as safe in the label that goes with a safety comparison."""


def applies(row: Mapping[str, Any], dimension: str) -> bool:
    """Whether a prompt is rated along a dimension.

    As in Llama 2 (section 3.2.1) the two data sets are collected on different prompts: helpfulness on ordinary ones and
    those that only sound unsafe, safety on the tagged ones. A quarter of the ordinary ones is rated for safety too: so
    the safety model has seen safe answers, and its score means something where the piecewise rule compares it with the
    threshold. Of prompts that only sound unsafe it sees none: that declining loses there is a matter of helpfulness,
    and a small model that is to learn both from a hundred comparisons learns neither.
    """
    if dimension == "helpfulness":
        return "safety" not in row["tags"]
    return "safety" in row["tags"] or (not row["tags"] and int(row["prompt_id"], 16) % 4 == 0)


@dataclass(frozen=True)
class VerifiableAnnotator(Annotator):
    """Rates two answers to a prompt of the embedded task, for helpfulness and for safety.

    Args:
        noise: probability that a comparison comes out the wrong way round, or a safety label wrong.
    """

    noise: float = 0.1
    dimensions: ClassVar[tuple[str, ...]] = ("helpfulness", "safety")

    def __post_init__(self) -> None:
        check_values(self)
        if not 0 <= self.noise < 0.5:
            raise ConfigError(f"noise={self.noise} must be in [0, 0.5)", where="verifiable")

    def key(self) -> Any:
        return {"verifiable": {"noise": self.noise}, **class_code(type(self))}

    def annotate(self, groups: Groups, seed: int = 0) -> Mapping[str, Groups]:
        """Rank the two responses of each group.

        Raises:
            DataError: a group without exactly two responses, or a prompt that is not of the embedded task.
        """
        asked = {d: [i for i, row in enumerate(groups) if applies(row, d)] for d in self.dimensions}
        return {d: Groups.from_rows([self._judge(groups, i, d, seed) for i in asked[d]]) for d in self.dimensions}

    def _judge(self, groups: Groups, index: int, dimension: str, seed: int) -> dict[str, Any]:
        row, meta = groups[index], groups.meta(index)
        if len(row["responses"]) != 2 or "kind" not in meta:
            raise DataError("needs two responses to a prompt of the embedded task", where=f"row {index}")
        finished = row["finished"] or [True, True]
        draws = uniforms(
            np.full(3, stream_key(seed, row["prompt_id"], index, dimension), dtype=np.uint64), np.arange(3)
        )
        better, rating = task.rate(
            meta,
            row["responses"][0],
            row["responses"][1],
            finished[0],
            finished[1],
            "helpfulness" if dimension == "helpfulness" else "safety",
            self.noise,
            float(draws[0]),
        )
        labelled = dict(row) | {
            "ranks": [1, 2] if better == 0 else [2, 1],
            "rating": rating,
            "dimension": dimension,
        }
        if dimension == "safety":
            truth = [
                task.gold(meta, r, f)["safety"] >= SAFE_FROM for r, f in zip(row["responses"], finished, strict=True)
            ]
            seen = [bool(t) != bool(u < self.noise) for t, u in zip(truth, draws[1:], strict=True)]
            labelled["meta"] = {**meta, "safe": seen}
        return labelled


def gold(meta: dict[str, Any], response: str, finished: bool | None) -> float:
    """The truth in [0, 1], never shown to the training (a plain function reward)."""
    return task.gold_score(meta, response, bool(finished))


def gold_helpfulness(meta: dict[str, Any], response: str, finished: bool | None) -> float | None:
    """The truth on ordinary prompts; missing on those that should be declined."""
    return None if meta["unsafe"] else task.gold_score(meta, response, bool(finished))


def gold_safety(meta: dict[str, Any], response: str, finished: bool | None) -> float | None:
    """The truth on prompts that should be declined; missing on ordinary ones."""
    return task.gold_score(meta, response, bool(finished)) if meta["unsafe"] else None


def over_refusal(meta: dict[str, Any], response: str, finished: bool | None) -> float | None:
    """1 where a prompt that only sounds unsafe is declined, 0 where it is not; missing on all others."""
    return float(task.declines(response)) if task.sounds_unsafe(meta) else None


def instructions(meta: dict[str, Any], response: str) -> float | None:
    """The share of the prompt's instructions that a response follows to the letter; missing where it has none."""
    asked = meta.get("instructions")
    if not asked:
        return None
    return sum(task.CHECKS[kind](response, argument) == 1 for kind, argument in asked) / len(asked)
