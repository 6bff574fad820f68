"""Which held-out prompts are shown side by side: chosen by a rule, so that no one chose them for their looks."""

from __future__ import annotations

from typing import Any

from alignkit.evaluation.statistics import per_prompt_scores
from alignkit.report.collect import Version
from alignkit.run_folder import Row

SHOWN = 12


def choose_prompts(versions: list[Version]) -> list[tuple[str, str]]:
    """About `SHOWN` (prompt id, reason) pairs: largest gains, largest losses, the middle, then one of each tag.

    Gains are last minus first version on the first score. Equal gains are ordered by prompt id, so the same run always
    shows the same prompts.
    """
    answered = [version for version in versions if version.rows]
    if not answered:
        return []
    ids = sorted({row["prompt_id"] for row in answered[-1].rows})
    gains = _gains(answered)
    ranked = sorted(gains, key=lambda key: (-gains[key], key))
    chosen: dict[str, str] = {}
    quarter = min(3, max(1, len(ids) // 4)) if len(ids) > 4 else len(ids)
    for name in ranked[:quarter]:
        chosen[name] = "largest gain" if gains[name] > 0 else "no gain"
    for name in reversed(ranked[len(ranked) - quarter :]):
        chosen.setdefault(name, "largest loss" if gains[name] < 0 else "smallest gain")
    middle = max(0, (len(ranked) - quarter) // 2)
    for name in ranked[middle : middle + quarter]:
        chosen.setdefault(name, "middle of the gains")
    for tag, name in _by_tag(answered[-1].rows, chosen):
        chosen[name] = f"tagged {tag}"
    for name in ids[: max(0, SHOWN - len(chosen))] if not ranked else []:
        chosen[name] = "in order of id"
    return list(chosen.items())[:SHOWN]


def _gains(versions: list[Version]) -> dict[str, float]:
    scores = versions[-1].scores
    if len(versions) < 2 or not scores:
        return {}
    last, first = (per_prompt_scores(version.rows, scores[0]) for version in (versions[-1], versions[0]))
    return {key: last[key] - first[key] for key in last if key in first}


def _by_tag(rows: list[Row], chosen: dict[str, Any]) -> list[tuple[str, str]]:
    """One prompt of each tag that is not shown yet, the rarest tags first."""
    tags: dict[str, set[str]] = {}
    for row in rows:
        for tag in row.get("tags") or []:
            tags.setdefault(str(tag), set()).add(row["prompt_id"])
    found: list[tuple[str, str]] = []
    taken = set(chosen)
    for tag in sorted(tags, key=lambda tag: (len(tags[tag]), tag)):
        free = sorted(tags[tag] - taken)
        if free and len(taken) < SHOWN:
            found.append((tag, free[0]))
            taken.add(free[0])
    return found
