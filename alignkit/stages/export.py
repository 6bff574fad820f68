"""export: a plain Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from alignkit.errors import ConfigError, DataError
from alignkit.groups import Groups
from alignkit.stages.base import Cost, Made, Product, Stage, rows_of
from alignkit.stages.card import model_card
from alignkit.stages.handles import GroupsHandle, PolicyHandle, RewardHandle
from alignkit.stages.place import Place


@dataclass(frozen=True, eq=False)
class Export(Stage[Path | None]):
    """Write a plain Hugging Face folder, adapter merged, with a model card that tells the lineage; returns where.

    A reward model becomes a sequence classifier with one output, and a pad id that stands at no response's end.

    Args:
        model: what is written, a policy or a reward model.
        dtype: of its weights; default that of the base, whatever it was trained in. A score head stays in float32.
        adapter: write the adapter of a policy alone, as a peft folder that names its base.
        centre: rows, such as demonstrations, whose responses a reward model is to score 0 in the mean: their mean score
            is taken off where alignkit scores, and stands as `mean` in the configuration.
    """

    verb: ClassVar[str] = "export"
    makes: ClassVar[tuple[Product, ...]] = ()

    model: PolicyHandle | RewardHandle
    _: KW_ONLY
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    adapter: bool = False
    centre: Groups | GroupsHandle | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centre is not None and not isinstance(self.model, RewardHandle):
            raise ConfigError("centre, and this is no reward model", where=self.name, remedy="leave centre out")
        if not self.adapter:
            return
        if isinstance(self.model, RewardHandle):
            what, remedy = "adapter=True, and this is a reward model", "export it whole: its score head belongs to it"
            raise ConfigError(what, where=self.name, remedy=remedy)
        if self.model.lora is None:
            what = "adapter=True, and the policy has none: all of its weights are trained"
            raise ConfigError(what, where=self.name, remedy="leave adapter out")
        if self.dtype is not None:
            raise ConfigError("dtype of an adapter, which stays in float32", where=self.name, remedy="leave dtype out")

    def cost(self) -> Cost:
        return Cost(disk=4 * self._parameters)

    @property
    def _parameters(self) -> int:
        if isinstance(self.model, PolicyHandle):
            return self.model.parameters
        return int(self.model.result.get("parameters", 0))

    def work(self, place: Place) -> Mapping[str, Any]:
        import torch

        from alignkit.models import Policy, RewardModel

        folder = place.folder / "model"
        with place.meter.phase("load"):
            kind: Any = Policy if isinstance(self.model, PolicyHandle) else RewardModel
            model = kind.load(self.model.model_folder)
        if self.centre is not None:
            self._centred(place, model, rows_of(self.centre))
        with place.meter.phase("write"):
            if self.adapter:
                model.export_adapter(folder)
            else:
                model.export(folder, None if self.dtype is None else getattr(torch, self.dtype))
        made = self.model if isinstance(self.model, PolicyHandle) else self.model.handle
        card = model_card(made.name, place.lineage(made.key), place.seed, place.precision)
        (folder / "README.md").write_text(card, encoding="utf-8")
        return {"parameters": self._parameters}

    def _centred(self, place: Place, model: Any, rows: Groups) -> None:
        """Take the mean score of the rows' responses off.

        Raises:
            DataError: none of them can be scored.
        """
        from alignkit.engine.scoring import Scorer
        from alignkit.rewards import count_scores

        with place.meter.phase("score"):
            found = Scorer(model, place.max_tokens).score(rows)
            count_scores(found, place.meter)
        kept = [value for row in found.values for value in row if value is not None]
        if not kept:
            raise DataError("no response of centre can be scored", where=self.name, remedy="give rows with responses")
        model.centre += sum(kept) / len(kept)

    def handle(self, made: Made) -> Path | None:
        return made.folder / "model" if made.folder else None
