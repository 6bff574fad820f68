"""export: a plain Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from alignkit.stages.base import Cost, Made, Product, Stage
from alignkit.stages.handles import PolicyHandle
from alignkit.stages.place import Place


@dataclass(frozen=True, eq=False)
class Export(Stage[Path | None]):
    """Write a plain Hugging Face folder, adapter merged, with a model card that tells the lineage; returns where.

    Args:
        policy: what is written.
    """

    verb: ClassVar[str] = "export"
    makes: ClassVar[tuple[Product, ...]] = ()

    policy: PolicyHandle

    def cost(self) -> Cost:
        return Cost(disk=4 * self.policy.parameters)

    def work(self, place: Place) -> Mapping[str, Any]:
        from alignkit.models import Policy

        Policy.load(self.policy.model_folder).export(place.folder / "model")
        card = model_card(self.policy.name, place, place.lineage(self.policy.key))
        (place.folder / "model" / "README.md").write_text(card, encoding="utf-8")
        return {"parameters": self.policy.parameters}

    def handle(self, made: Made) -> Path | None:
        return made.folder / "model" if made.folder else None


def model_card(name: str, place: Place, lineage: Any) -> str:
    """Markdown with the lineage, hyper-parameters, seed and versions."""
    from alignkit.versions import versions

    lines = ["---", "library_name: transformers", "tags: [alignkit]", "---", f"# {name}", "", "## Lineage", ""]
    for record in lineage:
        lines.append(f"- **{record['name']}** ({record['verb']}, {record['key'][:12]}, {record['seconds']:.0f} s)")
        lines.append(f"  `{json.dumps(record['config'], sort_keys=True, ensure_ascii=False)}`")
    found = ", ".join(f"{library} {version}" for library, version in versions().items())
    return "\n".join([*lines, "", f"Seed {place.seed}, precision {place.precision}.", "", f"Versions: {found}.", ""])
