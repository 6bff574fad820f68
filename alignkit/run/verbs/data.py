"""The work of the verbs that make data: sample, annotate, transform, groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.annotators import Annotator
from alignkit.errors import DataError
from alignkit.groups import Groups
from alignkit.run.handles import PolicyHandle

if TYPE_CHECKING:
    from alignkit.run.run import Run
    from alignkit.sampling import Sampler


def keep_groups(work: Path, groups: Groups) -> dict[str, Any]:
    groups.save(work / "groups")
    return {"rows": len(groups), "responses": groups.num_responses}


def sample(
    run: Run,
    work: Path,
    policies: Sequence[PolicyHandle],
    prompts: Groups,
    n: int,
    samplers: Sequence[Sampler],
    name: str,
) -> dict[str, Any]:
    """Each policy at each temperature, side by side. Only the first process samples."""
    from alignkit.meter import Meter
    from alignkit.models.loading import dtype_of
    from alignkit.sampling import Drawing, sample_side_by_side

    if run.rank:
        return {}
    meter, parts = Meter(), []
    for index, handle in enumerate(policies):
        policy = handle.load(dtype=dtype_of(run.precision)).to(run.device)
        for place, sampler in enumerate(samplers):
            seed = (run.seed, name, index, place)
            drawing = Drawing(policy, sampler, meter, run.console.tick)
            parts.append(drawing.draw(prompts, n, seed=seed, what=name, name=handle.key[:16]))
    groups = sample_side_by_side(parts)
    return {**keep_groups(work, groups), "generated_tokens": meter.counts["generated_tokens"]}


def annotate(run: Run, work: Path, groups: Groups, annotator: Annotator, name: str) -> dict[str, Any]:
    """One folder per dimension."""
    from alignkit.annotators import annotated
    from alignkit.randomness import derived_seed

    if run.rank:
        return {}
    try:
        found = annotated(groups, annotator, derived_seed(run.seed, name))
    finally:
        annotator.release()
    if set(found) != set(annotator.dimensions):
        raise DataError(f"the annotator gave {sorted(found)}, it declares {sorted(annotator.dimensions)}", where=name)
    result: dict[str, Any] = {}
    for dimension, part in found.items():
        part.save(work / f"groups-{dimension}")
        ratings = [row["rating"] for row in part]
        result[dimension] = {
            "rows": len(part),
            "ratings": {r: ratings.count(r) for r in sorted({r for r in ratings if r})},
        }
    return result


@dataclass(frozen=True)
class TransformContext:
    """What a transform may use.

    Args:
        sample: `(prompts, n, **sampler arguments) -> Groups` from the policy given to the verb.
        seed: of whatever is random.
        policy: the live policy, or None.
    """

    sample: Callable[..., Groups]
    seed: int
    policy: Any = None


def transform(
    run: Run,
    work: Path,
    groups: Groups,
    built: Any,
    policy: PolicyHandle | None,
    name: str,
    sampler: Sampler | None = None,
) -> dict[str, Any]:
    """Apply a transform; `sampler`, or the default one, is what its `ctx.sample` draws with."""
    from alignkit.randomness import derived_seed
    from alignkit.sampling import Drawing
    from alignkit.sampling import Sampler as Default

    if run.rank:
        return {}
    live = policy.load().to(run.device) if policy else None
    calls = iter(range(10**9))

    def draw(prompts: Groups, n: int = 1, **options: Any) -> Groups:
        if live is None:
            raise DataError("the transform samples, but no policy was given", where=name, remedy="pass policy=…")
        drawn_with = replace(sampler or Default(), **options)
        drawing = Drawing(live, drawn_with, tick=run.console.tick)
        return drawing.draw(prompts, n, seed=(run.seed, name, next(calls)), what=name, name=name)

    return keep_groups(work, built(groups, TransformContext(draw, derived_seed(run.seed, name), live)))
