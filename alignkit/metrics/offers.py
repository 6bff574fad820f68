"""What a metric may name in `update`: in training the tensors of the vocabulary, in an evaluation what stands here."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from alignkit.errors import did_you_mean
from alignkit.vocabulary import VOCABULARY


@dataclass(frozen=True)
class Offer:
    """What a metric receives under one name in an evaluation: that of R answers to one prompt.

    Args:
        level: what one element belongs to: "token" or "mask" ([R, T]), "response" ([R]).
        doc: what it holds, with its unit.
    """

    level: str
    doc: str


OFFERS: dict[str, Offer] = {
    "prompts": Offer("response", "The conversation that each answer answers: a list of {role, content}."),
    "responses": Offer("response", "The answers as text: a list."),
    "lengths": Offer("response", "Tokens of each answer, EOS included; not there for answers given as text."),
    "finished": Offer("response", "1 where the answer ended by itself, else 0; NaN where nobody knows."),
    "kl": Offer("response", "log π − log π_ref summed over the answer (k1, nats); there with a `reference`."),
    "scores": Offer("response", "Raw scores by name: a mapping to [R]; NaN where one is missing."),
    "logprobs": Offer("token", "log_softmax(logits) of the answer's tokens under the policy, at temperature 1; nats."),
    "response_mask": Offer("mask", "True on the answer's tokens."),
}
"""By name, in an evaluation. `update` is called once per prompt, with its answers."""


def refusal(names: Iterable[str], provided: Collection[str] = ()) -> str:
    """Why nobody can serve a metric that asks for these names; empty when training or an evaluation can.

    Args:
        names: parameters of its `update`.
        provided: tensors that registered optimizers add to the vocabulary.
    """
    names, training = list(names), {*VOCABULARY, *provided}
    known = {*training, *OFFERS}
    for name in names:
        if name not in known:
            return f"asks for the unknown {name!r}{did_you_mean(name, known)}"
    only_training = [name for name in names if name not in OFFERS]
    only_evaluation = [name for name in names if name not in training]
    if only_training and only_evaluation:
        return f"asks for {only_training[0]!r}, which training has, and {only_evaluation[0]!r}, which evaluations have"
    return ""
