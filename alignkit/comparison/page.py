"""From a comparison to its page: what each part shows is decided here, how it looks in `comparison.html`."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from alignkit.budget import NAMES
from alignkit.comparison import charts
from alignkit.comparison.charts import COLOURS, Line
from alignkit.comparison.declared import START, Conditions
from alignkit.comparison.naming import in_short
from alignkit.comparison.results import Comparison, Done, seconds_of
from alignkit.evaluation.statistics import per_prompt_scores
from alignkit.files import write_text
from alignkit.meter import short
from alignkit.report.collect import is_number
from alignkit.report.render import environment
from alignkit.run_folder import METRICS, STAGES, Row, mapping, read_metrics

SHOWN = 10
"""Prompts whose answers are shown."""
SCRIPT = (Path(__file__).parent / "choose.js").read_text(encoding="utf-8")
TITLES = {
    "generated_tokens": "tokens generated",
    "trained_tokens": "tokens trained",
    "scored_tokens": "tokens scored",
    "flops": "floating-point operations",
    "optimizer_steps": "optimizer steps",
    "reward_calls": "reward calls",
    "judge_calls": "judge calls",
}


def write_page(found: Comparison) -> Path:
    """Write the page, whole or not at all."""
    write_text(found.page, render(found))
    return found.page


def render(found: Comparison) -> str:
    """The page as text."""
    pages = environment(Path(__file__).parent)
    pages.filters["short"] = short
    return pages.get_template("comparison.html").render(_context(found))


def _context(written: Comparison) -> dict[str, Any]:
    found = in_short(written)
    names = [each.method for each in found.standings]
    colour = {label: place % COLOURS for place, label in enumerate(sorted(names, key=lambda n: (n == START, n)))}
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return {
        "found": found,
        "colour": colour,
        "start": START,
        "budget": {TITLES[name]: amount for name, amount in (found.conditions.get("budget") or {}).items()},
        "standings": found.standings,
        "forest": _forest(found, colour),
        "paths": _paths(found, colour),
        "curves": _curves(found, colour),
        "profile": _profile(found, colour),
        "differences": sorted(found.differences, key=lambda each: (each.p, -abs(each.difference.mean))),
        "costs": [(name, TITLES[name]) for name in NAMES if any(each.spent.get(name) for each in found.standings)],
        "seconds": _seconds(found),
        "answers": _answers(found),
        "besides": list(dict.fromkeys(name for each in found.standings for name in each.besides)),
        "command": command(written),
        "script": Markup(SCRIPT),
        "script_digest": digest,
    }


def command(found: Comparison) -> str:
    """What makes this comparison again."""
    conditions = found.conditions
    words = ["alignkit", "compare", conditions["suite"]]
    words += [each.method for each in sorted(found.standings, key=_as_given(found)) if each.method != START]
    seeds = sorted({seed for each in found.standings for seed in (*each.seeds, *each.failed)})
    words += ["--seeds", str(len(seeds)) if seeds == list(range(len(seeds))) else ",".join(map(str, [*seeds, ""]))]
    words += ["--policy", conditions["policy"]] if conditions["policy"] else []
    words += [w for name, n in (conditions.get("budget") or {}).items() for w in ("--budget", f"{name}={n:.0f}")]
    told = ("suite", "policy", "budget", "tuning")
    usual = {name: value for name, value in Conditions("", "").to_json().items() if name not in told}
    for name, value in usual.items():
        if conditions.get(name) != value:
            words += [f"--{name.replace('_', '-')}", *([] if value is False else [str(conditions[name])])]
    trials = max((each.trials for each in found.standings), default=0)
    words += ["--tune", str(trials)] if trials else []
    others = {str(row.get("suite")) for rows in found.trials.values() for row in rows} - {conditions["suite"], "None"}
    return shlex.join([*words, *(word for suite in sorted(others)[:1] for word in ("--tune-on", suite))])


def _as_given(found: Comparison) -> Any:
    order = list(dict.fromkeys(cell.method for cell in found.cells))
    return lambda each: order.index(each.method)


def _forest(found: Comparison, colour: Mapping[str, int]) -> list[Markup]:
    """The leaderboard drawn: wide, and narrow."""
    rows = [(each.method, colour[each.method], each.mean) for each in found.standings if each.mean]
    start = next((each.mean.mean for each in found.standings if each.method == START and each.mean), None)
    return [charts.intervals(rows, start, narrow) for narrow in (False, True)] if rows else []


def _points(cell: Done, score: str) -> list[Row]:
    """(version, score, KL, spent) of each version of a cell."""
    found = []
    for version in cell.path:
        rows = cell.answers(version)
        values, kl = (list(per_prompt_scores(rows, name).values()) for name in (score, "kl"))
        if values:
            point = {"score": sum(values) / len(values), "kl": sum(kl) / len(kl) if kl else None}
            found.append({**point, "spent": mapping(version["spent"]), "version": version["version"]})
    return found


def _by_method(found: Comparison) -> dict[str, list[list[Row]]]:
    """Of each method the versions of each seed, from the start on."""
    start = {c.seed: _points(c, found.score) for c in found.cells if c.method == START and not c.failed}
    methods: dict[str, list[list[Row]]] = {}
    for cell in found.cells:
        if not cell.failed and cell.method != START:
            begin = [{**point, "spent": {}} for point in start.get(cell.seed, [])]
            methods.setdefault(cell.method, []).append(begin + _points(cell, found.score))
    return methods


def _line(label: str, colour: int, seeds: Sequence[Sequence[tuple[float, float]]]) -> Line:
    """The mean over seeds, as far as all of them go, and each seed."""
    length = min(map(len, seeds), default=0)
    columns = [[seed[place] for seed in seeds] for place in range(length)]
    means = [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in columns]
    names = [f"V{place}" for place in range(length)]
    return Line(label, colour, means, seeds if len(seeds) > 1 else (), names)


def _drawn(methods: Mapping[str, Any], colour: Mapping[str, int], x: Any, y: Any) -> list[Line]:
    """A line per method over two numbers of its points; points that lack one are left out."""
    found = []
    for label, seeds in methods.items():
        points = [[(x(p), y(p)) for p in seed if is_number(x(p)) and is_number(y(p))] for seed in seeds]
        if any(map(len, points)):
            found.append(_line(label, colour[label], [seed for seed in points if seed]))
    return found


def _paths(found: Comparison, colour: Mapping[str, int]) -> list[dict[str, Any]]:
    """The score against the KL: held out, by version; and while learning, by round."""
    held = _drawn(_by_method(found), colour, lambda p: p["kl"], lambda p: p["score"])
    rounds = _rounds(found)
    learning = _drawn(rounds, colour, lambda p: p.get("kl_per_sequence"), lambda p: p.get("reward_mean"))
    drawn = []
    if held:
        drawn.append({"title": f"{found.score} on held-out prompts, by version", "svg": charts.lines(held, height=240)})
    if any(len(each.points) > 1 for each in learning):
        svg = charts.lines(learning, height=240)
        drawn.append({"title": "mean reward on the prompts taught, by round", "svg": svg})
    return drawn


def _curves(found: Comparison, colour: Mapping[str, int]) -> list[dict[str, Any]]:
    """The score against each count that any method spent, and the reward while learning."""
    methods, drawn = _by_method(found), []
    for name in NAMES:
        if any(point["spent"].get(name) for seeds in methods.values() for seed in seeds for point in seed):
            made = _drawn(methods, colour, lambda p, n=name: p["spent"].get(n, 0.0), lambda p: p["score"])
            drawn.append({"title": f"{found.score} over {TITLES[name]}", "svg": charts.lines(made, from_zero=True)})
    steps = _drawn(_rounds(found), colour, lambda p: p.get("step"), lambda p: p.get("reward_mean"))
    if any(len(each.points) > 1 for each in steps):
        svg = charts.lines(steps, dots=False, from_zero=True)
        drawn.append({"title": "mean reward while learning, over optimizer steps", "svg": svg})
    return drawn


def _rounds(found: Comparison) -> dict[str, list[list[Row]]]:
    """Of each method the rounds of each seed, over all its versions: the means of what was logged."""
    methods: dict[str, list[list[Row]]] = {}
    for cell in found.cells:
        rounds: list[Row] = []
        for version in cell.path:
            folder = cell.folder / STAGES / str(version["policy"])
            if cell.method != START and (folder / METRICS).exists():
                rounds += _round_means(read_metrics(folder, []), rounds[-1]["step"] if rounds else 0.0)
        if rounds:
            methods.setdefault(cell.method, []).append(rounds)
    return methods


def _round_means(rows: Sequence[Row], before: float) -> list[Row]:
    by_round: dict[int, list[Row]] = {}
    for row in rows:
        by_round.setdefault(int(row.get("round", 0)), []).append(row)
    found = []
    for part in by_round.values():
        means = {
            name: sum(row[name] for row in part) / len(part)
            for name in ("reward_mean", "kl_per_sequence")
            if all(is_number(row.get(name)) for row in part)
        }
        found.append({**means, "step": before + part[-1]["step"]})
    return found


def _profile(found: Comparison, colour: Mapping[str, int]) -> Markup | None:
    made = [
        Line(each.method, colour[each.method], list(zip(found.thresholds, each.profile, strict=True)))
        for each in found.standings
        if each.profile
    ]
    return charts.lines(made, height=240, dots=False) if made else None


def _seconds(found: Comparison) -> dict[str, Any] | None:
    """Mean seconds of a cell by phase."""
    rows = []
    for each in found.standings:
        cells = [seconds_of(cell) for cell in found.cells if cell.method == each.method and not cell.failed]
        phases = dict.fromkeys(name for cell in cells for name in cell)
        if cells:
            rows.append((each.method, {name: sum(c.get(name, 0.0) for c in cells) / len(cells) for name in phases}))
    names = list(dict.fromkeys(name for _, parts in rows for name in parts))
    return (
        {"names": names, "drawn": [charts.shares(rows, names, narrow) for narrow in (False, True)]} if names else None
    )


def _answers(found: Comparison) -> list[dict[str, Any]]:
    """Prompts chosen by rule, each with one answer of every method under the first seed."""
    seed = min((cell.seed for cell in found.cells if not cell.failed), default=0)
    cells = {cell.method: cell for cell in found.cells if cell.seed == seed and not cell.failed}
    scores = {label: cell.score(found.score) for label, cell in cells.items()}
    shown = []
    for prompt, reason in _chosen(scores):
        rows = {label: _first(cell, prompt) for label, cell in cells.items()}
        present = [(each.method, rows[each.method]) for each in found.standings if rows.get(each.method)]
        if present:
            first: Any = present[0][1]
            shown.append({"prompt": first.get("prompt", prompt), "reason": reason, "columns": present})
    return shown


def _chosen(scores: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str]]:
    """The prompts on which the methods differ most, those on which they differ least, and some between."""
    prompts = sorted(set.intersection(*(set(part) for part in scores.values()))) if scores else []
    spread = {p: max(s[p] for s in scores.values()) - min(s[p] for s in scores.values()) for p in prompts}
    ranked = sorted(prompts, key=lambda p: (-spread[p], p))
    if len(ranked) <= SHOWN:
        return [(prompt, "in order of how much methods differ") for prompt in ranked]
    most, least = SHOWN // 2, SHOWN // 4
    middle = (len(ranked) - (SHOWN - most - least)) // 2
    between = ranked[middle : middle + SHOWN - most - least]
    groups = (("methods differ most", ranked[:most]), ("in the middle", between), ("differ least", ranked[-least:]))
    return [(prompt, reason) for reason, part in groups for prompt in part]


def _first(cell: Done, prompt: str) -> Row | None:
    rows = [row for row in cell.rows if row.get("prompt_id") == prompt]
    return min(rows, key=lambda row: row.get("sample") or 0, default=None)
