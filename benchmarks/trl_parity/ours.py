"""Our losses: by their registered names, with the reduction that the optimizer declares, through the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from alignkit.engine.objectives import Objective
from alignkit.engine.reduction import Layout
from alignkit.functional import masked_sum
from alignkit.groups import Groups
from alignkit.optimizers import Term
from alignkit.registry.host import default_host
from trl_parity.data import LONGEST, PAIRS, Data


def pair_tensors(data: Data, chosen: Tensor | None = None) -> dict[str, Tensor]:
    """The tensors of pairs; `chosen` [PAIRS] says where not the first response of a pair is the better one."""
    first = torch.ones(PAIRS, dtype=torch.bool) if chosen is None else chosen
    rows = {"chosen": torch.arange(PAIRS) + PAIRS * ~first, "rejected": torch.arange(PAIRS) + PAIRS * first}
    sums = {"": data.logprobs(data.weights), "ref_": data.logprobs(data.reference)}
    logprobs = {
        f"{prefix}{side}_logprobs": masked_sum(values, data.mask, 1)[places]
        for prefix, values in sums.items()
        for side, places in rows.items()
    }
    lengths = {f"{side}_lengths": data.mask.sum(1)[places] for side, places in rows.items()}
    return {**logprobs, **lengths, "preference_prob": torch.ones(PAIRS, dtype=data.weights.dtype)}


def token_tensors(data: Data) -> dict[str, Tensor]:
    """The tensors of tokens, with advantages that are the same on every token of a response."""
    return {
        "logprobs": data.logprobs(data.weights),
        "old_logprobs": data.logprobs(data.old),
        "ref_logprobs": data.logprobs(data.reference),
        "response_mask": data.mask,
        "advantages": data.advantages.unsqueeze(1) * data.mask,
    }


def reduced(
    data: Data, loss: str | Callable[..., Any], tensors: Mapping[str, Tensor], terms: Mapping[str, Term], name: str = ""
) -> Tensor:
    """A loss with its declared reduction, as the engine computes a step."""
    better = torch.arange(data.rows) < PAIRS
    masks = {"response_mask": data.mask, "chosen_mask": data.mask & better.unsqueeze(1)}
    layout = Layout(masks, torch.arange(PAIRS).repeat(2), torch.arange(PAIRS), PAIRS)
    counts = {"sequence": data.rows, "response": data.rows, "group": PAIRS, "pair": PAIRS, "pair_group": PAIRS}

    def count(kind: str, mask: str | None) -> float:
        return float(masks[mask or "response_mask"].sum()) if kind == "token" else float(counts[kind])

    bound = default_host().build("loss", loss)
    total, _ = Objective(bound, terms, name or "loss", open=True)(tensors, layout, count)
    assert total is not None
    return total


def of_pairs(loss: str, optimizer: str = "dpo", **changed: Any) -> Callable[[Data], Tensor]:
    """A loss of pairs with its optimizer's reduction."""
    terms = {"loss": default_host().build("optimizer", optimizer).terms()["loss"]}
    return lambda data: reduced(data, loss, pair_tensors(data) | changed, terms)


def without_reference(loss: str) -> Callable[[Data], Tensor]:
    """A loss that asks for a reference, under one that finds every response equally likely."""
    zeros = torch.zeros(PAIRS)
    return lambda data: of_pairs(
        loss, ref_chosen_logprobs=zeros.to(data.weights), ref_rejected_logprobs=zeros.to(data.weights)
    )(data)


def of_tokens(optimizer: str) -> Callable[[Data], Tensor]:
    """A policy gradient: the optimizer's loss, its further losses (the KL), and its reductions."""

    def compute(data: Data) -> Tensor:
        made = default_host().build("optimizer", optimizer)
        terms, tensors = made.terms(), token_tensors(data)
        total = reduced(data, made.loss, tensors, terms)
        for name, loss in made.extra_losses().items():
            total = total + reduced(data, loss, tensors, terms, name)
        return total

    return compute


def our_kto(data: Data, loss: str, baseline: bool = True) -> Tensor:
    from alignkit_dpo.kto import kl_baseline

    mismatched = (data.logprobs(w, data.kl_ids) for w in (data.weights, data.reference))
    z0 = kl_baseline(*mismatched, data.kl_mask) * baseline
    labels = (torch.arange(data.rows) < PAIRS).to(data.weights.dtype)
    tensors = token_tensors(data) | {"labels": labels, "kl_baseline": z0.expand(data.rows)}
    terms = {"loss": default_host().build("optimizer", "kto").terms()["loss"]}
    return reduced(data, loss, tensors, terms)


def our_orpo(data: Data) -> Tensor:
    """The odds-ratio half: the whole loss less its NLL."""
    whole, nll = of_pairs("orpo")(data), reduced(data, "chosen_nll", pair_tensors(data), {"loss": Term()})
    return whole - nll


def our_rloo(data: Data) -> Tensor:
    """REINFORCE on the policy's own samples: there is no older policy."""
    optimizer = default_host().build("optimizer", "rloo")
    tensors = token_tensors(data) | {"old_logprobs": data.logprobs(data.weights).detach()}
    return reduced(data, optimizer.loss, tensors, optimizer.terms())


def our_nll_of_chosen(data: Data) -> Tensor:
    chosen = {"logprobs": data.logprobs(data.weights)}
    return reduced(data, "alignkit/nll", chosen, {"loss": Term(reduction="token", mask="chosen_mask")})


def our_reward_loss(data: Data, scores: Tensor, loss: str, margin: Tensor | None = None) -> Tensor:
    chosen, rejected = scores.chunk(2)
    tensors = {
        "chosen_rewards": chosen,
        "rejected_rewards": rejected,
        "margin": torch.zeros_like(chosen) if margin is None else margin,
    }
    return reduced(data, loss, tensors, {"loss": Term(reduction="group")})


def scored(values: list[list[float]]) -> Groups:
    """One prompt for each row of values, with a response and its reward "r" for each of them."""
    rows = [{"prompt": f"{i}", "responses": [f"{i} {k}" for k in range(len(row))]} for i, row in enumerate(values)]
    return Groups.from_rows(rows).with_rewards("r", values)


def our_advantages(optimizer: str, groups: int) -> Callable[[Data], Tensor]:
    """What `prepare` of an optimizer makes of `data.scores`: one advantage per response."""

    def compute(data: Data) -> Tensor:
        made = default_host().build("optimizer", optimizer)
        known = {
            "rewards": data.scores,
            "present": torch.ones(data.rows, dtype=torch.bool),
            "logprobs": data.logprobs(data.weights).detach(),
            "ref_logprobs": data.logprobs(data.reference),
            "response_mask": data.mask,
            "max_new_tokens": LONGEST,
        }
        groups_of = scored(data.scores.view(groups, -1).tolist())
        batch = made.prepare(groups_of, {}, **{name: known[name] for name in made.prepare_arguments()})
        return batch.tensors["advantages"][:, 0]

    return compute


def our_online_dpo(data: Data, loss: str) -> Tensor:
    """The optimizer says which of two samples is the better one; the loss follows."""
    optimizer = default_host().build("optimizer", "online_dpo")
    batch = optimizer.prepare(scored(data.scores.view(2, PAIRS).T.tolist()), {}, reward_name="r")
    chosen = torch.tensor([row["ranks"][0] == 1 for row in batch.groups])
    return reduced(data, loss, pair_tensors(data, chosen), {"loss": optimizer.terms()["loss"]})
