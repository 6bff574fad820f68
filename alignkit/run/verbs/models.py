"""The work of the verbs that bring models in and out: policy, reward_model, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import DataError
from alignkit.run.handles import PolicyHandle

if TYPE_CHECKING:
    from alignkit.run.run import Run


def import_policy(spec: str, work: Path) -> dict[str, Any]:
    """Make the model loadable from a folder: converted here (GGUF, tiny), or where it lies."""
    from alignkit.models import Policy
    from alignkit.models.loading import load_causal, resolve_source, save_plain
    from alignkit.models.policy import adapter_base

    if adapter_base(spec) is not None:
        return {"model": str(Path(spec).resolve()), "parameters": count_parameters(Policy.load(spec))}
    source = resolve_source(spec)
    model, tokenizer = load_causal(source)
    parameters = sum(p.numel() for p in model.parameters())
    if source.kind != "folder":  # kept in the run, so that adapters find their base and nothing changes under them
        save_plain(model, tokenizer, work / "model")
        return {"parameters": parameters}
    return {"model": source.path, "parameters": parameters}


def guess_parameters(spec: str) -> int:
    """Weights of a model that is not loaded yet, from the size of its files."""
    from alignkit.models.loading import resolve_source

    source = resolve_source(spec)
    if source.kind == "gguf":
        return int(Path(source.path).stat().st_size * 8 / 5)
    files = list(Path(source.path).glob("*.safetensors")) if source.kind == "folder" else []
    return sum(file.stat().st_size for file in files) // 4 or 200_000


def count_parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def reward_identity(spec: str) -> str:
    """Digest of a reward model that exists already."""
    from alignkit.models.loading import folder_digest, resolve_source

    return folder_digest(Path(spec)) if Path(spec).is_dir() else resolve_source(spec).digest()


def import_reward_model(spec: str, work: Path) -> dict[str, Any]:
    """Keep a reward model of elsewhere by reference: checked that it loads and has one output."""
    from alignkit.models import RewardModel

    model = RewardModel.load(spec)
    if getattr(model.model.config, "num_labels", 1) != 1:
        raise DataError(f"{model.model.config.num_labels} outputs", where=spec, remedy="a reward model has one output")
    if Path(spec).is_dir():
        (work / "model").symlink_to(Path(spec).resolve(), target_is_directory=True)
    else:
        model.save(work / "model")
    return {"parameters": count_parameters(model)}


def export(run: Run, work: Path, policy: PolicyHandle) -> dict[str, Any]:
    """A plain Hugging Face folder with a model card."""
    from alignkit.models import Policy
    from alignkit.run.card import lineage, model_card

    Policy.load(policy.model_folder).export(work / "model")
    card = model_card(policy.name, lineage(run.folder, policy.key), run.seed, run.precision)
    (work / "model" / "README.md").write_text(card, encoding="utf-8")
    return {"parameters": policy.parameters}
