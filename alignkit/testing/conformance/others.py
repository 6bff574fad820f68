"""Checks of transforms, suites, recipes, stages and formats."""

from __future__ import annotations

import dataclasses
import inspect
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkit.data.checks import check_row
from alignkit.data.messages import BadRow
from alignkit.errors import AlignkitError
from alignkit.groups import FEATURES, Groups, normal_row
from alignkit.identity import digest
from alignkit.rewards import FunctionReward, Reward
from alignkit.run import Run
from alignkit.sampling import Sampler
from alignkit.stages.base import Context
from alignkit.stages.transform import TransformContext
from alignkit.suites import Suite
from alignkit.testing.conformance.outcome import check, refuse, skip
from alignkit.testing.conformance.subject import Subject, refusal
from alignkit.testing.conformance.watching import twice_alike
from alignkit.testing.given import tiny_policy

ROWS = Groups.from_rows(
    {"prompt": f"Prompt {i}.", "responses": ["yes", "no, not at all"], "ranks": [1, 2], "finished": [True, True]}
    for i in range(3)
)


def attempted(subject: Subject, what: str, work: Callable[[], Any]) -> Any:
    """What `work()` gives; a refusal in words of what was made up is no fault.

    Raises:
        DoesNotApplyError: so.
    """
    if subject.loads:
        skip(subject.loads)
    try:
        return work()
    except Exception as error:
        reason = refusal(error)
        if reason is None or subject.groups is not None:
            raise
        skip(f"{what} ({reason}); settings= and groups= say what it needs")


# -- transforms --------------------------------------------------------------------------------------------------------


def transformed(subject: Subject, rows: Groups | None = None) -> Groups:
    """What a transform makes of some rows, sampling from the tiny model."""
    return attempted(subject, "it cannot map made-up rows", lambda: mapped(subject, subject.build(), rows))


def mapped(subject: Subject, transform: Any, rows: Groups | None = None) -> Groups:
    """What a transform as it was built makes of some rows."""
    policy = subject.once("policy", lambda: tiny_policy(trainable=False))
    calls = iter(range(10**6))

    def sample(prompts: Groups, n: int = 1, **options: Any) -> Groups:
        sampler = dataclasses.replace(Sampler(max_new_tokens=6), **{**options, "max_new_tokens": 6})
        return sampler.sample(policy, prompts, n, seed=(0, next(calls)))

    found: Groups = transform(rows or subject.groups or ROWS, TransformContext(sample, 7, policy))
    return found


@check("transform")
def gives_groups(subject: Subject) -> str:
    """It returns `Groups` with every column, each row's own lengths agreeing, and the text of a response that of
    its token ids: an edited text was once scored here, and its old tokens learned."""
    found = transformed(subject)
    if not isinstance(found, Groups):
        refuse(f"it returns a {type(found).__name__}")
    if set(FEATURES) - set(found.dataset.column_names):
        refuse("columns are missing")
    policy = subject.once("policy", lambda: tiny_policy(trainable=False))
    for number, row in enumerate(found):
        for text, tokens in zip(row["responses"], row["response_ids"] or [], strict=False):
            own = tokens is not None and row["tokenizer"] == policy.chat.fingerprint
            if own and policy.chat.decode(tokens) != text:
                refuse("the text of a response is not that of its token ids", f"row {number}")
    return f"{len(found)} rows"


@check("transform")
def same_twice(subject: Subject) -> str:
    """Twice the same from the seed that it is told, no global random state moved, and its rows as they were."""
    rows = subject.groups or ROWS
    twice_alike(
        lambda: transformed(subject, rows), lambda one, other: "" if one.digest() == other.digest() else "rows", rows
    )
    return "two calls agree"


# -- suites ------------------------------------------------------------------------------------------------------------


def suite_of(subject: Subject) -> Suite:
    """What the suite returns."""
    made = subject.once("suite", lambda: attempted(subject, "it cannot be built", subject.build))
    found = made() if callable(made) and not isinstance(made, Suite) else made
    if not isinstance(found, Suite):
        refuse(f"it returns a {type(found).__name__} and no Suite")
    return found


@check("suite")
def heldout_is_held_out(subject: Subject) -> str:
    """No prompt is both learned on and measured on, and there are some of each."""
    suite = suite_of(subject)
    learned, measured = ({row["prompt_id"] for row in part} for part in (suite.prompts, suite.heldout))
    if not learned or not measured:
        refuse(f"{len(learned)} prompts to learn on and {len(measured)} to measure on")
    if both := learned & measured:
        refuse(f"{len(both)} prompts stand in both", "heldout")
    return f"{len(learned)} to learn on, {len(measured)} to measure on"


@check("suite")
def truth_scores_answers(subject: Subject) -> str:
    """Its scores are rewards, and the first, the truth, scores an answer to each of its prompts, or says why not."""
    suite = suite_of(subject)
    if not suite.scores:
        refuse("it has no scores", "scores")
    for name, score in suite.scores.items():
        reward = score if isinstance(score, Reward) else FunctionReward(score, name)
        rows = suite.heldout.select(range(min(3, len(suite.heldout)))).map_rows(
            lambda _: {"responses": ["an answer", ""], "finished": [True, False]}
        )
        found = reward.score(rows)
        if [len(v) for v in found.values] != [2] * len(rows):
            refuse("it does not give one score a response", f"scores[{name!r}]")
    return ", ".join(suite.scores)


@check("suite")
def same_suite_twice(subject: Subject) -> str:
    """Two calls give the same prompts in the same order: ms-swift#3607; two methods compared on other prompts."""
    one = suite_of(subject)
    subject.kept.pop("suite")
    other = suite_of(subject)
    for part in ("prompts", "heldout"):
        if getattr(one, part).digest() != getattr(other, part).digest():
            refuse("two calls give other prompts", part)
    return "two calls agree"


@check("suite")
def longest_answer(subject: Subject) -> str:
    """It says how long an answer may be: at least one token."""
    suite = suite_of(subject)
    if not (isinstance(suite.max_new_tokens, int) and suite.max_new_tokens >= 1):
        refuse(f"max_new_tokens is {suite.max_new_tokens!r}")
    return f"{suite.max_new_tokens} tokens"


# -- recipes -----------------------------------------------------------------------------------------------------------


@check("recipe")
def command_line(subject: Subject) -> str:
    """Its arguments are a command line: each has a type and either a default or must be given, and none is called as
    one of the run's own."""
    from alignkit.run.recipes import RUN_OPTIONS, load_recipe, parse_arguments

    parameters = list(inspect.signature(subject.target).parameters.values())[1:]
    for p in parameters:
        if p.name in RUN_OPTIONS:
            refuse("it is called as an argument of the run", p.name)
        if p.annotation is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            refuse("it has no type, so that a command line cannot read it", p.name)
    if [p.name for p in parameters if p.default is p.empty]:
        return f"{len(parameters)} arguments"
    assert subject.record is not None
    if subject.host.resolve("recipe", subject.record.qualified) is subject.record:
        try:
            parse_arguments(load_recipe(subject.record.qualified), [])
        except AlignkitError as error:
            skip(f"it is not installed, so that its command line cannot be tried ({error})")
    return f"{len(parameters)} arguments"


# -- stages ------------------------------------------------------------------------------------------------------------


def stage_values(subject: Subject) -> dict[str, Any]:
    """Its fields, as the author gives them, rows made up."""
    values = dict(subject.settings)
    for each in dataclasses.fields(subject.target):
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if required and each.init and each.name not in values:
            if "Groups" not in str(each.type):
                skip(f"its field {each.name} cannot be made up; settings= says what it needs")
            values[each.name] = subject.groups or ROWS
    return values


def stage_key(subject: Subject, values: dict[str, Any]) -> str:
    """The key that a run gives it."""
    context = Context(subject.host)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", plan=True, host=subject.host, quiet=True)
        return digest(run.identity(subject.target(**values).resolved(context), context))


@check("stage")
def every_field_counts(subject: Subject) -> str:
    """A field that is changed changes the key, unless it is marked `NO_EFFECT`: an argument that a key forgets gives
    a stale result in silence."""
    values = stage_values(subject)
    before, tried = stage_key(subject, values), []
    for each in dataclasses.fields(subject.target):
        if each.name == "name" or not each.init:
            continue
        now = values.get(each.name, each.default)
        other = Groups.from_prompts(["another"]) if isinstance(now, Groups) else _changed(now)
        if other is None:
            continue
        try:
            same = stage_key(subject, {**values, each.name: other}) == before
        except AlignkitError:
            continue
        tried.append(each.name)
        if same is each.metadata.get("effect", True):
            refuse("another value leaves the key as it was" if same else "it is marked and changes the key", each.name)
    if not tried:
        skip("none of its fields has another value that can be made up")
    return ", ".join(tried)


def _changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else None


@check("stage")
def stage_works_twice_alike(subject: Subject) -> str:
    """Made in two folders it makes the same files, the second command in one finds it done, and its results are plain
    JSON: ms-swift#3607, trl#2657."""
    values, seen = stage_values(subject), []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("one", "two"):
            for _ in range(2):
                with Run(Path(folder) / name, quiet=True, host=subject.host) as run:
                    handle = run.stage(subject.target(**values))
            record = json.loads((handle.path / "stage.json").read_text())
            seen.append((record["key"], record["result"], _files(handle.path)))
            if len(list(handle.path.parent.iterdir())) != 1:
                refuse("the same command made it anew", "key")
    if seen[0] != seen[1]:
        refuse("two folders hold other files, or other results", "work")
    return f"{len(seen[0][2])} files"


def _files(folder: Path) -> dict[str, int]:
    """Names and sizes of what a stage wrote; the record itself tells times."""
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("stage.json", "manifest.json")]
    return {str(p.relative_to(folder)): p.stat().st_size for p in paths}


# -- formats -----------------------------------------------------------------------------------------------------------


def read_as(subject: Subject, row: Any) -> list[dict[str, Any]]:
    """The rows that a row of the format becomes."""
    readings = list(subject.target(row))
    return [normal_row(reading.row, "example") for reading in readings]


@check("format")
def reads_its_example(subject: Subject) -> str:
    """Its example is a row of it, and becomes rows that something can be learned from, each time the same: an example
    that does not hold is a page that misleads."""
    one = subject.target
    if not one.fits(one.example):
        refuse("its example lacks a column that it needs", "example")
    if one.gather is not None:
        skip("it puts rows together, and its example is one of them")
    found = read_as(subject, one.example)
    if not found:
        refuse("its example becomes nothing", "example")
    if found != read_as(subject, one.example):
        refuse("its example is read otherwise the second time", "read")
    kinds = [reading.kind for reading in one(one.example)]
    wrong = [str(f) for row, kind in zip(found, kinds, strict=True) for f in check_row(row, kind) if not f.note]
    if wrong:
        refuse(f"its example becomes what is refused: {wrong[0]}", "example")
    return f"{len(found)} rows"


@check("format")
def refuses_in_words(subject: Subject) -> str:
    """Whatever stands in a column, a row is read or refused as a bad row, and never ends the reading of a file with an
    error of another kind."""
    one = subject.target
    if one.gather is not None:
        skip("it puts rows together, and its example is one of them")
    tried = 0
    values: list[Any] = [None, "", "x", 1, -1.5, True, [], [[]], [None], {}, {"a": 1}, [{"role": "user"}]]
    for name in one.example:
        for odd in values:
            tried += 1
            try:
                one({**one.example, name: odd})
            except BadRow:
                continue
            except Exception as error:
                refuse(f"{type(error).__name__} for {name}={odd!r}: {error}", "read")
    return f"{tried} rows"


@check("format")
def no_column_vanishes(subject: Subject) -> str:
    """A column of the example that is left out changes what is read, or is kept in `meta`: what is declared and not
    used would vanish in silence."""
    one = subject.target
    if one.gather is not None:
        skip("it puts rows together, and its example is one of them")
    whole = read_as(subject, one.example)
    for name in one.example:
        try:
            less = read_as(subject, {key: value for key, value in one.example.items() if key != name})
        except BadRow:
            continue
        if less == whole:
            refuse("it is read the same without it", name)
    return f"{len(one.example)} columns"
