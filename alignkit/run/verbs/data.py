"""The work of the verbs that make data: sample, annotate, transform, groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    from alignkit.engine.scoring import dtype_of
    from alignkit.sampling import sample_side_by_side

    if run.rank:
        return {}
    parts = []
    for index, handle in enumerate(policies):
        policy = handle.load(dtype=dtype_of(run.precision)).to(run.device)
        for place, sampler in enumerate(samplers):
            seed = (run.seed, name, index, place)
            parts.append(
                sampler.sample(policy, prompts, n, seed=seed, name=handle.key[:16], progress=show_progress(run, name))
            )
    groups = sample_side_by_side(parts)
    tokens = sum(len(ids) for row in groups for ids in row["response_ids"] or [])
    return {**keep_groups(work, groups), "generated_tokens": tokens}


def show_progress(run: Run, name: str) -> Callable[[int, int, int, float], None]:
    def tell(done: int, total: int, tokens: int, seconds: float) -> None:
        left = seconds / max(done, 1) * (total - done)
        run.console.tick(
            f"{name}: {done}/{total} responses, {tokens / max(seconds, 1e-6):.0f} tokens/s, {left:.0f} s left"
        )

    return tell


def annotate(run: Run, work: Path, groups: Groups, annotator: Annotator, name: str) -> dict[str, Any]:
    """One folder per dimension."""
    from alignkit.randomness import derived_seed

    if run.rank:
        return {}
    try:
        found = annotator.annotate(groups, seed=derived_seed(run.seed, name))
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
    run: Run, work: Path, groups: Groups, built: Any, policy: PolicyHandle | None, name: str
) -> dict[str, Any]:
    """Apply a transform."""
    from alignkit.randomness import derived_seed
    from alignkit.sampling import Sampler

    if run.rank:
        return {}
    live = policy.load().to(run.device) if policy else None
    calls = iter(range(10**9))

    def draw(prompts: Groups, n: int = 1, **options: Any) -> Groups:
        if live is None:
            raise DataError("the transform samples, but no policy was given", where=name, remedy="pass policy=…")
        return Sampler(**options).sample(live, prompts, n, seed=(run.seed, name, next(calls)), name=name)

    return keep_groups(work, built(groups, TransformContext(draw, derived_seed(run.seed, name), live)))
