"""The names by which a method asks for what it needs, and what stands behind each: the one place that says so.

`VOCABULARY` holds the tensors of losses, `PREPARE` and `KEEP` what an optimizer's `prepare` and `keep` may name. Who
makes a tensor loops over them; nothing else lists names.

Every log-probability is log_softmax(logits / T) of the token that was taken, before any truncation (top-p and the
like), with the same temperature T in rollout, reference and update. Reference and old tensors arrive detached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alignkit.errors import did_you_mean

Level = Literal["token", "response", "pair", "group", "mask"]

Source = Literal["policy", "value", "reference", "old", "score", "method", "round"]
"""Who makes a tensor: the forward pass of the policy, of the value model, of the reference or of the reward model being
trained; the round from before its first step ("old"); `prepare` ("method"); what the rows say and how they are laid out
("round")."""

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
        source: who makes it.
        doc: what it holds, with its unit.
        of: what it is read from: the tensor that is summed over a response, or that was so before the first step; ""
            where it is made as it is.
    """

    shape: str
    level: Level
    source: Source
    doc: str
    of: str = ""


def _spec(level: Level, source: Source, doc: str, of: str = "") -> TensorSpec:
    return TensorSpec(_SHAPES[level], level, source, doc, of)


_TOKENS = {
    "logprobs": _spec(
        "token",
        "policy",
        "log_softmax(logits / T) of the token taken, before truncation, under the policy being trained; nats.",
    ),
    "old_logprobs": _spec(
        "token",
        "old",
        "`logprobs` of the policy that sampled, from before the round's first step; nats.",
        of="logprobs",
    ),
    "ref_logprobs": _spec("token", "reference", "`logprobs` under the reference; nats."),
    "advantages": _spec("token", "method", "How much better the token was than expected, in units of the reward."),
    "returns": _spec("token", "method", "The target of the value model: reward still to come from this token on."),
    "values": _spec("token", "value", "What the value model being trained predicts for `returns`."),
    "old_values": _spec("token", "old", "`values` from before the round's first step.", of="values"),
    "entropy": _spec("token", "policy", "Entropy of the whole next-token distribution at temperature T; nats."),
    "mean_logprobs": _spec(
        "token",
        "policy",
        "Mean over the vocabulary of log_softmax(logits / T) at the token's place (label smoothing); nats.",
    ),
    "response_mask": _spec(
        "mask", "round", "True on the tokens that are learned from; the other tensors mean nothing elsewhere."
    ),
}

_PAIRS = {
    "chosen_logprobs": _spec(
        "pair", "policy", "Log-probability of the preferred response: sum over its tokens; nats.", of="logprobs"
    ),
    "rejected_logprobs": _spec(
        "pair", "policy", "Log-probability of the other response: sum over its tokens; nats.", of="logprobs"
    ),
    "ref_chosen_logprobs": _spec(
        "pair", "reference", "`chosen_logprobs` under the reference; nats.", of="ref_logprobs"
    ),
    "ref_rejected_logprobs": _spec(
        "pair", "reference", "`rejected_logprobs` under the reference; nats.", of="ref_logprobs"
    ),
    "chosen_lengths": _spec("pair", "round", "Tokens learned from in the preferred response.", of="response_mask"),
    "rejected_lengths": _spec("pair", "round", "Tokens learned from in the other response.", of="response_mask"),
    "chosen_rewards": _spec(
        "pair", "score", "Raw score of the preferred response by the reward model being trained.", of="scores"
    ),
    "rejected_rewards": _spec(
        "pair", "score", "Raw score of the other response by the reward model being trained.", of="scores"
    ),
    "rating": _spec(
        "pair", "round", "Level of the comparison: 0 significantly better to 3 negligibly better, -1 unknown."
    ),
    "margin": _spec("pair", "round", "How far apart the two scores should be, as the data says; 0 where it does not."),
    "preference_prob": _spec(
        "pair", "round", "Probability that the preferred response is better (soft label); 1 if not given."
    ),
    "chosen_safe": _spec("pair", "round", "True where the preferred response was judged safe."),
    "rejected_safe": _spec("pair", "round", "True where the other response was judged safe."),
}

_GROUPS = {
    "rewards": _spec(
        "group",
        "score",
        "Raw scores of the K responses to one prompt; padded where `group_mask` is False.",
        of="scores",
    ),
    "ranks": _spec(
        "group",
        "round",
        "1 is best, equal ranks tie; padded where `group_mask` is False. A loss that names them has no element of a "
        "group in which no rank differs from another.",
    ),
    "group_mask": _spec("group", "round", "True on responses that exist, for groups of unequal size."),
}

_RESPONSES = {
    "labels": _spec("response", "round", "What was said of a response on its own: 1 good, 0 bad, -1 unknown.")
}

VOCABULARY: dict[str, TensorSpec] = {**_TOKENS, **_RESPONSES, **_PAIRS, **_GROUPS}


def select(names: Iterable[str], *, level: Level | None = None, source: Source | None = None) -> frozenset[str]:
    """Those of `names` that are of this level or source; what the vocabulary does not hold is of none.

    Args:
        names: any names.
        level: only tensors of this level.
        source: only tensors that it makes.
    """
    known = ((name, VOCABULARY[name]) for name in names if name in VOCABULARY)
    return frozenset(n for n, spec in known if level in (None, spec.level) and source in (None, spec.source))


def roots(names: Iterable[str]) -> frozenset[str]:
    """The names with those that are read from another tensor replaced by it: "old_values" by "values"."""
    return frozenset((VOCABULARY[name].of or name) if name in VOCABULARY else name for name in names)


@dataclass(frozen=True)
class Offer:
    """What `prepare` or `keep` receives under one name.

    Args:
        what: its shape, or its type.
        doc: what it holds, with its unit.
    """

    what: str
    doc: str


def _measured(name: str) -> Offer:
    spec = VOCABULARY[name]
    return Offer(spec.shape, f"{spec.doc} Before the round's first step, detached, at `logprob_temperature`.")


MEASURED = ("logprobs", "ref_logprobs", "values")
"""The tensors of the vocabulary that are there before the first step, on the path that the steps will take."""

PREPARE: dict[str, Offer] = {
    "rewards": Offer("[responses]", "Raw scores of the reward being optimised; 0 where `present` is False."),
    "present": Offer("[responses]", "True where there is a score."),
    "reward_name": Offer(
        "str",
        "The reward being optimised; None where there is but an annotator, which a method can take that gives this "
        "parameter a default.",
    ),
    "annotated": Offer("bool", "Whether an annotator has ranked the groups."),
    **{name: _measured(name) for name in MEASURED},
    "response_mask": Offer("[responses, tokens]", VOCABULARY["response_mask"].doc),
    "ends_with_eos": Offer(
        "[responses]", "True where the response ended by itself: with an end token, or a stop text."
    ),
    "history": Offer("Groups", "Samples of earlier versions, scored by the current reward."),
    "generator": Offer("torch.Generator", "Seeded from the stage and the round."),
    "max_new_tokens": Offer("int", "The sampler's longest response."),
    "measure": Offer(
        "function",
        "`measure(groups, *names)` gives `response_mask` and those named of "
        f"{', '.join(f'`{name}`' for name in MEASURED)} of any groups at all, `[responses, tokens]`, detached.",
    ),
}
"""What `prepare(self, groups, state, …)` may name beyond its first two parameters; only what is named is worked out."""

KEEP: dict[str, Offer] = {"reward_name": PREPARE["reward_name"]}
"""What `keep(self, groups, …)` may name beyond its first parameter."""


def not_offered(method: str, names: Iterable[str], offers: Mapping[str, Any]) -> str:
    """Why `prepare` or `keep` cannot be called, or an empty string: a name that nobody offers.

    Args:
        method: "prepare" or "keep".
        names: what it asks for.
        offers: what there is.
    """
    for name in names:
        if name not in offers:
            return f"{method} asks for {name!r}, which the engine does not give{did_you_mean(name, offers)}"
    return ""
