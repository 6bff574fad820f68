"""The summary of one evaluated version: what `stage.json` keeps of the rows in `evaluation.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignkit.evaluation.statistics import best_of_n_curve, bootstrap_mean, paired_difference, samples_by_prompt
from alignkit.metrics.specs import ANSWERS


def score_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The scores of evaluation rows in the order they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row.get("scores") or {}))


def summarise_evaluation(
    rows: Sequence[Mapping[str, Any]],
    first: Sequence[Mapping[str, Any]] | None = None,
    *,
    by_prompt: Mapping[str, Mapping[str, float]] | None = None,
    values: Mapping[str, float] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Means with intervals, the paired difference to the first version, and best-of-n where prompts have samples.

    Args:
        rows: one per prompt and sample: `{"prompt_id", "scores", "kl", "response_length", "finished", ...}`.
        first: the rows of the first version (V0) on the same prompts; prompts of one side only are left out,
            and the interval's `n` shows how many remain.
        by_prompt: what metrics of single prompts say: name -> value by prompt id; None takes what the rows hold
            besides their scores.
        values: what the other metrics say.
        options: `confidence`, `resamples`, `seed` of `bootstrap_mean`.

    Returns:
        `metrics` by name; `paired_to_first` by score (with `first`); `best_of_n` of the first score (with samples).
    """
    names = score_names(rows)
    scores = {name: samples_by_prompt(rows, name) for name in names}
    besides = by_prompt if by_prompt is not None else {name: samples_by_prompt(rows, name) for name in ANSWERS}
    known = {name: found for name, found in {**scores, **besides}.items() if found}
    # A KL or a length that is 0 everywhere is 0, and no event that may happen yet.
    whether = {name: False for name in known if name not in (*scores, "finished")}
    intervals: dict[str, Any] = {
        name: bootstrap_mean(found, share=whether.get(name), **options).to_dict() for name, found in known.items()
    }
    summary: dict[str, Any] = {"metrics": {**intervals, **(values or {})}}
    if first is not None:
        pairs = {name: paired_by_prompt(scores[name], samples_by_prompt(first, name), **options) for name in names}
        summary["paired_to_first"] = {name: pair for name, pair in pairs.items() if pair}
    if names:
        curve = _best_of_n(rows, names[0])
        summary |= {"best_of_n": curve, "best_of_n_score": names[0]} if curve else {}
    return summary


def paired_by_prompt(a: Mapping[str, Any], b: Mapping[str, Any], **options: Any) -> dict[str, Any] | None:
    """`a - b` over the prompts both have, as a dict; None where they share none."""
    shared = [key for key in a if key in b]
    if not shared:
        return None
    return paired_difference({k: a[k] for k in shared}, {k: b[k] for k in shared}, **options).to_dict()


def _best_of_n(rows: Iterable[Mapping[str, Any]], name: str) -> dict[str, dict[str, float]]:
    """By n as text (JSON keys); empty where prompts have one sample."""
    samples: dict[str, list[float]] = {}
    for row in rows:
        value = (row.get("scores") or {}).get(name)
        if value is not None:
            samples.setdefault(row["prompt_id"], []).append(float(value))
    if not samples or min(map(len, samples.values())) < 2:
        return {}
    return {str(n): point for n, point in best_of_n_curve(list(samples.values())).items()}
