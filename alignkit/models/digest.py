"""What identifies a model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from alignkit.identity import digest
from alignkit.models.adapters import adapter_base, base_digest
from alignkit.models.loading import folder_digest, resolve_source
from alignkit.models.policy import Policy


def model_digest(model: str | Path | Policy, base: str | Path | None = None) -> str:
    """What identifies a model: the bytes of its files, with those of an adapter's base; of a live one the weights.

    Args:
        model: what `Policy.load` takes, or a policy. A hub name counts by its name.
        base: of an adapter from elsewhere, in place of the one that it names.

    Raises:
        ConfigError: the file, folder or package does not exist.
    """
    if isinstance(model, Policy):
        return _weights_digest(model)
    below = adapter_base(model, base)
    if below is not None:
        return digest([folder_digest(Path(model)), base_digest(model, below)])
    return resolve_source(str(model)).digest()


def _weights_digest(policy: Policy) -> str:
    """SHA-256 over the names and values of all weights of a live policy, and its tokenizer."""
    state = hashlib.sha256(policy.chat.fingerprint.encode())
    for name, tensor in sorted(policy.model.state_dict().items()):
        state.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
