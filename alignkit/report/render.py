"""From the view of a run to the page: what each part shows is decided here, how it looks in `page.html`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from alignkit.files import write_text
from alignkit.groups import RATINGS
from alignkit.metrics.specs import ANSWERS, CORE, MetricSpec, spec_of
from alignkit.report import charts, text
from alignkit.report.choose import choose_prompts
from alignkit.report.collect import RunView, Stage, Version, collect, is_number, numeric_names
from alignkit.report.cost import costs
from alignkit.run_folder import PAGE, StageRecord, mapping

LEVELS = {level: level.replace("_", " ").capitalize() for level in RATINGS} | {
    "overall": "Overall",
    "negligibly_better_or_unsure": "Negligibly / unsure",
}


def write_page(run_folder: Path) -> Path:
    """Write the page, whole or not at all."""
    path = run_folder / PAGE
    write_text(path, render(collect(run_folder)))
    return path


def render(view: RunView) -> str:
    """The page as text: the same view gives the same bytes."""
    return environment().get_template("page.html").render(_context(view))


def environment(*folders: Path) -> jinja2.Environment:
    """What pages are made in: everything is escaped, and what hides or reorders text is spelled out.

    Args:
        folders: of templates, besides the reports' own.
    """
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers = (
        text.brief,
        text.number,
        text.signed,
        text.percent,
        text.duration,
        text.amount,
        text.compact,
        text.clipped,
        text.conversation,
    )
    found.filters.update({helper.__name__: helper for helper in helpers})
    found.globals |= {"percent": text.percent, "number": text.number}
    return found


def _shown(value: Any) -> Any:
    """What every expression of the template passes before it is escaped."""
    if isinstance(value, Markup):
        return value
    return "–" if value is None else text.visible(str(value))


def _context(view: RunView) -> dict[str, Any]:
    return {
        "run": view,
        "facts": _facts(view),
        "verdict": verdict(view),
        "table": _table(view),
        "steps": _steps(view),
        "score_charts": _score_charts(view),
        "curves": _all_curves(view),
        "reward_models": [block for stage in view.stages if (block := _reward_model(stage))],
        "best_of_n": _best_of_n(view),
        "answers": _answers(view),
        "costs": costs(view),
        "lineage": {stage.folder: _lineage(stage, view) for stage in view.stages},
        "total_seconds": sum(stage.seconds or 0 for stage in view.stages if is_number(stage.seconds)),
    }


def _facts(view: RunView) -> list[tuple[str, str]]:
    run = view.record
    facts = [("Seed", "" if run.seed is None else str(run.seed)), ("Precision", run.precision)]
    facts += [("Started", run.created), ("Command", run.command)]
    for label, found in (("Trainer", run.trainer), ("Versions", run.versions)):
        facts.append((label, ", ".join(f"{k} {text.compact(v)}" for k, v in found.items())))
    return [(label, fact) for label, fact in facts if fact]


def _lineage(stage: StageRecord, view: RunView) -> dict[str, str]:
    """Inputs as text: the digest of a stage of this run is replaced by its name, other digests are cut."""
    names = {s.key: s.name for s in view.stages if s.key}
    shown = {}
    for label, value in stage.inputs.items():
        spelled = text.compact(value)
        shown[label] = re.sub(r"\b[0-9a-f]{16,64}\b", lambda found: names.get(found[0], found[0][:12]), spelled)
    return shown


def verdict(view: RunView) -> dict[str, Any] | None:
    """The last version against the first on the first score: the difference, and what may be said of it."""
    if len(view.versions) < 2 or not view.scores:
        return None
    first, last, score = view.versions[0], view.versions[-1], view.scores[0]
    gain = last.paired.get(score)
    if not isinstance(gain, dict) or not all(is_number(gain.get(end)) for end in ("mean", "low", "high")):
        return None
    kind, meaning = "open", "The interval holds zero: no difference can be claimed."
    if gain["low"] > 0:
        kind, meaning = "better", "The whole interval lies above zero."
    elif gain["high"] < 0:
        kind, meaning = "worse", "The whole interval lies below zero: it got worse."
    return {
        "first": first.label,
        "last": last.label,
        "score": score,
        "gain": gain,
        "kind": kind,
        "meaning": meaning,
        "kl": last.metrics.get("kl"),
    }


def _table(view: RunView) -> dict[str, Any] | None:
    if not view.versions:
        return None
    known = {name: spec for name, spec in view.besides.items() if any(name in v.metrics for v in view.versions)}
    asked = {name: spec for name, spec in known.items() if name not in ANSWERS}
    return {"scores": view.scores, "versions": view.versions, "besides": known, "asked": asked}


def _steps(view: RunView) -> dict[str, Any] | None:
    """What each version gained over the one before, and the last over the first; None where both are the same."""
    if len(view.versions) < 3 or not view.scores:
        return None
    labels = [text.brief(version.label, 24) for version in view.versions]
    heads = [*(f"{after} − {before}" for before, after in itertools.pairwise(labels)), f"{labels[-1]} − {labels[0]}"]
    sides = [*(version.paired_to_previous for version in view.versions[1:]), view.versions[-1].paired]
    return {"heads": heads, "rows": [{"score": name, "gains": [s.get(name) for s in sides]} for name in view.scores]}


def _score_charts(view: RunView) -> list[dict[str, Any]]:
    charted = []
    besides = {name: spec for name, spec in view.besides.items() if spec.place == "first"}
    names = [*view.scores, *besides] if len(view.versions) > 1 else []
    for place, name in enumerate(names):
        known = [(v.label, v.metrics[name]) for v in view.versions if _has_interval(v.metrics.get(name, {}))]
        if len(known) > 1:
            labels, intervals = [label for label, _ in known], [interval for _, interval in known]
            svg = charts.versions(labels, intervals, 4 if name in besides else place % 4)
            charted.append({**_titled(name, besides.get(name)), "svg": svg})
    return charted


def _has_interval(metric: Mapping[str, Any]) -> bool:
    return all(is_number(metric.get(end)) for end in ("mean", "low", "high"))


def _titled(name: str, spec: MetricSpec | None) -> dict[str, str]:
    """What stands over a chart, and what is told of it."""
    return {"title": spec.caption(name), "about": spec.about} if spec else {"title": name, "about": ""}


def _all_curves(view: RunView) -> list[dict[str, Any]]:
    """Every training stage that logged something; the last one that made a policy is unfolded."""
    blocks = [block for stage in view.stages if (block := _curves(stage))]
    policies = [block for block in blocks if "policy" in block["stage"].made] or blocks
    return [{**block, "open": block is policies[-1]} for block in blocks]


def _curves(stage: Stage) -> dict[str, Any] | None:
    """The small multiples of one training stage; a number that was logged once only is no curve."""
    rows = [row for row in stage.steps if is_number(row.get("step"))]
    specs = {name: spec_of(name, stage.specs) for name in numeric_names(rows)}
    ends = _round_ends(rows)
    placed = {place: _placed(specs, place, [*CORE, *stage.specs]) for place in ("first", "folded", "last")}
    main = _drawn(rows, placed["first"], ends)
    more = _drawn(rows, placed["folded"] | placed["last"], ends)
    if not main and not more:
        return None
    return {
        "stage": stage,
        "steps": len(rows),
        "rounds": len(ends) + 1,
        "charts": main or more,
        "more": more if main else [],
    }


def _placed(specs: Mapping[str, MetricSpec | None], place: str, order: list[str]) -> dict[str, MetricSpec | None]:
    """The numbers drawn at a place: first and last ones as they are declared, the others as they were logged."""
    names = [name for name, spec in specs.items() if (spec.place if spec else "folded") == place]
    if place != "folded":
        names.sort(key=lambda name: order.index(name) if name in order else len(order))
    return {name: specs[name] for name in names}


def _drawn(
    rows: list[dict[str, Any]], specs: Mapping[str, MetricSpec | None], ends: list[float]
) -> list[dict[str, Any]]:
    drawn = []
    for name, spec in specs.items():
        points = [(float(row["step"]), float(row[name])) for row in rows if is_number(row.get(name))]
        if len(points) > 1:
            drawn.append({**_titled(name, spec), "svg": charts.curve(points, ends), "last": points[-1][1]})
    return drawn


def _round_ends(rows: list[dict[str, Any]]) -> list[float]:
    known = [row for row in rows if is_number(row.get("round"))]
    pairs = itertools.pairwise(known)
    return [(a["step"] + b["step"]) / 2 for a, b in pairs if a["round"] != b["round"]]


def _reward_model(stage: Stage) -> dict[str, Any] | None:
    found = stage.result.get("accuracy")
    if "reward" not in stage.made or not isinstance(found, dict):
        return None
    order = ["overall", *RATINGS, *sorted(set(found) - {"overall", *RATINGS})]
    rows = [(LEVELS.get(level, level), found[level]) for level in order if isinstance(found.get(level), dict)]
    if not rows:
        return None
    result = stage.result
    return {
        "stage": stage,
        "accuracy": charts.accuracy(rows),
        "histogram": _histogram(result.get("histogram")),
        "ties": result.get("ties"),
        "calibration_error": result.get("calibration_error"),
        "pairs": result.get("pairs"),
        "eval_pairs": result.get("eval_pairs"),
    }


def _histogram(found: Any) -> Markup | None:
    if not isinstance(found, dict):
        return None
    edges, sides = found.get("edges") or [], {side: found.get(side) or [] for side in ("chosen", "rejected")}
    values = [*edges, *sides["chosen"], *sides["rejected"]]
    whole = len(edges) > 1 and all(len(counts) == len(edges) - 1 for counts in sides.values())
    return charts.histogram(edges, sides) if whole and all(map(is_number, values)) else None


def _best_of_n(view: RunView) -> dict[str, Any] | None:
    """One panel per evaluated version and per stage that sampled several responses, each by the score it names."""
    found = [(version.label, version.stage.result) for version in view.versions]
    found += [(stage.name, stage.result) for stage in view.stages if "groups" in stage.made]
    curves = [(label, result, _best_points(mapping(result.get("best_of_n")))) for label, result in found]
    panels = []
    for label, result, points in curves:
        values = [v for point in points.values() for v in point.values() if is_number(v)]
        if len(points) > 1 and values:
            score = str(result.get("best_of_n_score") or "score")
            panels.append({"title": f"{label}: {score}", "svg": charts.best_of_n(points, min(values), max(values))})
    return {"panels": panels} if panels else None


def _best_points(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {n: point for n, point in found.items() if str(n).isdecimal() and isinstance(point, dict)}


def _answers(view: RunView) -> list[dict[str, Any]]:
    """The chosen prompts, each with the first sample of every version."""
    shown = []
    answered = [version for version in view.versions if version.rows]
    for place, (prompt, reason) in enumerate(choose_prompts(answered), start=1):
        columns = [(version, _first_sample(version, prompt)) for version in answered]
        present = [(version, row) for version, row in columns if row is not None]
        row = present[0][1]
        shown.append(
            {
                "place": place,
                "reason": reason,
                "prompt": row.get("prompt", ""),
                "tags": row.get("tags") or [],
                "columns": present,
            }
        )
    return shown


def _first_sample(version: Version, prompt: str) -> dict[str, Any] | None:
    rows = [row for row in version.rows if row["prompt_id"] == prompt]
    return min(rows, key=lambda row: row["sample"] if is_number(row.get("sample")) else 0, default=None)
