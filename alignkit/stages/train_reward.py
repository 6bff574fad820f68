"""train_reward: a reward model from comparisons or rankings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from alignkit.budget import Budget, stopped
from alignkit.errors import ConfigError
from alignkit.groups import Groups
from alignkit.randomness import derived_seed
from alignkit.stages.asked_metrics import by_name, specs_kept
from alignkit.stages.base import DERIVED, NO_EFFECT, Context, Cost, Made, Product, as_sequence, component, rows_of
from alignkit.stages.handles import GroupsHandle, Handle, PolicyHandle, RewardHandle
from alignkit.stages.place import Place
from alignkit.stages.training import (
    TrainingStage,
    check_fraction,
    check_heldout,
    check_loss,
    count_parameters,
    drawn,
    split,
)

COMPARISON_TOKENS = 150
"""Tokens of a comparison that a plan reckons with."""


@dataclass(frozen=True, eq=False)
class TrainReward(TrainingStage[RewardHandle]):
    """Train a reward model on comparisons or rankings.

    Args:
        init: a policy (its language head replaced), or a reward model to go on from.
        comparisons: what is new.
        loss: a registered ranking loss.
        replay: earlier comparisons, learned from beside the new ones.
        replay_fraction: share of their rows that is drawn.
        heldout_fraction: share of the *prompts* kept back, on which accuracy is reported.
        column: name of its scores; default the last part of `name`.
        pooling: where a score is read: at the "last" token of a response, as in InstructGPT and Llama 2, or as the
            "mean" over all of its tokens, which learns what is said from far fewer comparisons, and less of how a
            response ends; default that of `init`, "last" for a policy.
        lora: how it is trained where `init` is a policy: a `LoRA`, or None for all weights; default as the policy is.
            With fewer layers adapted (`LoRA(layers=…)`) more of the trunk is read once for each text.
        by_prompt: comparisons of one prompt stand in one step, so that an answer that is compared several times is read
            once (InstructGPT, section 3.5); `batch_size` counts comparisons then, too, and a step may hold a few more.
    """

    verb: ClassVar[str] = "train_reward"
    makes: ClassVar[tuple[Product, ...]] = ("reward",)
    sources: ClassVar[tuple[str, ...]] = ("score", "round")

    init: PolicyHandle | RewardHandle
    comparisons: Groups | GroupsHandle | Sequence[Groups | GroupsHandle]
    _: KW_ONLY
    loss: Any = field(metadata=component("loss"))
    replay: Sequence[Groups | GroupsHandle] = ()
    replay_fraction: float = 1.0
    heldout_fraction: float = 0.1
    column: str | None = field(default=None, metadata=NO_EFFECT)
    pooling: Literal["last", "mean"] | None = None
    lora: Any = field(default="default", metadata=DERIVED)
    by_prompt: bool = False
    name: str = "reward"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("replay_fraction", self.replay_fraction, self.name)
        check_heldout(self.heldout_fraction, self.name)
        if not isinstance(self.comparisons, (Groups, Handle)) and not len(self.comparisons):
            raise ConfigError("comparisons names none", where=self.name)

    def resolved(self, context: Context) -> Self:
        from alignkit.models import LoRA

        if self.lora != "default" and not isinstance(self.init, PolicyHandle):
            raise ConfigError(
                "lora= for a reward model that goes on", where=self.name, remedy="leave it out: it goes on with its own"
            )
        if self.lora not in ("default", None) and not isinstance(self.lora, LoRA):
            raise ConfigError(f"lora={self.lora!r}", where=self.name, remedy="pass a LoRA, or None for all weights")
        built = super().resolved(context)
        check_loss(built.loss, self.sources, ("pair", "group", "mask", "response"), self.name)
        return replace(
            built,
            comparisons=as_sequence(self.comparisons),
            replay=as_sequence(self.replay),
            column=self.column or self.name.rsplit("/", 1)[-1],
        )

    def derived(self) -> Mapping[str, Any]:
        return {"lora": self._adapter()}

    def _adapter(self) -> Any:
        """How it is trained, where it begins as a policy; what goes on has its own."""
        if not isinstance(self.init, PolicyHandle):
            return None
        return self.init.lora if self.lora == "default" else self.lora

    def cost(self) -> Cost:
        new, old = (sum(len(part) for part in as_sequence(parts)) for parts in (self.comparisons, self.replay))
        rows = new + self.replay_fraction * old
        tokens = int(int(rows * min(2 * self.max_length, COMPARISON_TOKENS)) * self.passes(rows))
        tokens = min(tokens, Budget.of(self.budget).to_json().get("trained_tokens", tokens))
        given = self.init.parameters if isinstance(self.init, PolicyHandle) else self.init.result.get("parameters", 0)
        return Cost(trained=tokens, parameters=int(given), trainable=True, disk=2_000_000)

    def work(self, place: Place) -> Mapping[str, Any]:
        """A reward model, with its accuracy on prompts kept back."""
        from alignkit.engine.comparisons import comparison_report
        from alignkit.engine.scoring import Scorer
        from alignkit.rewards import count_scores

        with place.meter.phase("load"):
            model = self._model(place)
        both = (as_sequence(self.comparisons), as_sequence(self.replay))
        new, old = (Groups.concat([rows_of(part) for part in parts]) for parts in both)
        groups = Groups.concat([new, drawn(old, self.replay_fraction, (*place.path, "replay"))])
        # The split depends on prompts alone, not on the stage, so that a model trained on later has never seen what is
        # kept back.
        learn, heldout = split(groups, self.heldout_fraction, (place.seed, "reward split"))
        kind = "comparisons" if all(len(row["responses"]) == 2 for row in learn) else "rankings"
        data = replace(self.checked_data(place, learn, model, kind), by_prompt=self.by_prompt)
        # By group: a prompt with many comparisons weighs no more than one with a single one.
        learner = self.learn(place, model, data, "group", self.loss)
        result: dict[str, Any] = {
            "steps": learner.steps_done,
            **stopped(learner.spending),
            "pairs": len(data.pairs.group),
            "tied_pairs": sum(math.comb(len(row["responses"]), 2) for row in data.groups) - len(data.pairs.group),
            "parameters": count_parameters(model),
            **specs_kept(by_name(self.metrics)),
        }
        if len(heldout):
            with place.meter.phase("evaluate"), place.computing():
                scores = Scorer(model, place.max_tokens, self.max_length).score(heldout)
                count_scores(scores, place.meter)
                result |= comparison_report(heldout, scores)
        model.max_length = self.max_length
        if place.writes:
            with place.meter.phase("write"):
                model.save(place.folder / "model")
        return result

    def _model(self, place: Place) -> Any:
        from alignkit.models import RewardModel

        folder = self.init.model_folder
        if isinstance(self.init, RewardHandle):
            model = RewardModel.load(folder, trainable=True, dtype=place.dtype)
        else:
            seed = derived_seed(*place.path, "init")
            model = RewardModel.from_policy(folder, lora=self._adapter(), dtype=place.dtype, seed=seed)
        model.pool(self.pooling or model.pooling)
        return model

    def handle(self, made: Made) -> RewardHandle:
        column = self.column or "reward"
        return RewardHandle(Handle(**made.common()), column, made.max_tokens, made.precision, made.device)

    def summary(self, result: Mapping[str, Any]) -> str:
        overall = result.get("accuracy", {}).get("overall")
        text = f"accuracy {overall['mean']:.3f} on {overall['n']} held-out pairs" if overall else "no held-out pairs"
        if "calibration_error" in result:
            text += f", calibration error {result['calibration_error']:.3f}"
        return f"{result['pairs']} pairs, {text}"
