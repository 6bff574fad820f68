"""Checks of annotators: one judgement for each group, whatever the order in which it is shown."""

from __future__ import annotations

from collections.abc import Mapping

from alignkit.annotators import Annotator
from alignkit.errors import AlignkitError
from alignkit.groups import RATINGS, Groups
from alignkit.selection import take_responses
from alignkit.testing.conformance.outcome import check, refuse, skip
from alignkit.testing.conformance.subject import Subject, refusal
from alignkit.testing.conformance.watching import twice_alike

ROWS = Groups.from_rows(
    [
        {"prompt": "Say hello.", "responses": ["hello", "Hello, hello!", "no"]},
        {"prompt": "Count to three.", "responses": ["1 2 3", "three"]},
        {"prompt": "What is 6 times 7?", "responses": ["I do not know", "It is 42."]},
    ]
)
"""What is judged where the author gives nothing."""


def annotator_of(subject: Subject) -> Annotator:
    """The annotator."""

    def built() -> Annotator:
        if subject.loads:
            skip(subject.loads)
        try:
            made = subject.build()
        except Exception as error:
            reason = refusal(error)
            if reason is None:
                raise
            skip(f"it cannot be built ({reason}); settings= says what it needs")
        if not hasattr(made, "annotate"):
            refuse("it has no method annotate")
        return made  # type: ignore[no-any-return]

    made: Annotator = subject.once("annotator", built)
    return made


def rows_of(subject: Subject) -> Groups:
    """The rows to judge."""
    return subject.groups or ROWS


def judged(subject: Subject, rows: Groups, seed: int = 0) -> Mapping[str, Groups]:
    """The judgements by dimension.

    Raises:
        DoesNotApplyError: it refuses made-up rows in words, or judges none of them, and its author gave none.
    """
    try:
        found = annotator_of(subject).annotate(rows, seed=seed)
    except Exception as error:
        reason = refusal(error)
        if reason is None or subject.groups is not None:
            raise
        skip(f"it cannot judge made-up rows ({reason}); give it some with groups=")
    if subject.groups is None and not any(len(groups) for groups in found.values()):
        skip("it judges none of the made-up rows; give it some with groups=")
    return found


def rankings(groups: Groups) -> dict[str, dict[str, int]]:
    """Response -> rank, by prompt."""
    return {row["prompt_id"]: dict(zip(row["responses"], row["ranks"], strict=True)) for row in groups}


@check("annotator")
def one_ranking_a_group(subject: Subject) -> str:
    """Each group it judges comes back once, with a rank for every response from 1 on, a rating of the scale or none,
    and its dimension named; what it cannot judge is left out. This library once took ranks from 0, and
    dimensions that nobody had declared."""
    annotator, rows = annotator_of(subject), rows_of(subject)
    found = judged(subject, rows)
    if set(found) != set(annotator.dimensions):
        refuse(f"it answers along {sorted(found)} and declares {sorted(annotator.dimensions)}", "dimensions")
    known = {row["prompt_id"]: row for row in rows}
    for dimension, groups in found.items():
        seen = [row["prompt_id"] for row in groups]
        if len(set(seen)) != len(seen):
            refuse("a group comes back twice", dimension)
        for row in groups:
            if row["prompt_id"] not in known or row["responses"] != known[row["prompt_id"]]["responses"]:
                refuse("it gives back other prompts or responses than it was given", dimension)
            ranks = row["ranks"]
            if not ranks or min(ranks) != 1 or len(ranks) != len(row["responses"]):
                refuse(f"the ranks are {ranks} for {len(row['responses'])} responses", dimension)
            if row["rating"] not in (None, *RATINGS) or row["dimension"] != dimension:
                refuse(f"the rating is {row['rating']!r}, the dimension {row['dimension']!r}", dimension)
    return ", ".join(f"{name}: {len(groups)} of {len(rows)}" for name, groups in found.items())


@check("annotator")
def order_does_not_matter(subject: Subject) -> str:
    """The responses turned round get the same ranks: FastChat#3911, where the first position won 52.6% and 12.9% of
    a strong judge's verdicts flipped with the order."""
    rows = rows_of(subject)
    turned = take_responses(rows, [list(reversed(range(len(row["responses"])))) for row in rows])
    one, other = judged(subject, rows), judged(subject, turned)
    for dimension, groups in one.items():
        first, second = rankings(groups), rankings(other[dimension])
        for prompt, ranks in first.items():
            if second.get(prompt) != ranks:
                refuse(f"the ranks are {ranks}, and turned round {second.get(prompt)}", f"{dimension}, {prompt}")
    return "turned round"


@check("annotator")
def other_groups_do_not_matter(subject: Subject) -> str:
    """A group is judged as it is alone, whatever groups stand beside it."""
    rows = rows_of(subject)
    whole = judged(subject, rows)
    for number in range(len(rows)):
        alone = annotator_of(subject).annotate(rows.select([number]), seed=0)
        for dimension, groups in whole.items():
            name = rows[number]["prompt_id"]
            if rankings(groups).get(name) != rankings(alone[dimension]).get(name):
                refuse("a group is judged otherwise alone than among others", f"{dimension}, group {number}")
    return f"{len(rows)} groups alone"


@check("annotator")
def same_judgement_twice(subject: Subject) -> str:
    """The same seed gives the same judgement, no global random state is moved, and the rows stay as they were."""
    rows = rows_of(subject)

    def differ(one: Mapping[str, Groups], other: Mapping[str, Groups]) -> str:
        told = [{name: groups.digest() for name, groups in each.items()} for each in (one, other)]
        return ", ".join(name for name in {**one, **other} if told[0].get(name) != told[1].get(name))

    twice_alike(lambda: judged(subject, rows), differ, rows)
    return "two calls agree"


@check("annotator")
def nothing_to_judge(subject: Subject) -> str:
    """A group of one response, or of none, is left out and not made up; no groups give none."""
    for rows in (Groups.from_rows([{"prompt": "Alone.", "responses": ["one"]}]), Groups.from_rows([])):
        try:
            found = annotator_of(subject).annotate(rows, seed=0)
        except AlignkitError as error:
            return f"refused: {error}"
        made_up = [name for name, groups in found.items() for row in groups if len(set(row["ranks"] or [1])) > 1]
        if made_up:
            refuse("it ranks a response that is alone", made_up[0])
    return "nothing is made up"
