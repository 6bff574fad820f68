"""policy: a model comes into the run."""

from __future__ import annotations

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
    """Bring a model into the run: a folder, a hub name, a GGUF file, "package:NAME", "tiny", another run's policy, an
    adapter that peft wrote.

    Args:
        spec: see `alignkit.models.loading.resolve_source`; its content counts, and not where it lies.
        base: of an adapter from elsewhere: the model that it belongs to, in place of the one that it names.
        code_revision: let code of the model's own run, which never does otherwise: of the hub the commit (40 digits),
            of a folder what the refusal names. Say it in each script that loads the model or what was made from it.
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
    base: str | Path | None = field(default=None, metadata=DERIVED)
    code_revision: str | None = field(default=None, metadata=NO_EFFECT)
    lora: Any = field(default="default", metadata=NO_EFFECT)
    chat_template: str | Path | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    @property
    def _given(self) -> bool:
        return self.chat_template is not None or bool(self.chat_template_kwargs)

    def _template_checked(self) -> Self:
        from alignkit.models.adapters import adapter_base
        from alignkit.models.given_template import check_arguments, template_text

        if not self._given:
            return replace(self, chat_template_kwargs=None)
        if adapter_base(self.spec, self.base) is not None:
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
        from alignkit.models.adapters import adapter_base
        from alignkit.models.lora import lora_of
        from alignkit.models.remote_code import permit

        if self.code_revision is not None:
            permit(str(adapter_base(self.spec, self.base) or self.spec), self.code_revision)
        resolved = super().resolved(context)._template_checked()
        if self.lora == "default":
            own = adapter_base(self.spec, self.base) is not None
            return replace(resolved, lora=lora_of(Path(self.spec)) if own else LoRA())
        if self.lora is not None and not isinstance(self.lora, LoRA):
            raise ConfigError(f"lora={self.lora!r}", where=self.name, remedy="pass a LoRA, or None for all weights")
        return resolved

    def derived(self) -> Mapping[str, Any]:
        from alignkit.models import model_digest

        return {"spec": model_label(self.spec), "identity": model_digest(self.spec, self.base)}

    def work(self, place: Place) -> Mapping[str, Any]:
        """Make the model loadable from a folder: converted here (GGUF, tiny), or where it lies."""
        from alignkit.models.adapters import adapter_base
        from alignkit.models.given_template import give_template, link_beside
        from alignkit.models.loading import load_causal, resolve_source
        from alignkit.models.saving import dtype_kept, save_plain

        spec = str(self.spec)
        with place.meter.phase("load"):
            below = adapter_base(spec, self.base)
            if below is not None:
                return self._adapter(place, Path(spec), below)
            source = resolve_source(spec)
            model, tokenizer = load_causal(source, dtype_kept(source))
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

    def _adapter(self, place: Place, folder: Path, base: str) -> Mapping[str, Any]:
        """An adapter: where it lies, if it is alignkit's own; peft's with its base noted beside it."""
        from alignkit.models import Policy
        from alignkit.models.adapters import card_of, note_base
        from alignkit.models.given_template import link_files
        from alignkit.models.loading import load_causal, resolve_source
        from alignkit.models.saving import dtype_kept, save_plain

        policy = Policy.load(folder, base=self.base, lora=self.lora, trainable=self.lora is not None)
        found = {"base": base, "parameters": count_parameters(policy)}
        if card_of(folder) is not None:
            return {"model": str(folder.resolve()), **found}
        place.say(f"{folder.name} is an adapter; its base is {base}")
        if not place.writes:
            return found
        source = resolve_source(base)
        kept, digest = Path(source.path), policy.base_digest
        if source.kind != "folder":  # kept in the run, so that the adapter finds it again
            kept = place.folder / "base"
            save_plain(*load_causal(source, dtype_kept(source)), kept)
            digest = resolve_source(str(kept)).digest()
        link_files(folder, place.folder / "model", lambda name: not name.startswith((".", "README")))
        note_base(place.folder / "model", kept, digest)
        return found

    def handle(self, made: Made) -> PolicyHandle:
        if made.folder is None:
            from alignkit.models.adapters import adapter_base

            spec = adapter_base(self.spec, self.base) or self.spec
            return PolicyHandle(**made.common(), lora=self.lora, parameters=guessed_parameters(str(spec)))
        path = Path(made.result.get("model") or made.folder / "model")
        return PolicyHandle(**made.common(), lora=self.lora, model_path=path, parameters=int(made.result["parameters"]))


def guessed_parameters(spec: str) -> int:
    """Weights of a model that is not loaded yet, as its files say; 0 where nobody knows, as of one on the hub."""
    from alignkit.models.loading import resolve_source, weights_head

    source = resolve_source(spec)
    if source.kind == "gguf":
        return int(Path(source.path).stat().st_size * 8 / 5)
    if source.kind == "folder":
        heads = map(weights_head, Path(source.path).glob("*.safetensors"))
        return sum(math.prod(tensor["shape"]) for head in heads for tensor in head.values())
    return TINY if source.kind == "tiny" else 0
