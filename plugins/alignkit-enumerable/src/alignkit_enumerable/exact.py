"""What a policy is worth, exactly: every response is listed, in float64.

A policy is a table: `[prompts, states, tokens]`, the log-probs of the next token in each state of the problem's tree.
Sums over the tokens of a response give `[prompts, responses]`. Averages over prompts give each the same weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignkit.plugin import Policy
from alignkit_enumerable.problem import PROMPTS, Problem, Tree


@torch.no_grad()
def table(policy: Policy, problem: Problem) -> Tensor:
    """[prompts, states, tokens] log-probs of a live policy, float64, at temperature 1."""
    tree = problem.tree
    with policy.generating() as model:
        return torch.stack([_next_tokens(model, policy.chat.encode_prompt(turns(p)), tree) for p in PROMPTS])


def turns(text: str) -> list[dict[str, Any]]:
    """The conversation that a prompt is."""
    return [{"role": "user", "content": text}]


def _next_tokens(model: Any, prompt: Sequence[int], tree: Tree) -> Tensor:
    """[states, tokens] after one prompt; states of one length share a forward pass."""
    found = []
    for length in sorted({len(state) for state in tree.states}):
        ids = [[*prompt, *state] for state in tree.states if len(state) == length]
        found.append(model(input_ids=torch.tensor(ids, device=model.device)).logits[:, -1].double().cpu())
    return torch.log_softmax(torch.cat(found), -1)


def heated(logprobs: Tensor, temperature: float) -> Tensor:
    """A table at another temperature."""
    return torch.log_softmax(logprobs / temperature, -1)


def tokens_of(logprobs: Tensor, tree: Tree) -> Tensor:
    """[prompts, responses, length]: the log-prob of each token taken, 0 behind a response's end."""
    return logprobs[:, tree.state, tree.token] * tree.mask


def responses_of(logprobs: Tensor, tree: Tree) -> Tensor:
    """[prompts, responses]: the log-prob of each response."""
    return tokens_of(logprobs, tree).sum(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """[prompts] KL(p || q) in nats of log-probs [prompts, responses]; what p never says counts nothing."""
    return torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(-1)


@dataclass(frozen=True)
class Landscape:
    """The problem as it is seen from the reference.

    Args:
        rewards: [prompts, responses].
        ref: [prompts, responses] log-probs of the reference.
        beta: of the KL.
    """

    rewards: Tensor
    ref: Tensor
    beta: float

    def reward(self, logprobs: Tensor) -> Tensor:
        """[prompts] E r."""
        return (logprobs.exp() * self.rewards).sum(-1)

    def objective(self, logprobs: Tensor, beta: float | None = None) -> Tensor:
        """[prompts] J = E r - beta KL(pi || reference)."""
        return self.reward(logprobs) - (self.beta if beta is None else beta) * kl(logprobs, self.ref)

    def optimum(self, beta: float | None = None) -> Tensor:
        """[prompts, responses] log of pi* = ref e^{r / beta} / Z; for a beta of 0 all on the best response."""
        beta = self.beta if beta is None else beta
        if beta == 0:
            best = self.rewards.argmax(-1, keepdim=True)
            return torch.full_like(self.ref, -torch.inf).scatter(1, best, 0.0)
        return torch.log_softmax(self.ref + self.rewards / beta, -1)

    def shares(self, logprobs: Tensor) -> Tensor:
        """[prompts] what each prompt adds to the share of the attainable J, times their number: the mean is the share:
        0 for the reference, 1 for pi*."""
        before, best = self.objective(self.ref), self.objective(self.optimum())
        return (self.objective(logprobs) - before) / (best - before).mean()

    def frontier(self, spent: float) -> float:
        """The largest mean E r at a mean KL of `spent` nats: that of ref e^{r / lambda} / Z at the lambda with this
        KL."""
        low, high = -12.0, 12.0  # log of 1 / lambda
        for _ in range(60):
            middle = (low + high) / 2
            found = torch.log_softmax(self.ref + self.rewards * torch.tensor(middle).double().exp(), -1)
            low, high = (middle, high) if float(kl(found, self.ref).mean()) < spent else (low, middle)
        return float(self.reward(found).mean())

    def frontier_curve(self, points: int = 33) -> list[tuple[float, float]]:
        """(KL, E r) of the best there is, from the reference to nearly the best response alone."""
        scales = torch.linspace(0, 4, points, dtype=torch.float64) ** 2
        each = [torch.log_softmax(self.ref + self.rewards * scale, -1) for scale in scales]
        return [(float(kl(p, self.ref).mean()), float(self.reward(p).mean())) for p in each]
