"""KTO: learning from responses that were each called good or bad, without pairs (Ethayarajh et al. 2024, 2402.01306).

With r = log pi(y|x) - log ref(y|x) and the baseline z0 = KL(pi || ref) >= 0, the value of a response is

    v = lambda_D sigmoid(beta (r - z0))  if it is good,   lambda_U sigmoid(beta (z0 - r))  if it is bad,

and the loss lambda - v (eq. 7). z0 says what a response is worth that nobody asked for: it is measured, without a
gradient, on responses paired with the prompt of another (y_j for x_i, i != j), which are as likely to have become
likelier by accident as the real ones are. Too small an estimate can be negative, a KL cannot: it is clamped at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignkit.plugin import (
    Batch,
    DataError,
    Groups,
    MetricSpec,
    PolicyOptimizer,
    Term,
    check_range,
    check_shapes,
    labels_from_ranks,
    masked_sum,
    take_responses,
    use,
)
from alignkit_dpo.losses import positive
from alignkit_dpo.optimizers import SIDE_LOGS, given_only, settings_of, try_out

Measure = Callable[..., Mapping[str, Tensor]]
SIDES = {"chosen": "desirable", "rejected": "undesirable"}
"""What the log calls the responses of either label, and the mask that shows them."""


def kto(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    response_mask: Tensor,
    labels: Tensor,
    kl_baseline: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """lambda_D sigmoid(-beta (r - z0)) for good responses, lambda_U sigmoid(-beta (z0 - r)) for bad ones (KTO, eq. 7).

    Args:
        logprobs: [responses, tokens], nats.
        ref_logprobs: [responses, tokens].
        response_mask: [responses, tokens].
        labels: [responses], 1 good, 0 bad.
        kl_baseline: [responses], z0, nats per response, the same number for all of a round.
        beta: how fast the value saturates: risk aversion.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U; more than lambda_D is loss aversion.

    Returns:
        [responses].
    """
    positive("kto", beta=beta)
    check_range("kto", desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    ratio = masked_sum(logprobs - ref_logprobs, response_mask, -1)
    check_shapes(ratio=ratio, labels=labels, kl_baseline=kl_baseline)
    side = 2 * labels - 1
    weight = labels * desirable_weight + (1 - labels) * undesirable_weight
    return weight * torch.sigmoid(-side * beta * (ratio - kl_baseline))


def label_statistics(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    response_mask: Tensor,
    labels: Tensor,
    kl_baseline: Tensor,
    *,
    beta: float = 0.1,
) -> dict[str, Tensor]:
    """What is logged of every response: log-prob and implied reward by label, and whether it is on its side of z0.

    Args:
        logprobs: [responses, tokens], nats.
        ref_logprobs: [responses, tokens].
        response_mask: [responses, tokens].
        labels: [responses], 1 good, 0 bad.
        kl_baseline: [responses].
        beta: of the loss.

    Returns:
        `accuracy` and `ties` [responses]; the others [responses, 1], to be averaged over the good responses ("chosen")
        or over the bad ones ("rejected") by a mask.
    """
    positive("label_statistics", beta=beta)
    reward = beta * masked_sum(logprobs - ref_logprobs, response_mask, -1)
    ahead = (2 * labels - 1) * (reward - beta * kl_baseline)
    wide = {"logprobs": masked_sum(logprobs, response_mask, -1).unsqueeze(1), "rewards": reward.unsqueeze(1)}
    sides = {f"{side}_{name}": value for side in SIDES for name, value in wide.items()}
    return {**sides, "accuracy": (ahead > 0).to(reward.dtype), "ties": (ahead == 0).to(reward.dtype)}


@dataclass(frozen=True)
class KTO(PolicyOptimizer):
    """Learn from single labels: good responses should beat the baseline, bad ones fall short of it.

    Groups without labels but with ranks are labelled by them: the best of a prompt is good, the worst bad, and of those
    between nothing is said.

    Args:
        loss: "kto", with its beta and weights. The paper wants lambda_D n_good / (lambda_U n_bad) in [1, 4/3]: that is
            logged as `label_balance`.
        samples_per_prompt: 0: it learns from what it is given.
        rounds: 0 is one pass over the data; each round measures z0 anew.
        prompts_per_round: 32, the paper's batch, for each of which z0 is estimated.
        batch_size: 32: a round is a step, so that z0 is of the weights it is used with.
        learning_rate: 1e-6, as in TRL 1.16; the paper's 5e-7, its authors' later advice 5e-6.
        warmup_ratio: 0.1 (ours).
    """

    loss: Any = "kto"
    samples_per_prompt: int = 0
    rounds: int = 0
    prompts_per_round: int = 32
    batch_size: int = 32
    learning_rate: float = 1e-6
    warmup_ratio: float = 0.1

    provides: ClassVar[Mapping[str, str]] = {
        "kl_baseline": "[responses] KTO's z0: KL to the reference, on mismatched pairs; nats per response.",
        "desirable": "[responses, 1] True where the response was called good.",
        "undesirable": "[responses, 1] True where it was called bad.",
    }
    logs: ClassVar[Mapping[str, MetricSpec]] = {
        **{name: spec for name, spec in SIDE_LOGS.items() if name != "margins"},
        "kl_baseline": MetricSpec("z0, which rewards are compared with", "0 throughout: it has not moved", unit="nats"),
        "label_balance": MetricSpec("λ_D n_good / (λ_U n_bad)", "outside 1 to 4/3, which the paper asks for"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        given_only(self, "kto", "use online_dpo, or label sampled groups first")
        try_out(self.loss, {"kto": kto})

    @property
    def logprob_temperature(self) -> float:
        return 1.0  # whatever the temperature that somebody sampled the responses at

    def terms(self) -> Mapping[str, Term]:
        shown = {
            f"{side}_{name}": Term(weight=0.0, reduction="token", mask=mask)
            for side, mask in SIDES.items()
            for name in ("logprobs", "rewards")
        }
        return {"loss": Term(), **shown}

    def extra_losses(self) -> Mapping[str, Any]:
        beta = settings_of(self.loss, {"kto": kto}).get("beta", 1.0)
        return {"statistics": use("alignkit-dpo/label_statistics", beta=beta)}

    def prepare(self, groups: Groups, state: Mapping[str, Any], *, measure: Measure) -> Batch:
        """The labelled responses, with the baseline of this round.

        Args:
            groups: with `labels`, or with ranks that give them.
            state: unused.
            measure: log-probs of any groups, under the policy and the reference.

        Raises:
            DataError: no labels and no ranks that differ; or one prompt only, which leaves nothing to mismatch.
        """
        known = labelled(groups)
        found = measure(mismatched(known), "logprobs", "ref_logprobs")
        z0 = kl_baseline(found["logprobs"], found["ref_logprobs"], found["response_mask"])
        good = torch.tensor([label for row in known for label in row["labels"]])
        tensors = {
            "kl_baseline": z0.expand(len(good)),
            "desirable": good.unsqueeze(1),
            "undesirable": ~good.unsqueeze(1),
        }
        return Batch(known, tensors, {"kl_baseline": float(z0), "label_balance": self._balance(good)})

    def _balance(self, good: Tensor) -> float:
        """lambda_D n_good / (lambda_U n_bad); n_bad of none counts as one."""
        weights = settings_of(self.loss, {"kto": kto})
        ratio = weights.get("desirable_weight", 1.0) / weights.get("undesirable_weight", 1.0)
        return float(ratio * good.sum() / (~good).sum().clamp(min=1))


def kl_baseline(logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor) -> Tensor:
    """z0 = max(0, mean over responses of the sum over tokens of log pi - log ref): a scalar, nats, without gradient.

    Args:
        logprobs: [responses, tokens] of mismatched pairs.
        ref_logprobs: [responses, tokens].
        response_mask: [responses, tokens].
    """
    return masked_sum(logprobs - ref_logprobs, response_mask, -1).mean().clamp(min=0).detach()


def mismatched(groups: Groups) -> Groups:
    """Each prompt with the responses of the next one that is another prompt (the last with those of the first).

    Raises:
        DataError: all prompts are the same.
    """
    rows = groups.rows
    return Groups.from_rows(
        {"prompt": row["prompt"], **{name: _next_other(rows, i)[name] for name in RESPONSE_COLUMNS}}
        for i, row in enumerate(rows)
    )


RESPONSE_COLUMNS = ("responses", "response_ids", "tokenizer")


def _next_other(rows: list[dict[str, Any]], index: int) -> dict[str, Any]:
    for row in (*rows[index + 1 :], *rows[:index]):
        if row["prompt_id"] != rows[index]["prompt_id"]:
            return row
    raise DataError(
        f"a round of {len(rows)} groups with one prompt in all",
        where="kto",
        effect="The baseline is measured on responses to other prompts, and there is no other.",
        remedy="raise prompts_per_round, or bring more prompts",
    )


def labelled(groups: Groups) -> Groups:
    """The responses of which it is known whether they are good or bad; the same object if that is all of them.

    Raises:
        DataError: there is none.
    """
    labels = [row["labels"] or labels_from_ranks(row["ranks"] or []) for row in groups]
    kept = [[k for k, label in enumerate(row) if label is not None] for row in labels]
    if not any(kept):
        raise DataError(
            f"{len(groups)} prompts without a label, and without ranks that would give one",
            where="kto",
            effect="There is nothing to learn from.",
            remedy="fill the column labels (True good, False bad), or give comparisons",
        )
    if all(row["labels"] and None not in row["labels"] for row in groups):
        return groups
    each = iter([row or None for row in labels])
    return take_responses(groups.map_rows(lambda _: {"labels": next(each)}), kept)
