"""What a stage was made from, back to the models and data that came into the run."""

from __future__ import annotations

from typing import Any

from alignkit.files import read_json
from alignkit.run.store import STAGE, Store


def _records(store: Store) -> dict[str, dict[str, Any]]:
    paths = store.stages_folder.glob("*/" + STAGE)
    return {record["key"]: record for record in (read_json(path) for path in paths)}


def _stages_in(value: Any) -> list[str]:
    """Keys of the stages that an input names, however deep."""
    if isinstance(value, dict):
        own = [value["stage"]] if isinstance(value.get("stage"), str) else []
        return own + [key for part in value.values() for key in _stages_in(part)]
    return [key for part in value for key in _stages_in(part)] if isinstance(value, list) else []


def lineage(store: Store, key: str) -> list[dict[str, Any]]:
    """The records of every stage that `key` was made from, oldest first, itself last."""
    records, wanted, order = _records(store), [key], []
    while wanted:
        record = records.get(wanted.pop())
        if record is not None and record not in order:
            order.append(record)
            wanted += _stages_in(record["inputs"])
    return sorted(order, key=lambda r: r["started"])
