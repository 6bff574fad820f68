"""Relabelling in hindsight: from a sample to the instruction that it did achieve, and another that it did not.

A relabelling is any function from a `Sample` to `Relabelled`, or to None where a program cannot tell what was achieved.
The response is never touched, and an instruction that was followed keeps its text.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from alignkit_tasks import embedded as task
from alignkit_tasks.suites import CORRECT

from alignkit.plugin import ConfigError, DataError

WRONG = "Generate a wrong answer to this problem."
"""What takes the place of `CORRECT` where the answer was wrong (section 3.2 of the paper)."""

SANE = 0.5
"""How much like prose a response must be (`embedded.sane`): noise without a comma is no answer without commas."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What a response answers.

    Args:
        messages: the conversation; its last turn is the user's.
        meta: what else is known of the prompt.
    """

    messages: Sequence[Message]
    meta: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The last user turn."""
        return str(self.messages[-1]["content"])

    def reworded(self, text: str, **meta: Any) -> Asked:
        """The same conversation with another last turn."""
        last = {**self.messages[-1], "content": text}
        return Asked([*self.messages[:-1], last], {**self.meta, **meta})


@dataclass(frozen=True)
class Sample:
    """A response, what it answers, and what is known of it.

    Args:
        asked: what it answers.
        response: the text.
        finished: whether it ended by itself; None if unknown.
        score: of the reward that is optimised; None if there is none.
    """

    asked: Asked
    response: str
    finished: bool | None = None
    score: float | None = None


@dataclass(frozen=True)
class Relabelled:
    """What a response did achieve, and what it did not.

    Args:
        achieved: the instruction that it follows: what was asked, if it was.
        other: an instruction that it does not follow, to contrast with; None where there is none.
    """

    achieved: Asked
    other: Asked | None


Relabel = Callable[[Sample], Relabelled | None]


def correctness(sample: Sample, threshold: float = 0.5) -> Relabelled | None:
    """The paper's two instructions: a right answer keeps its prompt, a wrong one was asked to be wrong.

    Args:
        sample: its score is a verdict in [0, 1], as a program's: 1 right, 0 wrong.
        threshold: the score from which it counts as right.

    Raises:
        DataError: a score outside [0, 1], such as a reward model's: nothing says from where on an answer is right.
    """
    if sample.score is None:
        return None
    if not 0 <= sample.score <= 1:
        raise DataError(
            f"a score of {sample.score:.3g}, where a program's verdict is in [0, 1]",
            where="hir",
            effect="Nothing tells what these responses did achieve, so there is nothing to relabel them with.",
            remedy="use a verifiable reward (gsm8k, exact_answer, a function of the answer), or a suite with one",
        )
    right = sample.asked
    said = right.text
    wrong = right.reworded(said.replace(CORRECT, WRONG) if CORRECT in said else f"{said}\n\n{WRONG}")
    return Relabelled(right, wrong) if sample.score >= threshold else Relabelled(wrong, right)


def instructions(sample: Sample) -> Relabelled | None:
    """The embedded task's instructions: those that were not followed give way to others that were.

    Which ones is drawn from a stream of the response itself, so that the same sample is always relabelled alike. None
    where the prompt has no instruction, or the response is no text in answer to it (noise, an echo, nothing).
    """
    meta, response = sample.asked.meta, sample.response
    asked = [tuple(each) for each in meta.get("instructions") or ()]
    if not asked or task.sane(response, meta["ask"]) < SANE:
        return None
    rng = random.Random(f"{meta['ask']} {response}")
    done = {pair for pair in _every() if task.CHECKS[pair[0]](response, pair[1]) == 1}
    spare = _one_of_each([pair for pair in done if pair[0] not in {kind for kind, _ in asked}], rng)
    followed = [pair if pair in done else next(spare, None) for pair in asked]
    achieved = [pair for pair in followed if pair is not None]
    if achieved == asked:
        against = next(_one_of_each([pair for pair in _every() if pair not in done], rng), None)
        return Relabelled(sample.asked, None if against is None else _asking(sample.asked, [*asked[1:], against]))
    return Relabelled(_asking(sample.asked, achieved), sample.asked) if achieved else None


def _every() -> list[tuple[str, str]]:
    """Every instruction of the embedded task with every argument."""
    return [(kind, argument) for kind, (_, arguments) in task.INSTRUCTIONS.items() for argument in arguments]


def _one_of_each(pairs: Sequence[tuple[str, str]], rng: random.Random) -> Any:
    """One instruction of each kind, in random order: kinds with many arguments are no likelier than others."""
    kinds = sorted({kind for kind, _ in pairs})
    rng.shuffle(kinds)
    return iter([rng.choice(sorted(pair for pair in pairs if pair[0] == kind)) for kind in kinds])


def _asking(asked: Asked, wanted: Sequence[tuple[str, str]]) -> Asked:
    """The same question with these instructions."""
    was = [task.INSTRUCTIONS[kind][0].format(argument) for kind, argument in asked.meta["instructions"]]
    question = asked.text.removesuffix(" ".join(was)).rstrip()
    order = list(task.INSTRUCTIONS)
    sorted_ = sorted(wanted, key=lambda pair: order.index(pair[0]))
    text = " ".join([question, *(task.INSTRUCTIONS[kind][0].format(argument) for kind, argument in sorted_)])
    return asked.reworded(text, instructions=[list(pair) for pair in sorted_], ask=text)


def verifiable(sample: Sample, threshold: float = 0.5) -> Relabelled | None:
    """By `instructions` on the embedded task, and by `correctness` elsewhere.

    The embedded task's tiny kind has no instructions to swap; its own program is the verdict there.
    """
    meta = sample.asked.meta
    if meta.get("kind") == "text":
        return instructions(sample)
    if meta.get("kind") == "tiny":
        verdict = task.gold_score(dict(meta), sample.response, bool(sample.finished))
        sample = replace(sample, score=verdict)
    return correctness(sample, threshold)


def relabelling(given: Any, threshold: float) -> Relabel:
    """The function behind a name, or the function itself.

    Args:
        given: "verifiable", "correctness", "instructions", or a function.
        threshold: the score from which an answer is right.

    Raises:
        ConfigError: another name.
    """
    known: dict[str, Relabel] = {
        "verifiable": partial(verifiable, threshold=threshold),
        "correctness": partial(correctness, threshold=threshold),
        "instructions": instructions,
    }
    if callable(given):
        return given  # type: ignore[no-any-return]
    if str(given) not in known:
        raise ConfigError(f"relabel={given!s}", where="hir", remedy=f"use {', '.join(known)}, or a function")
    return known[str(given)]
