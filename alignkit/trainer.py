"""Arguments of Lightning's trainer, read without importing it: which of them are alignkit's own; precisions by
Lightning's names, and which of them "auto" stands for on the machine at work."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from alignkit.errors import ConfigError, suggestion

OURS = {
    "max_epochs": "rounds (of the optimizer) or epochs (of the verb)",
    "max_steps": "max_steps (of the verb)",
    "accumulate_grad_batches": "batch_size, with max_tokens for the memory of one micro-batch",
    "gradient_clip_val": "max_grad_norm",
    "gradient_clip_algorithm": "max_grad_norm",
    "precision": "Run(precision=…)",
    "enable_checkpointing": "nothing: a run keeps its stages",
    "reload_dataloaders_every_n_epochs": "nothing: each round makes its own data",
    "limit_train_batches": "limit the data",
    "default_root_dir": "Run(folder)",
    "deterministic": "seed",
    "fast_dev_run": "fewer rows, rounds or epochs",
    "overfit_batches": "fewer rows",
    "max_time": "rounds or epochs",
    "min_epochs": "rounds or epochs",
    "min_steps": "rounds or epochs",
    "barebones": "nothing: it would drop the metrics",
}
"""Lightning's arguments that would divide by the wrong count or resume inexactly, and what to use instead."""


LOGGERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "csv": (),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
"""Loggers by one word, and the packages of which each needs one."""


def logger_words(given: Any) -> list[str]:
    """The words for loggers in what was given: a word, several separated by commas, a list of words.

    Args:
        given: may also be a logger of Lightning's, True, False or None, which hold none.

    Raises:
        ConfigError: a word that no logger has, or the package that it needs is not installed.
    """
    named = given.split(",") if isinstance(given, str) else given if isinstance(given, (list, tuple)) else []
    words = [word.strip() for word in named if isinstance(word, str)]
    for word in words:
        if word not in LOGGERS:
            raise ConfigError(f"logger={word!r}", where="Run", remedy=suggestion(word, LOGGERS))
        if LOGGERS[word] and not any(find_spec(package) for package in LOGGERS[word]):
            package = LOGGERS[word][0]
            raise ConfigError(
                f"the logger {word} needs the package {package}, which is not installed",
                where="Run",
                remedy=f"pip install {package}, or use another logger: {', '.join(LOGGERS)}",
            )
    return words


def check_trainer(options: Mapping[str, Any]) -> None:
    """Refuse what is alignkit's own, and loggers that are none.

    Raises:
        ConfigError: naming the right argument; or as `logger_words`.
    """
    for name in options:
        if name in OURS:
            raise ConfigError(
                f"trainer[{name!r}] is not Lightning's to do here", where="Run", remedy=f"use {OURS[name]}"
            )
    logger_words(options.get("logger"))


PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-true", "64-true")
"""Lightning's precisions that train here."""

OTHER_NAMES = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}
"""What else Lightning calls them."""

AUTO = "auto"
"""What the machine computes fastest with float32's range: in the place of a name, as Lightning's accelerator="auto"."""

VARIABLE = "ALIGNKIT_PRECISION"
"""The environment's word on what "auto" stands for: one for machines that differ."""


def precision_named(given: str | int) -> str:
    """A precision by the one name that Lightning has for it.

    Args:
        given: that name, or another of Lightning's: "bf16", 32.

    Raises:
        ConfigError: none that trains here.
    """
    name = OTHER_NAMES.get(str(given), str(given))
    if name == "16-mixed":
        raise ConfigError(
            f"precision={given!r} scales the loss, and gradients would be clipped before they are scaled back",
            where="Run",
            remedy='use precision="bf16-mixed"',
        )
    if name not in PRECISIONS:
        raise ConfigError(f"precision={given!r}", where="Run", remedy=suggestion(name, (*PRECISIONS, AUTO)))
    return name


def chosen_precision(given: str | int, trainer: Mapping[str, Any]) -> tuple[str, str]:
    """(The precision that is computed in, why it was chosen); no reason for one that was asked for by name.

    "auto" is "bf16-mixed" where what computes has a unit for bfloat16, and "32-true" elsewhere: bfloat16 that is
    emulated is slower than float32 and no better.

    Args:
        given: a name that `precision_named` takes, or "auto".
        trainer: arguments of `lightning.Trainer`: the accelerator decides whose unit is looked for.

    Raises:
        ConfigError: as `precision_named`, also for what the variable ALIGNKIT_PRECISION holds.
    """
    if given != AUTO:
        return precision_named(given), ""
    if said := os.environ.get(VARIABLE, ""):
        return precision_named(said), f"{VARIABLE} says so"
    kind = device_kind(trainer)
    unit = bfloat16_unit(kind)
    here = "this processor" if kind == "cpu" else f"the {kind} device"
    if unit:
        return "bf16-mixed", f"{here} computes bfloat16 natively: {unit}"
    return "32-true", f"{here} has no unit for bfloat16"


def device_kind(trainer: Mapping[str, Any]) -> str:
    """On what Lightning will train: "cuda", "mps" or "cpu".

    Args:
        trainer: arguments of `lightning.Trainer`.
    """
    import torch

    if trainer.get("accelerator") == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def bfloat16_unit(kind: str) -> str:
    """What multiplies bfloat16 matrices there without emulation; "" where nothing does.

    That a type works says little: PyTorch computes in bfloat16 everywhere. Asked is, on a GPU, what PyTorch knows of
    its generation (CUDA capability 8 or higher); on a processor, whether oneDNN has kernels for it and, since oneDNN
    emulates them on any AVX-512 processor, whether the processor has the instructions.

    Args:
        kind: as `device_kind` gives it.
    """
    import torch

    if kind == "cuda":
        return torch.cuda.get_device_name() if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    if kind != "cpu" or not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return ""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return "arm bf16"  # there oneDNN has it only where the processor does
    if torch.cpu._is_amx_tile_supported():
        return "amx_bf16"
    return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else ""
