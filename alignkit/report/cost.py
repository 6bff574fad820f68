"""What the stages of a run cost: where the seconds went by phase, a bar for each stage, a table of counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkit.meter import COUNTS, PHASES, TOKENS, short
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
        "profile": _profile(stages),
        "ceilings": sorted({f"{short(rate)}FLOP/s in {dtype}" for rate, dtype in (s.ceiling for s in stages) if rate}),
        "stopped": [stage for stage in stages if stage.result.get("stopped") == "budget"],
    }


def _profile(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The phases of all stages, longest first: seconds, their share, tokens a second, operations a second, and which
    share of what the machine's matrix products reach these are. Each is of the stages whose record says it."""
    whole, rows = sum(sum(stage.phases.values()) for stage in stages), []
    for phase in PHASES:
        there = [stage for stage in stages if stage.phases.get(phase)]
        seconds = sum(stage.phases[phase] for stage in there)
        if not seconds:
            continue
        name = TOKENS.get(phase, "scored_tokens")
        tokens, flops = (sum(s.work.get(phase, {}).get(count, 0) for s in there) for count in (name, "flops"))
        known = [s for s in there if s.ceiling[0]]
        reached = sum(s.work.get(phase, {}).get("flops", 0) for s in known)
        possible = sum(s.ceiling[0] * s.phases[phase] for s in known)
        rows.append(
            {
                "phase": phase,
                "colour": _colour(phase),
                "meaning": PHASES[phase],
                "seconds": seconds,
                "share": seconds / whole,
                "tokens": tokens,
                "token_rate": tokens / seconds if tokens else None,
                "flop_rate": flops / seconds if flops else None,
                "of_ceiling": reached / possible if reached and possible else None,
            }
        )
    return sorted(rows, key=lambda row: -row["seconds"])


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
