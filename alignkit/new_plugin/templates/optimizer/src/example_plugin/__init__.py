"""A policy gradient: a response becomes likelier where its score is above the mean of the prompt's other responses.

It maximises E R - kl_coef KL(policy || reference), R the reward, both summed over a response: with baseline b and
A = R - kl_coef log(policy / reference) - b, the gradient is E A grad log policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignkit.plugin import (
    Batch,
    ConfigError,
    Groups,
    PolicyOptimizer,
    Register,
    Term,
    hookimpl,
    k1,
    masked_sum,
    take_present,
)


def example_component(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-A log policy of each token. Both [responses, tokens]."""
    return -advantages * logprobs


def minus_the_others(scores: Tensor, sizes: list[int]) -> Tensor:
    """Each score less the mean of its group's other scores; 0 where it is alone.

    Args:
        scores: [responses].
        sizes: responses of each group.
    """
    return torch.cat([(part - part.mean()) * (len(part) / max(len(part) - 1, 1)) for part in scores.split(sizes)])


@dataclass(frozen=True)
class ExampleComponent(PolicyOptimizer):
    """What is better than the other samples of its prompt becomes likelier.

    Args:
        samples_per_prompt: at least 2.
        batch_size: 0: one step for all that a round sampled, so that each step is on-policy.
        kl_coef: price of a nat of KL from the reference, in units of the reward; 0 needs no reference.
    """

    loss: Any = "example_component"
    samples_per_prompt: int = 4
    rounds: int = 8
    batch_size: int = 0
    kl_coef: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples_per_prompt < 2 or not self.kl_coef >= 0:
            raise ConfigError("needs two samples of a prompt, and kl_coef not below 0", where="example_component")

    def terms(self) -> Mapping[str, Term]:
        return {"loss": Term(reduction="constant")}  # the sum over a response's tokens, the mean over responses

    def prepare_arguments(self) -> tuple[str, ...]:
        return tuple(name for name in super().prepare_arguments() if self.kl_coef or name != "ref_logprobs")

    def prepare(  # the engine passes what is named here; docs/write-a-plugin.md lists what there is
        self,
        groups: Groups,
        state: Mapping[str, Any],
        *,
        rewards: Tensor,
        present: Tensor,
        response_mask: Tensor,
        logprobs: Tensor,
        ref_logprobs: Tensor | None = None,
    ) -> Batch:
        """Advantages [responses, tokens], the same on every token. A response without a reward is left out.

        Raises:
            DataError: no response has a reward.
        """
        scores = rewards
        if ref_logprobs is not None:
            scores = scores - self.kl_coef * masked_sum(k1(logprobs, ref_logprobs), response_mask, 1)
        groups, mask, scores = take_present(groups, present), response_mask[present], scores[present]
        advantages = minus_the_others(scores, [len(row["responses"]) for row in groups])
        return Batch(groups, {"advantages": advantages.unsqueeze(1) * mask})


@hookimpl
def register_losses(register: Register) -> None:
    register("example_component", example_component)


@hookimpl
def register_optimizers(register: Register) -> None:
    register("example_component", ExampleComponent)
