"""sft: supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal, Self

from alignkit.budget import Budget, stopped
from alignkit.groups import Groups
from alignkit.meter import Meter
from alignkit.stages.asked_metrics import by_name, specs_kept
from alignkit.stages.base import Context, Cost, Made, Product, component, rows_of
from alignkit.stages.handles import GroupsHandle, PolicyHandle
from alignkit.stages.place import Place
from alignkit.stages.training import TrainingStage, adapter_bytes, check_heldout, check_loss, split, trainable


@dataclass(frozen=True, eq=False)
class SFT(TrainingStage[PolicyHandle]):
    """Supervised fine-tuning: the prompt is masked, the response learned.

    Args:
        policy: where to start.
        demonstrations: groups with one response each.
        loss: a token-level loss.
        train: "last": the response; "all": every assistant turn of the conversation too.
        heldout_fraction: share of the rows kept back, on which the loss is measured afterwards.
    """

    verb: ClassVar[str] = "sft"
    makes: ClassVar[tuple[Product, ...]] = ("policy",)

    policy: PolicyHandle
    demonstrations: Groups | GroupsHandle
    _: KW_ONLY
    loss: Any = field(default="alignkit/nll", metadata=component("loss"))
    train: Literal["last", "all"] = "last"
    heldout_fraction: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heldout(self.heldout_fraction, self.name)

    def resolved(self, context: Context) -> Self:
        built = super().resolved(context)
        check_loss(built.loss, self.sources, ("token", "mask", "response"), self.name)
        return built

    def derived(self) -> Mapping[str, Any]:
        return {"lora": self.policy.lora}

    def cost(self) -> Cost:
        rows = len(self.demonstrations)
        tokens = int(rows * self.max_length // 4 * self.passes(rows))
        disk = adapter_bytes(self.policy)
        tokens = min(tokens, Budget.of(self.budget).to_json().get("trained_tokens", tokens))
        return Cost(trained=tokens, parameters=self.policy.parameters, trainable=True, disk=disk)

    def work(self, place: Place) -> Mapping[str, Any]:
        policy = trainable(place, self.policy, place.name)
        learn, heldout = split(rows_of(self.demonstrations), self.heldout_fraction, (*place.path, "split"))
        data = self.checked_data(place, learn, policy, "demonstrations", self.train)
        learner = self.learn(place, policy, data, "token", self.loss)
        result: dict[str, Any] = {
            "steps": learner.steps_done,
            **stopped(learner.spending),
            "rows": len(data.groups),
            "parameters": self.policy.parameters,
        }
        result |= specs_kept(by_name(self.metrics))
        if len(heldout):
            kept_back = self.checked_data(place, heldout, policy, "demonstrations", self.train)
            with place.meter.phase("evaluate"), place.computing():
                result["heldout_loss"] = _mean_nll(policy, kept_back, place.max_tokens, place.meter)
        if place.writes:
            with place.meter.phase("write"):
                policy.save(place.folder / "model")
        return result

    def handle(self, made: Made) -> PolicyHandle:
        return PolicyHandle(**made.common(), lora=self.policy.lora, parameters=self.policy.parameters)


def _mean_nll(policy: Any, data: Any, max_tokens: int, meter: Meter) -> float:
    """Mean negative log-likelihood per learned token, in nats."""
    import torch

    total, tokens = 0.0, 0
    with torch.no_grad():
        for numbers in data.all_micro_batches(max_tokens):
            batch, reading = data.collate(numbers).to(policy.device), data.reading(numbers)
            meter.add("scored_tokens", reading.tokens)
            meter.compute(policy.flops(reading).forward)
            total -= float(policy.tensors(batch)["logprobs"].sum())
            tokens += int(batch.response_mask.sum())
    return total / max(tokens, 1)
