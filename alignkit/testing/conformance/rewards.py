"""Checks of rewards: one score for each response, whoever stands beside it."""

from __future__ import annotations

import math

from alignkit.groups import Groups
from alignkit.rewards import Reward, Scores
from alignkit.stages.base import Context
from alignkit.testing.conformance.outcome import DoesNotApplyError, check, refuse, skip
from alignkit.testing.conformance.subject import Subject, refusal
from alignkit.testing.conformance.watching import twice_alike

ROWS = Groups.from_rows(
    [
        {"prompt": "Say hello.", "responses": ["hello", "Hello, hello!", "no", "hello"], "finished": [True] * 4},
        {"prompt": "Count to three.", "responses": ["1 2 3"], "finished": [True]},
        {"prompt": "What is 6 times 7?", "responses": ["It is 42.", "41", "I do not know"], "finished": [True] * 3},
    ]
)
"""What is scored where the author gives nothing: groups of unequal size, two equal responses."""

EMPTY = Groups.from_rows([{"prompt": "Say nothing.", "responses": ["", " "], "finished": [True, False]}])


def reward_of(subject: Subject) -> Reward:
    """The reward, a plain function wrapped as the engine does it."""
    made: Reward = subject.once("reward", lambda: Context(subject.host).build("reward", _built(subject), subject.name))
    return made


def _built(subject: Subject) -> object:
    if subject.loads:
        skip(subject.loads)
    try:
        return subject.build()
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        skip(f"it cannot be built ({reason}); settings= says what it needs")


def rows_of(subject: Subject) -> Groups:
    """The rows to score."""
    return subject.groups or ROWS


def scored(subject: Subject, rows: Groups) -> Scores:
    """The scores of some rows.

    Raises:
        DoesNotApplyError: it refuses made-up rows in words, and its author gave none.
    """
    try:
        return reward_of(subject).score(rows)
    except Exception as error:
        reason = refusal(error)
        if reason is None or subject.groups is not None:
            raise
        skip(f"it cannot score made-up rows ({reason}); give it some with groups=")


def same_scores(one: list[float | None], other: list[float | None]) -> bool:
    """Equal up to rounding; a missing one equals a missing one."""
    return len(one) == len(other) and all(
        (a is None) == (b is None) and (a is None or b is None or math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6))
        for a, b in zip(one, other, strict=True)
    )


@check("reward")
def one_score_a_response(subject: Subject) -> str:
    """As many scores as responses, group by group, and where one is missing a reason: trl#6533, #6534, where a reward
    function that returned one number was broadcast to every completion."""
    rows = rows_of(subject)
    scores = scored(subject, rows)
    shape = [len(row["responses"]) for row in rows]
    for name, found in (("values", scores.values), ("reasons", scores.reasons)):
        if [len(each) for each in found] != shape:
            refuse(f"it has the sizes {[len(each) for each in found]} where the groups have {shape}", name)
    for values, reasons in zip(scores.values, scores.reasons, strict=True):
        for value, reason in zip(values, reasons, strict=True):
            if value is not None and (not isinstance(value, (int, float)) or isinstance(value, bool)):
                refuse(f"a score is a {type(value).__name__}", "values")
            if (value is None) != bool(reason):
                refuse("a missing score has no reason, or a score has one", "reasons")
    return f"{sum(shape)} scores, {scores.missing()} missing"


@check("reward")
def finite_or_missing(subject: Subject) -> str:
    """A score is a finite number or missing with a reason; NaN and infinity are neither. trl#6427; a class whose NaN
    was no missing score was once accepted here."""
    for rows in (rows_of(subject), EMPTY):
        for values in scored(subject, rows).values:
            bad = [value for value in values if value is not None and not math.isfinite(value)]
            if bad:
                refuse(f"a score is {bad[0]}", "values")
    return "of ordinary and of empty responses"


@check("reward")
def empty_and_no_responses(subject: Subject) -> str:
    """An empty response, a prompt without responses and no prompts at all are scored or said to be missing, and
    nothing is raised: verl#6310."""
    cases = {
        "an empty response": EMPTY,
        "a prompt without responses": Groups.from_prompts(["Nobody answered."]),
        "no prompts": Groups.from_rows([]),
    }
    for what, rows in cases.items():
        try:
            scores = scored(subject, rows)
        except DoesNotApplyError:
            raise
        except Exception as error:
            refuse(f"{what}: it raises {type(error).__name__}: {error}", "score")
        if [len(v) for v in scores.values] != [len(row["responses"]) for row in rows]:
            refuse(f"{what}: as many scores as responses are wanted", "values")
    return "scored or missing"


@check("reward")
def neighbours_do_not_matter(subject: Subject) -> str:
    """A response has the score that it has alone, whatever stands beside it and in whatever order: reward-bench#137,
    #154, trlx#474, LF#689, scores that changed with the batch and its padding."""
    rows = rows_of(subject)
    whole = scored(subject, rows).values
    backwards = scored(subject, rows.select(reversed(range(len(rows))))).values[::-1]
    for number, values in enumerate(whole):
        alone = scored(subject, rows.select([number])).values[0]
        for other, what in ((backwards[number], "in another order"), (alone, "alone")):
            if not same_scores(values, other):
                refuse(f"its scores are {values} among others and {other} {what}", f"group {number}")
    return f"{len(rows)} groups alone and backwards"


@check("reward")
def siblings_do_not_matter(subject: Subject) -> str:
    """The order of the responses to one prompt changes no score, and equal responses score alike: RLHFlow#49, a model
    that gave chosen and rejected the same score by its padding; statistics over a group are the method's business."""
    from alignkit.selection import take_responses

    rows = rows_of(subject)
    whole = scored(subject, rows).values
    turned = take_responses(rows, [list(reversed(range(len(row["responses"])))) for row in rows])
    for number, (values, other) in enumerate(zip(whole, scored(subject, turned).values, strict=True)):
        if not same_scores(values, other[::-1]):
            refuse(f"its scores are {values}, and {other[::-1]} with the responses turned round", f"group {number}")
    single = take_responses(rows, [[0] if row["responses"] else [] for row in rows])
    for number, (values, other) in enumerate(zip(whole, scored(subject, single).values, strict=True)):
        if not same_scores(values[:1], other):
            refuse(f"its first score is {values[:1]}, and {other} without the other responses", f"group {number}")
    return "turned round, and the first alone"


@check("reward")
def same_score_twice(subject: Subject) -> str:
    """Twice the same, no global random state moved, and the rows as they were: ms-swift#3607."""
    rows = rows_of(subject)
    twice_alike(lambda: scored(subject, rows).values, lambda one, other: "" if one == other else "scores", rows)
    return "two calls agree"
