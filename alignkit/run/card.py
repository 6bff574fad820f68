"""The model card of an exported policy: what it came from, stage by stage."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from alignkit.run.versions import versions

if TYPE_CHECKING:
    from alignkit.run.handles import PolicyHandle
    from alignkit.run.run import Run


def _records(run: Run) -> dict[str, dict[str, Any]]:
    from alignkit.files import read_json
    from alignkit.run.store import STAGE

    paths = run.store.stages_folder.glob("*/" + STAGE)
    return {record["key"]: record for record in (read_json(path) for path in paths)}


def _stages_in(value: Any) -> list[str]:
    """Keys of the stages that an input names, however deep."""
    if isinstance(value, dict):
        own = [value["stage"]] if isinstance(value.get("stage"), str) else []
        return own + [key for part in value.values() for key in _stages_in(part)]
    return [key for part in value for key in _stages_in(part)] if isinstance(value, list) else []


def lineage(run: Run, key: str) -> list[dict[str, Any]]:
    """The records of every stage that `key` was made from, oldest first, itself last."""
    records, wanted, order = _records(run), [key], []
    while wanted:
        record = records.get(wanted.pop())
        if record is not None and record not in order:
            order.append(record)
            wanted += _stages_in(record["inputs"])
    return sorted(order, key=lambda r: r["started"])


def model_card(run: Run, policy: PolicyHandle) -> str:
    """Markdown with the lineage, hyper-parameters, seed and versions."""
    lines = ["---", "library_name: transformers", "tags: [alignkit]", "---", f"# {policy.name}", "", "## Lineage", ""]
    for record in lineage(run, policy.key):
        lines.append(f"- **{record['name']}** ({record['verb']}, {record['key'][:12]}, {record['seconds']:.0f} s)")
        lines.append(f"  `{json.dumps(record['config'], sort_keys=True, ensure_ascii=False)}`")
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n".join([*lines, "", f"Seed {run.seed}, precision {run.precision}.", "", f"Versions: {found}.", ""])
