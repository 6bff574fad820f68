"""export: a plain Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from alignkit.stages.base import Cost, Made, Product, Stage
from alignkit.stages.card import model_card
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

        with place.meter.phase("load"):
            policy = Policy.load(self.policy.model_folder)
        with place.meter.phase("write"):
            policy.export(place.folder / "model")
        lineage = place.lineage(self.policy.key)
        card = model_card(self.policy.name, lineage, place.seed, place.precision)
        (place.folder / "model" / "README.md").write_text(card, encoding="utf-8")
        return {"parameters": self.policy.parameters}

    def handle(self, made: Made) -> Path | None:
        return made.folder / "model" if made.folder else None
