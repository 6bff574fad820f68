"""Writing plain Hugging Face folders: what was trained, in the dtype and with the settings and ends that belong."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.files import write_json
from alignkit.models.adapters import read_record
from alignkit.models.loading import Source, config_of

BASE = "alignkit_base.json"
"""Beside weights that a stage trained in another dtype than their base is kept in: which that is."""


def dtype_kept(source: Source) -> torch.dtype:
    """The dtype that a model is kept in, whatever it was loaded or trained in; float32 where nobody says.

    Args:
        source: of the base.
    """
    if source.kind not in ("folder", "hub"):
        return torch.float32
    noted = Path(source.path) / BASE
    if noted.is_file():
        found = getattr(torch, str(read_record(noted).get("dtype")), None)
    else:
        config = config_of(source)
        found = config.dtype or config.get_text_config().dtype
    return found if isinstance(found, torch.dtype) else torch.float32


def note_dtype(folder: Path, kept: torch.dtype) -> None:
    """Note beside weights that a stage trained in which dtype their base is kept."""
    write_json(folder / BASE, {"dtype": str(kept).removeprefix("torch.")})


def plain_copy(model: Any, state: Mapping[str, Tensor], dtype: torch.dtype | None, keep: Sequence[str] = ()) -> Any:
    """The model anew, with other weights.

    Args:
        model: a transformers model.
        state: the weights, by the names that the plain model has.
        dtype: of them; where the family keeps some in float32, those stay so. None: as they are.
        keep: further names that stay as they are.
    """
    with torch.device("meta"):
        plain = type(model)(copy.deepcopy(model.config))
    cast = dict(state)
    if dtype is not None:
        plan = [*plain._get_dtype_plan(dtype), *map(re.escape, keep)]
        stays = re.compile("|".join(rf"(^|\.){name}($|\.)" for name in plan) or "(?!)")
        cast = {n: t.to(dtype) if t.is_floating_point() and not stays.search(n) else t for n, t in state.items()}
    plain.load_state_dict({name: tensor.detach() for name, tensor in cast.items()}, assign=True)
    plain.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        plain.generation_config = copy.deepcopy(model.generation_config)
    return plain


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model by the names they have without adapters; those of adapters are left out."""
    state = {name: tensor for name, tensor in model.state_dict().items() if "lora_" not in name}
    return {n.replace(".base_layer", "").replace("base_model.model.", ""): t for n, t in state.items()}


def save_plain(model: Any, tokenizer: Any, folder: Path, end_ids: Sequence[int] = ()) -> None:
    """Write a plain Hugging Face folder: safetensors, configuration, generation configuration, tokenizer, template.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        folder: where to.
        end_ids: what ends a response, see `save_ends`.
    """
    from transformers import GenerationConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    generation = getattr(model, "generation_config", None)
    if generation is None:
        model.save_pretrained(folder)
    else:
        model.generation_config = GenerationConfig()  # transformers refuses to save settings that it finds at odds
        try:
            model.save_pretrained(folder)
        finally:
            model.generation_config = generation
        save_ends(model, folder, end_ids)
    tokenizer.save_pretrained(folder)


def save_ends(model: Any, folder: Path, end_ids: Sequence[int]) -> None:
    """Write how the model is generated from, as it came; whoever does stops where responses end, and where it was
    stopped before.

    Args:
        model: has a generation configuration.
        folder: where to.
        end_ids: what ends a response.
    """
    written = copy.deepcopy(model.generation_config)
    named = written.eos_token_id
    before = named if isinstance(named, list) else [] if named is None else [named]
    ends = list(dict.fromkeys([*end_ids, *before]))
    written.eos_token_id = ends if len(ends) > 1 else ends[0] if ends else None
    written.to_json_file(folder / "generation_config.json", use_diff=True, keys_to_pop=["compile_config"])
