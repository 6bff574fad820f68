"""policy: a model comes into the run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from alignkit.errors import ConfigError
from alignkit.stages.base import DERIVED, NO_EFFECT, Context, Made, Product, Stage
from alignkit.stages.handles import PolicyHandle
from alignkit.stages.place import Place
from alignkit.stages.training import count_parameters, model_label

TINY = 200_000
"""Weights of the tiny model, about."""


@dataclass(frozen=True, eq=False)
class ImportPolicy(Stage[PolicyHandle]):
    """Bring a model into the run: a folder, a hub name, a GGUF file, "package:NAME", "tiny", another run's policy.

    Args:
        spec: see `alignkit.models.loading.resolve_source`; its content counts, and not where it lies.
        lora: a `LoRA` for its training, or None for full fine-tuning; default that of the folder, which another one
            cannot replace, or rank 16.
        chat_template: a Jinja chat template, a file of one, or the name of one for a model without ("tulu", "alpaca",
            "chatml" …, see `alignkit.models.named_templates`), instead of the model's own; its text counts.
        chat_template_kwargs: arguments of the template, such as `{"enable_thinking": False}`. What is made from the
            policy, exported too, has the template with these.
    """

    verb: ClassVar[str] = "policy"
    makes: ClassVar[tuple[Product, ...]] = ("policy",)

    spec: str | Path = field(metadata=DERIVED)
    _: KW_ONLY
    lora: Any = field(default="default", metadata=NO_EFFECT)
    chat_template: str | Path | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    @property
    def _given(self) -> bool:
        return self.chat_template is not None or bool(self.chat_template_kwargs)

    def _template_checked(self) -> Self:
        from alignkit.models.given_template import check_arguments, template_text
        from alignkit.models.policy import adapter_base

        if not self._given:
            return replace(self, chat_template_kwargs=None)
        if adapter_base(self.spec) is not None:
            raise ConfigError(
                "a chat template for an adapter, which goes on with its base's",
                where=self.name,
                remedy="give it where the base comes into a run, or export the policy and bring that in",
            )
        check_arguments(self.chat_template_kwargs or {}, self.name)
        text = None if self.chat_template is None else template_text(self.chat_template, self.name)
        return replace(self, chat_template=text)

    def resolved(self, context: Context) -> Self:
        from alignkit.models import LoRA
        from alignkit.models.lora import lora_of
        from alignkit.models.policy import adapter_base

        resolved = super().resolved(context)._template_checked()
        if self.lora == "default":
            own = adapter_base(self.spec) is not None
            return replace(resolved, lora=lora_of(Path(self.spec)) if own else LoRA())
        if self.lora is not None and not isinstance(self.lora, LoRA):
            raise ConfigError(f"lora={self.lora!r}", where=self.name, remedy="pass a LoRA, or None for all weights")
        return resolved

    def derived(self) -> Mapping[str, Any]:
        from alignkit.models import model_digest

        return {"spec": model_label(self.spec), "identity": model_digest(self.spec)}

    def work(self, place: Place) -> Mapping[str, Any]:
        """Make the model loadable from a folder: converted here (GGUF, tiny), or where it lies."""
        from alignkit.models import Policy
        from alignkit.models.given_template import give_template, link_beside
        from alignkit.models.loading import load_causal, resolve_source, save_plain
        from alignkit.models.policy import adapter_base

        spec = str(self.spec)
        with place.meter.phase("load"):
            if adapter_base(spec) is not None:
                policy = Policy.load(spec, lora=self.lora, trainable=self.lora is not None)
                return {"model": str(Path(spec).resolve()), "parameters": count_parameters(policy)}
            source = resolve_source(spec)
            model, tokenizer = load_causal(source)
            if self._given:
                template = None if self.chat_template is None else str(self.chat_template)
                give_template(tokenizer, template, self.chat_template_kwargs or {}, self.name)
        parameters = count_parameters(model)
        if source.kind == "folder" and self._given:
            link_beside(Path(source.path), place.folder / "model", tokenizer)
            return {"parameters": parameters}
        if source.kind == "folder":
            return {"model": source.path, "parameters": parameters}
        # Kept in the run, so that adapters find their base and nothing changes under them.
        with place.meter.phase("write"):
            save_plain(model, tokenizer, place.folder / "model")
        return {"parameters": parameters}

    def handle(self, made: Made) -> PolicyHandle:
        if made.folder is None:
            return PolicyHandle(**made.common(), lora=self.lora, parameters=guessed_parameters(str(self.spec)))
        path = Path(made.result.get("model") or made.folder / "model")
        return PolicyHandle(**made.common(), lora=self.lora, model_path=path, parameters=int(made.result["parameters"]))


def guessed_parameters(spec: str) -> int:
    """Weights of a model that is not loaded yet, as its files say; 0 where nobody knows, as of one on the hub."""
    from alignkit.models.loading import resolve_source

    source = resolve_source(spec)
    if source.kind == "gguf":
        return int(Path(source.path).stat().st_size * 8 / 5)
    if source.kind == "folder":
        return sum(map(_weights_in, Path(source.path).glob("*.safetensors")))
    return TINY if source.kind == "tiny" else 0


def _weights_in(file: Path) -> int:
    """Weights of a safetensors file, whatever their type: its head names every shape."""
    with file.open("rb") as handle:
        head = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in head.items() if name != "__metadata__")
