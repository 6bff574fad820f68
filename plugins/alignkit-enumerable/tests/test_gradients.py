"""Every optimizer's first gradient in the engine against its formula, written out here, on the same samples.

The formulas use nothing of the library: log-probs by transformers alone, one sequence at a time, in float64; advantages
by loops. The policy is not the reference, so that every term of the KL counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_enumerable.parts import BradleyTerry, TableReward, labels, pairs
from alignkit_enumerable.problem import PROMPTS, Problem, listed, model, prompts, tokenizer
from alignkit_enumerable.suite import Start
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignkit import Groups, Run
from alignkit.testing import first_gradients

PROBLEM = Problem()
BETA = 0.5
USER, END, ASSISTANT = 2, 1, 3


@dataclass
class Known:
    """What formulas are written on: responses in order, their groups, log-probs under both policies.

    Args:
        said: [responses][tokens] with gradients.
        before: the same under the reference, without.
        rewards: [responses].
        groups: numbers of the responses of each row.
        prompt: number of the prompt of each response.
        rows: the rows.
        head: of the values: weight and bias, where there is one.
        states: [responses][tokens, width] hidden states that predict each token.
    """

    said: list[Tensor]
    before: list[Tensor]
    rewards: list[float]
    groups: list[list[int]]
    prompt: list[int]
    rows: list[dict[str, Any]]
    net: Any
    states: list[Tensor] = field(default_factory=list)

    @property
    def kl(self) -> list[Tensor]:
        """[responses][tokens] log pi - log ref, without gradients."""
        return [(a - b).detach() for a, b in zip(self.said, self.before, strict=True)]

    @property
    def tokens(self) -> int:
        return sum(len(each) for each in self.said)


def ids_of(prompt: str) -> list[int]:
    return [USER, *tokenizer().convert_tokens_to_ids(prompt.split()), END, ASSISTANT]


def logprobs_of(net: Any, prompt: str, response: list[int]) -> tuple[Tensor, Tensor]:
    """([tokens] log-probs, [tokens, width] states) of one sequence, by a plain forward pass."""
    ids = [*ids_of(prompt), *response]
    out = net(input_ids=torch.tensor([ids]), output_hidden_states=True)
    first = len(ids) - len(response) - 1
    states = out.hidden_states[-1][0, first:-1]
    return torch.log_softmax(out.logits[0, first:-1], -1)[range(len(response)), response], states


def known_of(groups: Groups, policy_seed: int) -> Known:
    net = model(policy_seed).double().requires_grad_(True)
    reference = model(PROBLEM.seed).double().requires_grad_(False)
    flat = [(listed(row["prompt"][0]["content"]), ids) for row in groups for ids in row["response_ids"]]
    found = {key: logprobs_of(net, PROMPTS[key[0]], list(key[1])) for key in {(p, tuple(ids)) for p, ids in flat}}
    past = {key: logprobs_of(reference, PROMPTS[key[0]], list(key[1]))[0] for key in found}
    keys = [(p, tuple(ids)) for p, ids in flat]
    table = PROBLEM.rewards()
    count = iter(range(len(flat)))
    return Known(
        said=[found[key][0] for key in keys],
        before=[past[key] for key in keys],
        rewards=[float(table[p, PROBLEM.tree.responses.index(ids)]) for p, ids in keys],
        groups=[[next(count) for _ in row["response_ids"]] for row in groups],
        prompt=[p for p, _ in flat],
        rows=list(groups),
        net=net,
        states=[found[key][1] for key in keys],
    )


# -- the formulas ------------------------------------------------------------------------------------------------------


def whitened(advantages: list[Tensor]) -> list[Tensor]:
    """Over all tokens, by the biased deviation."""
    flat = torch.cat(advantages)
    return [(a - flat.mean()) / ((flat - flat.mean()) ** 2).mean().add(1e-8).sqrt() for a in advantages]


def by_token(k: Known, advantages: list[Tensor]) -> Tensor:
    """-A pi / pi_old, averaged over the tokens of all responses; the first step's ratio is 1, its gradient is not 0."""
    terms = [-a * torch.exp(s - s.detach()) for a, s in zip(advantages, k.said, strict=True)]
    return torch.cat(terms).sum() / k.tokens


def to_go(k: Known, decay: float) -> list[Tensor]:
    """sum_i decay^(i - t) (r_i - beta KL_i), the score on the last token."""
    out = []
    for reward, kl in zip(k.rewards, k.kl, strict=True):
        per_token = [-BETA * float(x) for x in kl]
        per_token[-1] += reward
        sums = [sum(decay ** (i - t) * per_token[i] for i in range(t, len(per_token))) for t in range(len(per_token))]
        out.append(torch.tensor(sums, dtype=torch.float64))
    return out


def ppo(k: Known) -> Tensor:
    """The values start at 0, so that GAE is the discounted sum of what is still to come; half its square is the loss
    of the values, whose gradient reaches the head alone."""
    raw = to_go(k, 0.95)
    head = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    k.net.head = {"value_head.linear.weight": head, "value_head.linear.bias": bias}
    errors = [(s @ head + bias - r) ** 2 / 2 for s, r in zip(k.states, raw, strict=True)]
    return by_token(k, whitened(raw)) + 0.1 * torch.cat(errors).sum() / k.tokens


def reinforce_pp(k: Known) -> Tensor:
    return by_token(k, whitened(to_go(k, 1.0)))


def rloo(k: Known) -> Tensor:
    scores = [r - BETA * float(kl.sum()) for r, kl in zip(k.rewards, k.kl, strict=True)]
    total = torch.zeros((), dtype=torch.float64)
    for members in k.groups:
        for i in members:
            others = [scores[j] for j in members if j != i]
            total = total - (scores[i] - sum(others) / len(others)) * k.said[i].sum()
    return total / len(k.said)


def grouped(k: Known, scale: bool, reduce: Callable[[Known, list[Tensor]], Tensor]) -> Tensor:
    terms: list[Tensor] = [torch.zeros(())] * len(k.said)
    for members in k.groups:
        mean = sum(k.rewards[i] for i in members) / len(members)
        spread = math.sqrt(sum((k.rewards[i] - mean) ** 2 for i in members) / (len(members) - 1)) + 1e-4
        for i in members:
            advantage = (k.rewards[i] - mean) / (spread if scale else 1)
            gap = k.before[i] - k.said[i]
            ratio = torch.exp(k.said[i] - k.said[i].detach())
            terms[i] = -advantage * ratio + BETA * (torch.exp(gap) - gap - 1)
    return reduce(k, terms)


def grpo(k: Known) -> Tensor:
    return grouped(k, True, lambda k, terms: sum(t.mean() for t in terms) / len(terms))  # type: ignore[return-value]


def dr_grpo(k: Known) -> Tensor:
    return grouped(k, False, lambda k, terms: sum(t.sum() / 2 for t in terms) / len(terms))  # type: ignore[return-value]


def dapo(k: Known) -> Tensor:
    return grouped(k, True, lambda k, terms: torch.cat(terms).sum() / k.tokens)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def two_of(k: Known) -> Iterator[tuple[int, int, float]]:
    """(better, worse, soft label) of each row of two that differ."""
    for a, b in k.groups:
        better, worse = (a, b) if k.rewards[a] > k.rewards[b] else (b, a)
        if k.rewards[a] != k.rewards[b]:
            yield better, worse, sigmoid(k.rewards[better] - k.rewards[worse])


def over_pairs(k: Known, loss: Callable[[int, int, float], Tensor]) -> Tensor:
    return torch.stack([loss(*each) for each in two_of(k)]).mean()


def ratio_gap(k: Known, w: int, l: int) -> Tensor:  # noqa: E741
    return (k.said[w].sum() - k.before[w].sum()) - (k.said[l].sum() - k.before[l].sum())


def dpo(k: Known) -> Tensor:
    def loss(w: int, l: int, p: float) -> Tensor:  # noqa: E741
        h = BETA * ratio_gap(k, w, l)
        return -p * logsigmoid(h) - (1 - p) * logsigmoid(-h)

    return over_pairs(k, loss)


def ipo(k: Known) -> Tensor:
    def loss(w: int, l: int, p: float) -> Tensor:  # noqa: E741
        h, target = ratio_gap(k, w, l), 1 / (2 * BETA)
        return p * (h - target) ** 2 + (1 - p) * (h + target) ** 2

    return over_pairs(k, loss)


def simpo(k: Known) -> Tensor:
    def loss(w: int, l: int, p: float) -> Tensor:  # noqa: E741
        gap = 2.0 * (k.said[w].mean() - k.said[l].mean())
        return -p * logsigmoid(gap - 1.0) - (1 - p) * logsigmoid(-gap - 1.0)

    return over_pairs(k, loss)


def orpo(k: Known) -> Tensor:
    def odds(i: int) -> Tensor:
        p = torch.exp(k.said[i].mean())
        return torch.log(p / (1 - p))

    def loss(w: int, l: int, _p: float) -> Tensor:  # noqa: E741
        return -k.said[w].mean() - 0.1 * logsigmoid(odds(w) - odds(l))

    return over_pairs(k, loss)


def kto(k: Known) -> Tensor:
    """The baseline is measured on the responses of the other prompt, which here are those of the first row of it."""
    apart = [
        (logprobs_of(k.net, PROMPTS[1 - k.prompt[i]], list(ids))[0] - past).sum().item()
        for i, ids, past in ((i, ids, _reference(1 - k.prompt[i], ids)) for i, ids in enumerate(_all_ids(k)))
    ]
    baseline = max(0.0, sum(apart) / len(apart))
    good = [label for row in k.rows for label in row["labels"]]
    terms = []
    for said, before, label in zip(k.said, k.before, good, strict=True):
        value = BETA * ((said - before).sum() - baseline)
        terms.append(torch.sigmoid(-value if label else value))
    return torch.stack(terms).mean()


def _all_ids(k: Known) -> list[list[int]]:
    return [list(ids) for row in k.rows for ids in row["response_ids"]]


def _reference(prompt: int, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return logprobs_of(model(PROBLEM.seed).double(), PROMPTS[prompt], ids)[0]


def rejection_sampling(k: Known) -> Tensor:
    best = [max(members, key=lambda i: k.rewards[i]) for members in k.groups]
    return -sum(k.said[i].sum() for i in best) / sum(len(k.said[i]) for i in best)  # type: ignore[return-value]


def rest(k: Known) -> Tensor:
    """Each response of a row once; kept is what lies at or above the value in the middle of all."""
    texts = _all_ids(k)
    distinct = [
        i for members in k.groups for n, i in enumerate(members) if texts[i] not in [texts[j] for j in members[:n]]
    ]
    middle = sorted(k.rewards[i] for i in distinct)[len(distinct) // 2]
    kept = [i for i in distinct if k.rewards[i] >= middle]
    return -sum(k.said[i].sum() for i in kept) / sum(len(k.said[i]) for i in kept)  # type: ignore[return-value]


# -- the comparison ----------------------------------------------------------------------------------------------------

SAMPLED = "samples_per_prompt=16, prompts_per_round=0, batch_size=0, rounds=1, kl_coef=0.5"
ONCE = "batch_size=0, epochs=1, require_finished=False"
CASES: dict[str, tuple[str, Callable[[Known], Tensor]]] = {
    "ppo": (f"ppo({SAMPLED}, epochs=1, temperature=1.0)", ppo),
    "rloo": (f"rloo({SAMPLED})", rloo),
    "reinforce_pp": (f"reinforce_pp({SAMPLED})", reinforce_pp),
    "grpo": (f"grpo({SAMPLED})", grpo),
    "dr_grpo": (f"grpo({SAMPLED}, scale=False, reduction='constant', constant=2.0)", dr_grpo),
    "dapo": (f"dapo({SAMPLED})", dapo),
    "online_dpo": ("online_dpo(prompts_per_round=0, batch_size=0, rounds=1, temperature=1.0, loss=dpo(beta=0.5))", dpo),
    "dpo": ("dpo(batch_size=0, loss=dpo(beta=0.5))", dpo),
    "ipo": ("dpo(batch_size=0, loss=ipo(beta=0.5))", ipo),
    "simpo": ("dpo(batch_size=0, loss=simpo)", simpo),
    "orpo": ("dpo(batch_size=0, loss=orpo)", orpo),
    "kto": ("kto(batch_size=0, prompts_per_round=0, loss=kto(beta=0.5))", kto),
    "rejection_sampling": (f"rejection_sampling(samples_per_prompt=4, {ONCE}, temperature=1.0)", rejection_sampling),
    "rest": (f"rest(samples_per_prompt=8, {ONCE}, quantiles=[0.5])", rest),
}  # fmt: skip
OTHER = 3
"""Seed of the policy, which is not the reference."""


def data_for(name: str) -> Groups:
    if name in ("dpo", "ipo", "simpo", "orpo"):
        return pairs(PROBLEM).select(range(0, 456, 19))
    if name == "kto":
        return labels(PROBLEM).select([0, 1])
    return prompts(16) if name in ("online_dpo", "rejection_sampling", "rest") else prompts()


@pytest.mark.parametrize("name", CASES)
def test_the_engines_gradient_is_the_formulas(name: str, tmp_path: Path) -> None:
    spec, formula = CASES[name]
    data = data_for(name)
    given = data[0]["response_ids"] is not None
    judge: dict[str, Any] = {} if given else {"reward": TableReward(PROBLEM)}
    judge = {"annotator": BradleyTerry(PROBLEM)} if name == "online_dpo" else judge
    with Run(tmp_path, quiet=True, max_tokens=1 << 14, trainer={"accelerator": "cpu"}) as run:
        policy = run.stage(Start(Problem(seed=OTHER), name="policy"))
        reference = run.stage(Start(PROBLEM, name="v0"))
        with first_gradients() as seen:
            made = run.improve(policy, data, optimizer=spec, reference=reference, max_new_tokens=2, name="v1", **judge)
        known = known_of(data if given else made.rollouts.groups, OTHER)
    assert len(known.said) >= 16
    formula(known).backward()
    mine = {f"model.{n}": p.grad for n, p in known.net.named_parameters()}
    mine |= {n: p.grad.view_as(seen[n]) for n, p in getattr(known.net, "head", {}).items()}
    assert set(seen) == {n for n, g in mine.items() if g is not None}
    largest = max(float(g.abs().max()) for g in mine.values() if g is not None)
    assert largest > 1e-3
    for parameter, gradient in seen.items():
        torch.testing.assert_close(gradient.double(), mine[parameter], rtol=0, atol=1e-5 * largest)
