"""Each method's own optimum: what it would become with samples without end, found on a table and not by the method.

No one number ranks methods whose objectives differ, so each is measured against the point that it makes for:

- `regularised`: E r - beta KL, with the method's own beta. pi* = ref e^{r / beta} / Z. gap = 1 - share of J.
- `normalised`: advantages normalised within a group, and the gradient of k3, which is that of the forward KL: the
  gradient of nothing, so the point where the expected step is 0. gap = KL(own || pi) / KL(own || ref).
- `given`: a loss on given data: the least value that any table has. gap = (loss - least) / (loss of ref - least).
- `best_of`: the distribution of the best of K samples. `above`: of distinct samples above a quantile of the rewards.
  gap = KL(own || pi) / KL(own || what was sampled from).

A method that is not known here is measured by the problem's J, as `objective`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignkit.plugin import Groups, k3
from alignkit_enumerable.exact import Landscape, heated, kl, responses_of, tokens_of
from alignkit_enumerable.given import Given
from alignkit_enumerable.problem import END, Tree

STILL = 1e-16
"""Squared length of the expected step at which a fixed point counts as found."""
ADAM, NEWTON = 600, 20
"""Steps on the way to it."""


@dataclass(frozen=True)
class Case:
    """What was done, and by what.

    Args:
        landscape: the problem, seen from the reference.
        tree: of its responses.
        method: fields of the optimizer by name, with "name", the one that it is registered under.
        loss: (registered name, its hyper-parameters).
        policy: [prompts, states, tokens] table of what was made.
        sampled: the same of what it was made from.
        reference: the same of the reference.
        data: what a method that does not sample was given.
        build: makes a loss of its name and hyper-parameters.
    """

    landscape: Landscape
    tree: Tree
    method: Mapping[str, Any]
    loss: tuple[str, Mapping[str, Any]]
    policy: Tensor
    sampled: Tensor
    reference: Tensor
    data: Groups | None = None
    build: Callable[[str, Mapping[str, Any]], Any] | None = None


@dataclass(frozen=True)
class Own:
    """A method's own optimum, and how far it is.

    Args:
        kind: of objective, see the module.
        gap: 0 at the optimum, 1 where it started.
        logprobs: [prompts, responses] of the optimum; None where there is no one distribution.
    """

    kind: str
    gap: float
    logprobs: Tensor | None = field(default=None, repr=False)


def own(case: Case) -> Own:
    """The optimum of what was done, by the name of its optimizer."""
    return KINDS.get(case.method["name"], objective)(case)


def objective(case: Case) -> Own:
    """The problem's J, for whatever is not known here."""
    return _by_objective(case, case.landscape.beta, "objective")


def regularised(case: Case) -> Own:
    return _by_objective(case, float(case.method["kl_coef"]), "regularised")


def ranked_by_itself(case: Case) -> Own:
    """Comparisons of its own samples, labelled by a Bradley-Terry judge: `dpo`'s least loss is at pi*."""
    name, settings = case.loss
    return _by_objective(case, float(settings["beta"]), "regularised") if name == "dpo" else objective(case)


def _by_objective(case: Case, beta: float, kind: str) -> Own:
    scape, best = case.landscape, case.landscape.optimum(beta)
    before, after, most = (float(scape.objective(p, beta).mean()) for p in (scape.ref, _said(case), best))
    return Own(kind, (most - after) / (most - before), best)


def _said(case: Case) -> Tensor:
    return responses_of(case.policy, case.tree)


# -- groups and forward KL ---------------------------------------------------------------------------------------------


def normalised(case: Case) -> Own:
    """The fixed point of `grpo` and its kin; without a KL the best response alone."""
    beta = float(case.method["kl_coef"])
    if beta == 0:
        return _by_objective(case, 0.0, "regularised")
    at = _from_own(case, fixed_point(case.landscape, case.tree, case.reference, case.method), case.reference)
    return Own("normalised", *at)


def fixed_point(scape: Landscape, tree: Tree, reference: Tensor, method: Mapping[str, Any]) -> Tensor:
    """[prompts, responses]: where E[-A grad log pi + beta grad k3], reduced as the method reduces, is 0.

    Adam first, then Newton's method with a Jacobian by differences, since the step is the gradient of nothing.

    Args:
        scape: the problem.
        tree: of the responses.
        reference: [prompts, states, tokens] log-probs.
        method: `scale`, `reduction`, `kl_coef`, `samples_per_prompt`.
    """

    def step_at(logits: Tensor) -> Tensor:
        moved = logits.view_as(reference).clone().requires_grad_(True)
        total = expected_step(scape, tree, reference, torch.log_softmax(moved, -1), method)
        return torch.autograd.grad(total, moved)[0].flatten()

    logits = reference.flatten().clone()
    steps = torch.optim.Adam([logits], lr=0.05)
    for _ in range(ADAM):
        logits.grad = step_at(logits)
        steps.step()
    for _ in range(NEWTON):
        here = step_at(logits)
        if float(here.square().sum()) < STILL:
            break
        logits = _newton(step_at, logits, here)
    return responses_of(torch.log_softmax(logits.view_as(reference), -1), tree)


def _newton(step_at: Callable[[Tensor], Tensor], logits: Tensor, here: Tensor) -> Tensor:
    """The next point: the whole step of Newton's method, or as much of it as makes the field shorter."""
    apart = torch.eye(len(logits), dtype=logits.dtype) * 1e-6
    jacobian = torch.stack([(step_at(logits + e) - step_at(logits - e)) / 2e-6 for e in apart], 1)
    way = torch.linalg.lstsq(jacobian, -here.unsqueeze(1), driver="gelsd", rcond=1e-9).solution.squeeze(1)
    scale = 1.0
    while scale > 1e-4:
        if step_at(logits + scale * way).norm() < here.norm():  # not so where it is NaN: a step beyond all numbers
            return logits + scale * way
        scale /= 2
    return logits


def expected_step(
    scape: Landscape, tree: Tree, reference: Tensor, logprobs: Tensor, method: Mapping[str, Any]
) -> Tensor:
    """A scalar whose gradient is the method's expected step in `logprobs` [prompts, states, tokens].

    Of n samples the mean advantage is (1 - 1/n) of the true one, since each stands in its own baseline.
    """
    said = tokens_of(logprobs, tree)
    probs = said.sum(-1).detach().exp()
    centred = scape.rewards - (probs * scape.rewards).sum(-1, keepdim=True)
    if method["scale"]:
        centred = centred / (probs * centred.square()).sum(-1, keepdim=True).sqrt()
    advantages = centred * (1 - 1 / method["samples_per_prompt"])
    terms = -advantages.unsqueeze(-1) * said + method["kl_coef"] * k3(said, tokens_of(reference, tree)) * tree.mask
    lengths = tree.mask.sum(-1)
    weights = 1 / lengths if method["reduction"] == "sequence" else torch.ones_like(lengths)
    return (probs * weights * terms.sum(-1)).sum(-1).mean()


# -- what was given ----------------------------------------------------------------------------------------------------


def given(case: Case) -> Own:
    """The least loss of a table on the data."""
    if case.data is None or case.build is None:
        return objective(case)
    problem = Given.of(case.data, case.tree, case.build(*case.loss), case.reference)
    best = problem.least()
    start, after, least = (problem.loss(logprobs) for logprobs in (case.sampled, case.policy, best))
    return Own("given", (after - least) / (start - least), responses_of(best, case.tree))


# -- imitation ---------------------------------------------------------------------------------------------------------


def best_of(case: Case) -> Own:
    """The best of K samples."""
    drawn = responses_of(heated(case.sampled, float(case.method["temperature"])), case.tree).exp()
    may = _eligible(case)
    best = best_of_n(drawn, case.landscape.rewards, int(case.method["samples_per_prompt"]), may)
    return Own("best_of", *_from_own(case, best.log(), case.sampled))


def best_of_n(probs: Tensor, rewards: Tensor, n: int, may: Tensor) -> Tensor:
    """[prompts, responses] the chance of each to be the best of n: F(r)^n - F(r-)^n, given that one of them may win.

    Args:
        probs: [prompts, responses] of a sample.
        rewards: [prompts, responses], no two of a prompt alike.
        n: samples.
        may: [responses] bool, which may win.
    """
    order = torch.where(may, rewards, -torch.inf).argsort(dim=-1)
    up_to = probs.gather(1, order).cumsum(-1).clamp(max=1)
    below = torch.cat([torch.zeros_like(up_to[:, :1]), up_to[:, :-1]], 1)
    won = torch.zeros_like(probs).scatter(1, order, up_to**n - below**n) * may
    return won / won.sum(-1, keepdim=True)


def above(case: Case) -> Own:
    """Distinct samples above the last threshold."""
    method = case.method
    drawn = responses_of(heated(case.sampled, float(method["temperature"])), case.tree).exp()
    there = (1 - (1 - drawn) ** int(method["samples_per_prompt"])) * _eligible(case)
    least = _threshold(case.landscape.rewards, there, method)
    kept = there * (case.landscape.rewards >= least)
    return Own("above", *_from_own(case, (kept / kept.sum(-1, keepdim=True)).log(), case.sampled))


def _threshold(rewards: Tensor, weights: Tensor, method: Mapping[str, Any]) -> float:
    """The lowest reward that is kept: of the last Improve, over the samples of all prompts."""
    if method["thresholds"]:
        return float(rewards[rewards > method["thresholds"][-1]].min())
    values, order = rewards.flatten().sort()
    reached = weights.flatten()[order].cumsum(0) / weights.sum()
    return float(values[reached > method["quantiles"][-1]].min())


def _eligible(case: Case) -> Tensor:
    """[responses] bool: finished, where the method asks for it."""
    ended = torch.tensor([response[-1] == END for response in case.tree.responses])
    return ended if case.method["require_finished"] else torch.ones_like(ended)


def _from_own(case: Case, best: Tensor, start: Tensor) -> tuple[float, Tensor]:
    """(gap, the optimum): KL(own || pi) as a share of where it started."""
    return float(kl(best, _said(case)).mean() / kl(best, responses_of(start, case.tree)).mean()), best


KINDS: Mapping[str, Callable[[Case], Own]] = {
    **dict.fromkeys(("ppo", "ppo_llama2", "rloo", "reinforce_pp"), regularised),
    **dict.fromkeys(("grpo", "dapo"), normalised),
    **dict.fromkeys(("dpo", "kto"), given),
    "online_dpo": ranked_by_itself,
    "rejection_sampling": best_of,
    "rest": above,
}
"""By the optimizer's name."""
