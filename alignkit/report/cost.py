"""What the stages of a run cost: a table, and a bar for each stage of where its seconds went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkit.meter import COUNTS, PHASES
from alignkit.report import charts
from alignkit.report.collect import RunView, Stage

HEADS = {
    "generated_tokens": "Sampled",
    "trained_tokens": "Trained",
    "scored_tokens": "Read",
    "reward_calls": "Rewards",
    "judge_calls": "Judged",
    "optimizer_steps": "Steps",
    "flops": "FLOP",
}
"""Of the columns, in their order; the meter says what they count."""


def costs(view: RunView) -> dict[str, Any] | None:
    """The part of the page; None where no stage has a meter. A count that is 0 everywhere gets no column."""
    stages = [stage for stage in view.stages if stage.meter]
    if not stages:
        return None
    columns = [name for name in HEADS if any(stage.spent(name) for stage in stages)]
    longest = max(sum(stage.phases.values()) for stage in stages)
    used = {name for stage in stages for name in stage.phases}
    return {
        "columns": [(HEADS[name], COUNTS.get(name, "floating-point operations")) for name in columns],
        "rows": [_row(stage, columns, longest) for stage in stages],
        "total": [sum(stage.spent(name) for stage in stages) for name in columns],
        "memory": max(stage.peak_memory for stage in stages),
        "phases": [(name, _colour(name), meaning) for name, meaning in PHASES.items() if name in used],
        "stopped": [stage for stage in stages if stage.result.get("stopped") == "budget"],
    }


def _row(stage: Stage, columns: Sequence[str], longest: float) -> dict[str, Any]:
    parts = [(_colour(name), name, seconds) for name, seconds in stage.phases.items()]
    return {
        "stage": stage,
        "amounts": [stage.spent(name) for name in columns],
        "bar": charts.bar(parts, longest),
        "phases": list(stage.phases.items()),
    }


def _colour(phase: str) -> str:
    return f"p{list(PHASES).index(phase)}"
