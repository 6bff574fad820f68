"""What the suite hands to methods: the reward, who compares two responses, and the data of methods that do not sample.

Labels are soft, sigma(r_i - r_j) of a Bradley-Terry judge, so that what is learned from them is the reward and not the
noise of labels; a method that takes hard ones only gets labels drawn in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from alignkit.plugin import (
    Annotator,
    ChatFormat,
    ConfigError,
    DataError,
    Groups,
    Reward,
    Scores,
    class_code,
    plain,
    stream_key,
    uniforms,
)
from alignkit_enumerable.problem import END, PROMPTS, Problem, listed, prompts, tokenizer

NEIGHBOURS = 4
"""How many responses after it, in the order of rewards and around, each response is compared with, and as many before;
each step is twice as wide as the one before it."""
LABELS = 8
"""Rows of a prompt by which a probability of being good is told."""


@dataclass(frozen=True)
class TableReward(Reward):
    """The reward of the problem, looked up.

    Args:
        problem: whose.
    """

    problem: Problem
    name: str = "reward"

    def score(self, groups: Groups) -> Scores:
        values: list[list[float | None]] = [list(row) for row in rewards_of(groups, self.problem)]
        return Scores(values, [[None] * len(row) for row in values])

    def key(self) -> Any:
        return {"enumerable": plain(self.problem), **class_code(type(self))}


def rewards_of(groups: Groups, problem: Problem) -> list[list[float]]:
    """[groups][K] the rewards of sampled responses.

    Raises:
        DataError: responses that are not the problem's.
    """
    rewards, found = problem.rewards().tolist(), []
    for number, row in enumerate(groups):
        try:
            ids = row["response_ids"]
            found.append([rewards[listed(row["prompt"][-1]["content"])][problem.tree.number(each)] for each in ids])
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(
                "not a prompt and responses of the problem",
                where=f"suite enumerable, row {number}",
                remedy="sample from a policy of this suite, of the same length",
            ) from error
    return found


@dataclass(frozen=True)
class BradleyTerry(Annotator):
    """Says which of two responses is better, and how sure it is: sigma of the difference of their rewards.

    Args:
        problem: whose rewards.
    """

    problem: Problem
    dimensions: ClassVar[tuple[str, ...]] = ("preference",)

    def annotate(self, groups: Groups, seed: int = 0) -> Mapping[str, Groups]:
        """Rank by reward; two responses also get the probability that the first of the ranking is better."""
        each = iter(rewards_of(groups, self.problem))
        return {"preference": groups.map_rows(lambda _: preference(next(each)))}

    def key(self) -> Any:
        return {"bradley_terry": plain(self.problem), **class_code(type(self))}


def preference(rewards: Sequence[float]) -> dict[str, Any]:
    """The columns of a comparison.

    Args:
        rewards: [K]; a probability is said of two.
    """
    ranks = [1 + sum(other > reward for other in rewards) for reward in rewards]
    prob = 1 / (1 + math.exp(-abs(rewards[0] - rewards[1]))) if len(rewards) == 2 else None
    return {"ranks": ranks, "preference_prob": prob}


# -- for methods that learn from what they are given -------------------------------------------------------------------


def pairs(problem: Problem) -> Groups:
    """Each response against eight others, with soft labels."""
    rewards, rows = problem.rewards(), []
    for prompt, row in enumerate(rewards):
        order = row.argsort().tolist()
        apart = [2**k for k in range(NEIGHBOURS)]
        chosen = {tuple(sorted((order[i], order[(i + d) % len(order)]))) for i in range(len(order)) for d in apart}
        for a, b in sorted(pair for pair in chosen if pair[0] != pair[1]):
            rows.append({**_answered(problem, prompt, (a, b)), **preference([float(row[a]), float(row[b])])})
    return Groups.from_rows(rows)


def draws(problem: Problem) -> Groups:
    """The same comparisons with hard labels, each drawn once in proportion: for losses that take no soft ones."""
    soft = pairs(problem)
    keys = np.full(len(soft), stream_key("enumerable", problem.seed, "draws"), dtype=np.uint64)
    each = iter(uniforms(keys, np.arange(len(soft), dtype=np.uint64)).tolist())

    def drawn(row: dict[str, Any]) -> dict[str, Any]:
        turned = next(each) >= row["preference_prob"]
        return {"ranks": row["ranks"][::-1] if turned else row["ranks"], "preference_prob": None}

    return soft.map_rows(drawn)


def labels(problem: Problem) -> Groups:
    """All responses to a prompt `LABELS` times, each called good in a share of sigma(r) of them."""
    every = range(len(problem.tree.responses))
    good = good_counts(problem).tolist()
    rows = [
        {**_answered(problem, prompt, every), "labels": [k < count for count in good[prompt]]}
        for k in range(LABELS)
        for prompt in range(len(PROMPTS))
    ]
    return Groups.from_rows(rows)


def good_counts(problem: Problem) -> Tensor:
    """[prompts, responses] in how many of the `LABELS` rows a response is good."""
    return (torch.sigmoid(problem.rewards()) * LABELS).round().long()


def _answered(problem: Problem, prompt: int, numbers: Sequence[int]) -> dict[str, Any]:
    chat = ChatFormat(tokenizer())
    ids = [list(problem.tree.responses[n]) for n in numbers]
    return {
        "prompt": PROMPTS[prompt],
        "responses": [chat.decode(each) for each in ids],
        "response_ids": ids,
        "finished": [each[-1] == END for each in ids],
        "tokenizer": chat.fingerprint,
    }


FORMS = {"pairs": pairs, "draws": draws, "labels": labels}
"""What a method may be given, by name."""


def form_of(asks: Collection[str]) -> str:
    """Which of `FORMS` a loss learns from, by the tensors that it asks for."""
    if "labels" in asks:
        return "labels"
    return "pairs" if "preference_prob" in asks else "draws"


def data_of(problem: Problem, method: Any, asks: Collection[str]) -> Groups:
    """What a method learns from.

    Args:
        problem: the problem.
        method: the optimizer.
        asks: the tensors of its loss.

    Raises:
        ConfigError: a number of prompts that is not whole.
    """
    if not method.samples_per_prompt:
        return FORMS[form_of(asks)](problem)
    rows = max(method.prompts_per_round, len(PROMPTS))
    if rows % len(PROMPTS):
        raise ConfigError(
            f"prompts_per_round={rows} with {len(PROMPTS)} prompts",
            where="suite enumerable",
            effect="One of them would weigh more than the other.",
            remedy=f"use a multiple of {len(PROMPTS)}",
        )
    return prompts(rows)
