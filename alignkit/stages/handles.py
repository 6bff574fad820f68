"""What verbs return: names of results on disk, which load only when used (and, in a plan, of results still to come)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError
from alignkit.groups import Groups
from alignkit.rewards import Reward, Scores


@dataclass(frozen=True)
class Handle:
    """A result of a stage.

    Args:
        key: the stage's key.
        name: the stage's name.
        folder: where it is; None while it is only planned.
        result: the stage's small results.
    """

    key: str
    name: str
    folder: Path | None
    result: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, str]:
        """How the handle counts in the key of what is made from it."""
        return {"stage": self.key}

    @property
    def path(self) -> Path:
        """The stage's folder.

        Raises:
            ConfigError: the stage is only planned.
        """
        if self.folder is None:
            raise ConfigError("this stage is only planned", where=self.name, remedy="run without --plan")
        return self.folder


@dataclass(frozen=True)
class PolicyHandle(Handle):
    """A policy on disk.

    Args:
        lora: how it is adapted when it is trained (a `LoRA`, or None for all weights).
        model_path: the model's folder.
        parameters: how many weights it has, for estimates.
    """

    lora: Any = None
    model_path: Path | None = None
    parameters: int = 0

    def load(self, **kwargs: Any) -> Any:
        """The live `Policy` (see `Policy.load`)."""
        from alignkit.models import Policy

        policy = Policy.load(self.model_folder, **kwargs)
        policy.upper = None if self.lora is None else self.lora.layers
        return policy

    @property
    def model_folder(self) -> Path:
        return self.model_path or self.path / "model"


@dataclass(frozen=True)
class GroupsHandle(Handle):
    """Groups on disk.

    Args:
        part: the folder inside the stage.
        expected: rows a plan reckons with.
    """

    part: str = "groups"
    expected: int = 0
    responses: int = 0

    def to_json(self) -> dict[str, str]:
        return {"stage": self.key, "part": self.part}

    @cached_property
    def groups(self) -> Groups:
        """The rows themselves."""
        return Groups.load(self.path / self.part)

    def __len__(self) -> int:
        return self.expected if self.folder is None else len(self.groups)


class RewardHandle(Reward):
    """A reward model on disk, which is a reward; the model loads when the first response is scored.

    Args:
        handle: its stage.
        name: of its column, such as "helpfulness".
        max_tokens: cells of a micro-batch.
        precision: dtype name of the weights.
        device: where it scores.
    """

    computed_in = "float32"

    def __init__(
        self, handle: Handle, name: str, max_tokens: int = 4096, precision: str = "32-true", device: str = "cpu"
    ) -> None:
        self.handle, self.name, self.max_tokens = handle, name, max_tokens
        self.precision, self.device = precision, device
        self._scorer: Any = None

    def key(self) -> Any:
        return {**self.handle.to_json(), "name": self.name}

    @property
    def result(self) -> Mapping[str, Any]:
        """Accuracy and the like, as the stage recorded them."""
        return self.handle.result

    @property
    def model_folder(self) -> Path:
        return self.handle.path / "model"

    def score(self, groups: Groups) -> Scores:
        if self._scorer is None:
            from alignkit.engine.scoring import Scorer

            self._scorer = Scorer.load(self.model_folder, self.max_tokens, self.precision, self.device)
        return self._scorer.score(groups)

    def release(self) -> None:
        """Give the memory of the model back."""
        self._scorer = None


@dataclass(frozen=True)
class EvaluationHandle(Handle):
    """An evaluation on disk."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.result.get("metrics", {})


@dataclass(frozen=True)
class Improved:
    """What `improve` returns.

    Args:
        policy: the new version.
        rollouts: what was sampled for it, scored.
        state: the optimizer's state at the end (of the best round, where that was put back): `improve(…, state=…)` goes
            on with it.
        result: small results.
    """

    policy: PolicyHandle
    rollouts: GroupsHandle
    state: Mapping[str, Any]
    result: Mapping[str, Any]
