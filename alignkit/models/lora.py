"""Low-rank adapters through peft: what is adapted, and switching between named adapters without touching what
trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from alignkit.errors import ConfigError
from alignkit.fields import check_values
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
    """

    r: int = 16
    alpha: float | None = None
    targets: str | tuple[str, ...] = "all-linear"

    def __post_init__(self) -> None:
        check_values(self)
        if self.r < 1:
            raise ConfigError(f"r={self.r} must be at least 1", where="LoRA")
        if self.alpha is not None and self.alpha <= 0:
            raise ConfigError(f"alpha={self.alpha} must be positive", where="LoRA")

    def config(self) -> Any:
        """The peft configuration."""
        from peft import LoraConfig

        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha if self.alpha is not None else 2 * self.r,  # type: ignore[arg-type]
            target_modules=targets,
            lora_dropout=0.0,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


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
    are back."""
    layers = lora_layers(model)
    kept = []
    for layer in layers:
        base, (name,) = layer.get_base_layer(), layer.active_adapters
        kept.append((base, base.weight.data))
        base.weight.data = base.weight.data + layer.get_delta_weight(name).to(base.weight.dtype)
    try:
        with active_adapter(model, None):
            yield
    finally:
        for base, weight in kept:
            base.weight.data = weight


def load_adapter(model: Any, folder: Path, trainable: bool) -> Any:
    """The model with the adapter that a folder holds, as the one that trains.

    Args:
        model: the base.
        folder: what `save_adapter` wrote.
        trainable: whether it goes on training.

    Raises:
        ConfigError: no file, or weights of the adapter that are not in it, which peft would draw at random.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    file = folder / "adapter_model.safetensors"
    try:
        with safe_open(str(file), "pt") as opened:
            there = set(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file), remedy="save the adapter anew") from error
    adapted = PeftModel.from_pretrained(model, str(folder), adapter_name=TRAINED, is_trainable=trainable)
    wanted = set(get_peft_model_state_dict(adapted, adapter_name=TRAINED, save_embedding_layers=False))
    refuse_missing(sorted(wanted - there), str(file))
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
