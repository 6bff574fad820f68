"""A check of policy optimizers: whether a few rounds raise an expected reward that is known exactly."""

from __future__ import annotations

from typing import Any

import torch

from alignkit.data.encode import encode_groups
from alignkit.errors import AlignkitError
from alignkit.groups import Groups
from alignkit.testing.conformance.method_runs import improved, small
from alignkit.testing.conformance.outcome import check, refuse, skip
from alignkit.testing.conformance.subject import Subject

LEARN = {
    "rounds": 4,
    "learning_rate": 3e-3,
    "prompts_per_round": 8,
    "samples_per_prompt": 32,
    "require_finished": False,
}
"""Settings of a short lesson, those that a method has; answers of one token do not end."""


NOISE = 0.001
"""By how much an expected reward may fall in a short lesson because of the samples that it had."""


@check("optimizer")
def learns(subject: Subject) -> str:
    """The expected reward, exact by enumeration of all answers of one token, rises over a few rounds. LF#845,
    DeepSpeedExamples#586, RAGEN#52: a reward that collapses, with no diagnosis. (`exact-gap` says
    whether a method comes nearer to its own optimum.)"""
    if subject.label in subject.given.rewards or subject.groups is not None:
        skip("it is tried on rows of its own, whose rewards are not those of single letters")
    method = small(subject, **LEARN)
    seen: list[float] = []
    rows = Groups.from_prompts(["first", "second"]) if method.samples_per_prompt else _letters_and_digits()
    try:
        improved(subject, method, data=rows, reward=letter, length=1, look=lambda h: seen.append(expected(h, method)))
    except AlignkitError as error:
        skip(f"it cannot be tried on answers of one letter ({error})")
    if seen[0] - NOISE < seen[1] <= seen[0]:
        skip(f"the expected reward moved from {seen[0]:.4f} to {seen[1]:.4f}: too little to say")
    if seen[1] <= seen[0]:
        refuse(f"the expected reward was {seen[0]:.4f} and is {seen[1]:.4f}", reproduce="answers of one token")
    return f"expected reward {seen[0]:.4f} to {seen[1]:.4f}"


def letter(response: str) -> float:
    """A reward of one character: about 1 for a letter from a to z and about 0 otherwise, with few ties."""
    first = response[:1]
    return float(first.isascii() and first.islower()) + (ord(first) % 7 if first else 0) / 100


def _letters_and_digits() -> Groups:
    """Comparisons: letters are better."""
    return Groups.from_rows(
        {"prompt": p, "responses": [chr(97 + i), str(i % 10)], "ranks": [1, 2], "labels": [True, False]}
        for i in range(26)
        for p in ("first", "second")
    )


def expected(handle: Any, method: Any) -> float:
    """E r over all answers of one token to two prompts, at the method's temperature."""
    policy = handle.load()
    chat, total = policy.chat, 0.0
    prompts = Groups.from_prompts(["first", "second"])
    encoded, _ = encode_groups(prompts, chat, max_prompt_tokens=500, max_response_tokens=5)
    with policy.generating() as model, torch.no_grad():
        for each in encoded:
            logits = model(input_ids=torch.tensor([each.prompt_ids])).logits[0, -1].double()
            probs = (logits / method.temperature).softmax(-1)
            scores = torch.tensor([letter(chat.decode([token])) for token in range(len(probs))]).double()
            total += float(probs @ scores) / len(encoded)
    return total
