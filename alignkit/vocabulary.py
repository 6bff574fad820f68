"""The tensors a loss may ask for by name: the one place that says what each is and which shape it has.

Every log-probability is log_softmax(logits / T) of the token that was taken, before any truncation (top-p and the
like), with the same temperature T in rollout, reference and update. Reference and old tensors arrive detached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["token", "response", "pair", "group", "mask"]

_SHAPES = {
    "token": "[responses, tokens]",
    "mask": "[responses, tokens]",
    "response": "[responses]",
    "pair": "[pairs]",
    "group": "[groups, K]",
}


@dataclass(frozen=True)
class TensorSpec:
    """What a loss receives under one name.

    Args:
        shape: its axes, as text.
        level: what one element belongs to.
        doc: what it holds, with its unit.
    """

    shape: str
    level: Level
    doc: str


def _spec(level: Level, doc: str, shape: str = "") -> TensorSpec:
    return TensorSpec(shape or _SHAPES[level], level, doc)


_TOKENS = {
    "logprobs": _spec(
        "token", "log_softmax(logits / T) of the token taken, before truncation, under the policy being trained; nats."
    ),
    "old_logprobs": _spec("token", "`logprobs` of the policy that sampled, from before the round's first step; nats."),
    "ref_logprobs": _spec("token", "`logprobs` under the reference; nats."),
    "advantages": _spec("token", "How much better the token was than expected, in units of the reward."),
    "returns": _spec("token", "The target of the value model: reward still to come from this token on."),
    "values": _spec("token", "What the value model being trained predicts for `returns`."),
    "old_values": _spec("token", "`values` from before the round's first step."),
    "entropy": _spec("token", "Entropy of the whole next-token distribution at temperature T; nats."),
    "mean_logprobs": _spec(
        "token", "Mean over the vocabulary of log_softmax(logits / T) at the token's place (label smoothing); nats."
    ),
    "response_mask": _spec(
        "mask", "True on the tokens that are learned from; the other tensors mean nothing elsewhere."
    ),
}

_PAIRS = {
    "chosen_logprobs": _spec("pair", "Log-probability of the preferred response: sum over its tokens; nats."),
    "rejected_logprobs": _spec("pair", "Log-probability of the other response: sum over its tokens; nats."),
    "ref_chosen_logprobs": _spec("pair", "`chosen_logprobs` under the reference; nats."),
    "ref_rejected_logprobs": _spec("pair", "`rejected_logprobs` under the reference; nats."),
    "chosen_lengths": _spec("pair", "Tokens learned from in the preferred response."),
    "rejected_lengths": _spec("pair", "Tokens learned from in the other response."),
    "chosen_rewards": _spec("pair", "Raw score of the preferred response by the reward model being trained."),
    "rejected_rewards": _spec("pair", "Raw score of the other response by the reward model being trained."),
    "rating": _spec("pair", "Level of the comparison: 0 significantly better to 3 negligibly better, -1 unknown."),
    "margin": _spec("pair", "How far apart the two scores should be, from the rating; 0 where none was given."),
    "preference_prob": _spec("pair", "Probability that the preferred response is better (soft label); 1 if not given."),
    "chosen_safe": _spec("pair", "True where the preferred response was judged safe."),
    "rejected_safe": _spec("pair", "True where the other response was judged safe."),
}

_GROUPS = {
    "rewards": _spec("group", "Raw scores of the K responses to one prompt; padded where `group_mask` is False."),
    "ranks": _spec("group", "1 is best, equal ranks tie; padded where `group_mask` is False."),
    "group_mask": _spec("mask", "True on responses that exist, for groups of unequal size.", shape="[groups, K]"),
}

_RESPONSES = {"labels": _spec("response", "What was said of a response on its own: 1 good, 0 bad, -1 unknown.")}

VOCABULARY: dict[str, TensorSpec] = {**_TOKENS, **_RESPONSES, **_PAIRS, **_GROUPS}
