"""Low-rank adapters through peft: what is adapted, and switching between named adapters without touching what
trains."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from alignkit.errors import ConfigError
from alignkit.fields import check_values
from alignkit.models import forward, lower
from alignkit.models.adapters import read_record
from alignkit.models.four_bit import is_quantized, quantize, refuse_absent
from alignkit.models.loading import refuse_missing

TRAINED = "default"
"""Name of the adapter that trains."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    Args:
        r: rank.
        alpha: scale; the update is alpha / r * B A. None takes 2 r.
        targets: names of the linear layers, or "all-linear" for every one but the head.
        quantize: "nf4" or "fp4": the base is held in four bits while the adapter trains (QLoRA; needs bitsandbytes).
            What is trained is sampled from, evaluated and exported with the base as it is.
        layers: adapt the last so many layers of the model alone; what is below them stays as it is, and the backward
            pass ends there. None: all.
    """

    r: int = 16
    alpha: float | None = None
    targets: str | tuple[str, ...] = "all-linear"
    quantize: str | None = None
    layers: int | None = None

    def __post_init__(self) -> None:
        check_values(self)
        if self.quantize is not None:
            refuse_absent(self.quantize)
        if self.r < 1:
            raise ConfigError(f"r={self.r} must be at least 1", where="LoRA")
        if self.alpha is not None and self.alpha <= 0:
            raise ConfigError(f"alpha={self.alpha} must be positive", where="LoRA")
        if self.layers is not None and self.layers < 1:
            raise ConfigError(f"layers={self.layers} must be at least 1", where="LoRA", remedy="None adapts all layers")

    def config(self, model: Any) -> Any:
        """The peft configuration.

        Args:
            model: that is adapted.

        Raises:
            ConfigError: `layers` of a model that has no one stack of layers, or of all linear layers, where experts are
                no linear layers.
        """
        from peft import LoraConfig

        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        upper: dict[str, Any] = {}
        if self.layers is not None:
            if (stack := lower.stack_of(forward.bare(model))) is None:
                raise ConfigError(
                    f"layers={self.layers} of a model in which the layers do not stand in one list",
                    where="LoRA",
                    remedy="leave layers out, which adapts all of them",
                )
            name, every = stack
            upper = {"layers_to_transform": list(range(len(every)))[-self.layers :], "layers_pattern": [name]}
            if targets == "all-linear":
                targets = _linear_names(model)
                _refuse_experts(model, self.layers)
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha if self.alpha is not None else 2 * self.r,  # type: ignore[arg-type]
            target_modules=targets,
            lora_dropout=0.0,
            **upper,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The targets, one by one."""
        return (self.targets,) if isinstance(self.targets, str) else self.targets

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _linear_names(model: Any) -> list[str]:
    """What the linear layers but the head are called, adapted ones too."""
    from peft.tuners.lora import LoraLayer

    inner = forward.bare(model)
    head = inner.get_output_embeddings()
    found = [name for name, m in _outside(inner) if (_is_linear(m) or isinstance(m, LoraLayer)) and m is not head]
    return sorted({name.rsplit(".", 1)[-1] for name in found})


def _refuse_experts(model: Any, layers: int) -> None:
    owners = [module for module in model.modules() if not type(module).__name__.startswith("Conv")]
    if any(weight.ndim == 3 for each in owners for weight in each._parameters.values() if weight is not None):
        raise ConfigError(
            f"layers={layers} of all linear layers, in a model whose experts stand in one tensor",
            where="LoRA",
            effect="The experts would be left out, which all-linear adapts.",
            remedy="name the linear layers, or leave layers out",
        )


def lora_layers(model: nn.Module) -> list[Any]:
    """Every layer that carries adapters."""
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


@contextlib.contextmanager
def active_adapter(model: Any, name: str | None) -> Iterator[None]:
    """Run with another adapter, or with none (the bare base), and come back with every `requires_grad` as it was.

    peft turns gradients on for whatever it activates; a reference must never be left trainable.
    """
    flags = [(p, p.requires_grad) for n, p in model.named_parameters() if "lora_" in n]
    before = model.active_adapter
    try:
        if name is None:
            with model.disable_adapter():
                yield
        else:
            model.set_adapter(name, inference_mode=True)
            yield
    finally:
        model.set_adapter(before)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def merged(model: Any) -> Iterator[None]:
    """Run with the active adapter folded into the weights, as generation wants it; afterwards the very same tensors
    are back. Into weights of four bits nothing is folded."""
    if is_quantized(model):  # nothing can be added to four bits: the adapter computes beside them
        yield
        return
    kept = []
    for layer in lora_layers(model):
        (name,) = layer.active_adapters
        if name in {*layer.lora_A, *layer.lora_embedding_A}:  # another adapter may have layers of its own
            weight = adapted_weight(layer)
            kept.append((weight, weight.data))
            weight.data = weight.data + layer.get_delta_weight(name).to(weight.dtype)
    try:
        with active_adapter(model, None):
            yield
    finally:
        for weight, data in reversed(kept):
            weight.data = data


def adapted_weight(layer: Any) -> nn.Parameter:
    """The weights of the base that a layer adapts: a matrix, or those of all experts in one tensor."""
    weight: nn.Parameter = getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight"))
    return weight


def of_adapter(parameter: str, adapter: str = TRAINED) -> bool:
    """Whether a parameter, by its name, belongs to an adapter; those of an embedding end with the adapter's name."""
    return "lora_" in parameter and f".{adapter}." in f"{parameter}."


def adapt(model: Any, lora: LoRA) -> Any:
    """The model with a fresh adapter that trains, in evaluation mode.

    Raises:
        ConfigError: no layer has such a name, or one that cannot be folded, see `refuse_unfoldable`.
    """
    from peft import get_peft_model

    if lora.quantize is not None:
        quantize(model, lora.quantize)
    try:
        adapted = get_peft_model(model, lora.config(model), adapter_name=TRAINED)
    except ValueError as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            f"targets={lora.targets!r}: {said[:200]}", where="LoRA", remedy="name linear layers of this model"
        ) from error
    refuse_unfoldable(adapted, "LoRA")
    return adapted.eval()


def refuse_unfoldable(model: Any, where: str) -> None:
    """Refuse adapters that, folded into the weights for sampling and export, would make another model.

    Raises:
        ConfigError: an adapter on weights that two layers share, such as a tied head, of which it changes one; one with
            more to it than two low-rank matrices; layers that were trained whole beside it.
    """
    from peft.utils import ModulesToSaveWrapper

    owners = Counter(id(w) for module in model.modules() for w in module._parameters.values() if w is not None)
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            raise _unfoldable(f"{name} was trained whole beside the adapter", where, "merge it with peft, and use that")
    if any(config.bias != "none" for config in model.peft_config.values()):
        raise _unfoldable("biases were trained beside the adapter", where, "merge it with peft, and use that")
    names = {id(module): name for name, module in model.named_modules()}
    for layer in lora_layers(model):
        name = names[id(layer)].removeprefix("base_model.model.")
        if owners[id(adapted_weight(layer))] > 1:
            remedy = f"leave {name.rsplit('.', 1)[-1]} out of the targets, or train all weights with lora=None"
            raise _unfoldable(f"{name} shares its weights with another layer", where, remedy)
        if layer.lora_variant or any(getattr(layer, "lora_bias", {}).values()):
            raise _unfoldable(f"the adapter of {name} is no plain LoRA", where, "merge it with peft, and use that")


def _unfoldable(what: str, where: str, remedy: str) -> ConfigError:
    effect = "What is sampled from and exported would be another model than the one that is trained."
    return ConfigError(what, where=where, effect=effect, remedy=remedy)


def lora_of(folder: Path) -> LoRA:
    """How the adapter of a folder was made.

    Raises:
        ConfigError: it is no LoRA, or one that says of itself what cannot be.
    """
    file = folder / "adapter_config.json"
    found = read_record(file)
    if found.get("peft_type") != "LORA":
        what, remedy = f"holds an adapter of the kind {found.get('peft_type')}", "merge it with peft, and use that"
        raise ConfigError(what, where=str(file), effect="Only LoRA is trained and folded here.", remedy=remedy)
    r, alpha, targets = found.get("r"), found.get("lora_alpha"), found.get("target_modules") or ()
    names = targets if isinstance(targets, str) else tuple(sorted(map(str, targets)))
    if not isinstance(r, int) or not isinstance(alpha, int | float):
        raise ConfigError(f"names no rank and scale: r={r!r}, lora_alpha={alpha!r}", where=str(file))
    upper = found.get("layers_to_transform")  # which they are says the folder; those that are made here are the last
    chosen = [upper] if isinstance(upper, int) else upper
    return LoRA(r, alpha, names, layers=len(chosen) if chosen else None)


def refuse_other(model: Any, lora: LoRA, folder: Path) -> None:
    """Refuse to go on with an adapter as if it were another one.

    Args:
        model: with the adapter of the folder.
        lora: that was asked for.
        folder: of the adapter.

    Raises:
        ConfigError: rank, scale or layers differ.
    """
    if lora == lora_of(folder):
        return
    own, wanted = model.peft_config[TRAINED], lora.config(model)
    if lora.targets == "all-linear" and lora.layers is None:
        same = not any(_is_linear(part) for _, part in _outside(forward.body_of(model)))
    else:
        same = own.target_modules == wanted.target_modules
        same = same and own.layers_to_transform == wanted.layers_to_transform
    if (own.r, own.lora_alpha) == (wanted.r, wanted.lora_alpha) and same:
        return
    on = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in lora_of(folder).names}))
    raise ConfigError(
        f"the folder holds an adapter of r={own.r}, alpha={own.lora_alpha} on {on}; asked for is {lora}",
        where=str(folder),
        effect="The adapter that is there would be trained, and the other one recorded.",
        remedy="leave lora out to go on with it, or export it (which folds it) and start an adapter from there",
    )


def _outside(trunk: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a trunk that no adapter wraps or owns."""
    for name, module in trunk.named_modules():
        if not {"base_layer", "lora_A", "lora_B"} & set(name.split(".")):
            yield name, module


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def load_adapter(model: Any, folder: Path, trainable: bool) -> Any:
    """The model with the adapter that a folder holds, as the one that trains.

    Args:
        model: the base.
        folder: what `save_adapter` wrote.
        trainable: whether it goes on training.

    Raises:
        ConfigError: no file, or weights of the adapter that are not in it, which peft would draw at random; an adapter
            that cannot be folded, see `refuse_unfoldable`.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    lora_of(folder)
    file = folder / "adapter_model.safetensors"
    try:
        with safe_open(str(file), "pt") as opened:
            there = set(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file), remedy="save the adapter anew") from error
    here = str(next(model.parameters()).device)  # peft reads to a GPU that it finds, wherever the base is
    adapted = PeftModel.from_pretrained(
        model, str(folder), adapter_name=TRAINED, is_trainable=trainable, torch_device=here
    )
    wanted = set(get_peft_model_state_dict(adapted, adapter_name=TRAINED, save_embedding_layers=False))
    refuse_missing(sorted(wanted - there), str(file))
    refuse_unfoldable(adapted, str(folder))
    return adapted


def save_adapter(model: Any, folder: Path) -> None:
    """Write the trained adapter of a peft model into `folder` itself (peft puts named ones into a folder below)."""
    model.save_pretrained(str(folder), selected_adapters=[TRAINED], save_embedding_layers=False)
    inner = folder / TRAINED
    if inner.is_dir():
        for file in inner.iterdir():
            file.rename(folder / file.name)
        inner.rmdir()
    (folder / "README.md").unlink(missing_ok=True)
