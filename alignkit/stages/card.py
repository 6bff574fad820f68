"""The model card of an exported policy: what it came from, stage by stage."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkit.hidden import printable
from alignkit.run_folder import StageRecord, finished_stages
from alignkit.versions import versions


def _stages_in(value: Any) -> list[str]:
    """Keys of the stages that an input names, however deep."""
    if isinstance(value, dict):
        own = [value["stage"]] if isinstance(value.get("stage"), str) else []
        return own + [key for part in value.values() for key in _stages_in(part)]
    return [key for part in value for key in _stages_in(part)] if isinstance(value, list) else []


def lineage(run_folder: Path, key: str) -> list[StageRecord]:
    """Every stage that the one of `key` was made from, oldest first, itself last."""
    records = {stage.key: stage for stage in finished_stages(run_folder)}
    wanted, found = [key], dict[str, StageRecord]()
    while wanted:
        record = records.get(wanted.pop())
        if record is not None and record.key not in found:
            found[record.key] = record
            wanted += _stages_in(record.inputs)
    return sorted(found.values(), key=lambda stage: (stage.started, stage.folder.name))


def _text(text: str) -> str:
    """A name as Markdown shows it: no mark-up, no element, no image that is fetched, no line of its own."""
    line = " ".join(printable(text).split())
    return re.sub(r"([\\`*_{}\[\]<>()#!|~])", r"\\\1", line).replace("://", ":\\//")


def _code(text: str) -> str:
    """A text as a span of code, which ends nowhere inside it."""
    line = " ".join(printable(text).split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def model_card(name: str, stages: Sequence[StageRecord], seed: int, precision: str) -> str:
    """Markdown with the lineage, hyper-parameters, seed and versions.

    Args:
        name: of the policy.
        stages: its lineage.
        seed, precision: of the run.
    """
    head = ["---", "library_name: transformers", "tags: [alignkit]", "---"]
    lines = [*head, f"# {_text(name)}", "", "## Lineage", ""]
    for stage in stages:
        how = f"{_text(stage.verb)}, {_text(stage.key[:12])}, {stage.seconds or 0:.0f} s"
        lines.append(f"- **{_text(stage.name)}** ({how})")
        lines.append(f"  {_code(json.dumps(stage.config, sort_keys=True, ensure_ascii=False))}")
    found = ", ".join(f"{_text(name)} {_text(version)}" for name, version in versions().items())
    return "\n".join([*lines, "", f"Seed {seed}, precision {precision}.", "", f"Versions: {found}.", ""])
