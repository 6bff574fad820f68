"""reward_model: a reward model that exists already comes into the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from alignkit.errors import ConfigError, DataError
from alignkit.stages.base import DERIVED, NO_EFFECT, Context, Made, Product, Stage
from alignkit.stages.handles import Handle, RewardHandle
from alignkit.stages.place import Place
from alignkit.stages.training import count_parameters, model_label


@dataclass(frozen=True, eq=False)
class ImportRewardModel(Stage[RewardHandle]):
    """Bring a reward model that exists already: one that a run trained, or any sequence classifier.

    Args:
        spec: folder or hub name; its content counts, and not where it lies.
        code_revision: let code of the model's own run, see `run.policy`.
        column: name of its scores.
    """

    verb: ClassVar[str] = "reward_model"
    makes: ClassVar[tuple[Product, ...]] = ("reward",)

    spec: str | Path = field(metadata=DERIVED)
    _: KW_ONLY
    code_revision: str | None = field(default=None, metadata=NO_EFFECT)
    column: str = field(default="reward", metadata=NO_EFFECT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not str(self.spec):
            raise ConfigError("spec names no model", where=self.name, remedy="give a folder or a hub name")

    def resolved(self, context: Context) -> Self:
        from alignkit.models.remote_code import permit

        if self.code_revision is not None:
            permit(str(self.spec), self.code_revision)
        return super().resolved(context)

    def derived(self) -> Mapping[str, Any]:
        from alignkit.models.loading import folder_digest, resolve_source

        path = Path(self.spec)
        identity = folder_digest(path) if path.is_dir() else resolve_source(str(self.spec)).digest()
        return {"spec": model_label(self.spec), "identity": identity}

    def work(self, place: Place) -> Mapping[str, Any]:
        """Keep it by reference: checked that it loads and has one output."""
        from alignkit.models import RewardModel

        spec = str(self.spec)
        with place.meter.phase("load"):
            model = RewardModel.load(spec)
        outputs = getattr(model.model.config, "num_labels", 1)
        if outputs != 1:
            raise DataError(f"{outputs} outputs", where=spec, remedy="a reward model has one output")
        if Path(spec).is_dir():
            (place.folder / "model").symlink_to(Path(spec).resolve(), target_is_directory=True)
        else:
            with place.meter.phase("write"):
                model.save(place.folder / "model")
        return {"parameters": count_parameters(model)}

    def handle(self, made: Made) -> RewardHandle:
        return RewardHandle(Handle(**made.common()), self.column, made.max_tokens, made.precision, made.device)
