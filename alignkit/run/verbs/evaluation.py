"""The work of evaluate: answers, scores and the KL, one row per prompt and sample."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import DataError
from alignkit.groups import Groups
from alignkit.run.handles import EvaluationHandle, PolicyHandle
from alignkit.run.verbs.improve import open_reference

if TYPE_CHECKING:
    from alignkit.run.run import Run
    from alignkit.sampling import Sampler


def evaluate(
    run: Run,
    work: Path,
    handle: PolicyHandle,
    prompts: Groups,
    rewards: Mapping[str, Any],
    config: Mapping[str, Any],
    reference: PolicyHandle | None,
    baseline: EvaluationHandle | None,
    name: str,
    sampler: Sampler | None = None,
) -> dict[str, Any]:
    """Sample, score, measure the KL; one row per prompt and sample. `sampler` with the settings of the verb samples, or
    the default one."""
    from alignkit.engine.reference import kl_per_response
    from alignkit.evaluation import summarise_evaluation
    from alignkit.meter import Meter
    from alignkit.models.loading import dtype_of
    from alignkit.rewards import metered_scores
    from alignkit.sampling import Drawing
    from alignkit.sampling import Sampler as Default

    if run.rank:
        return {}
    dtype = dtype_of(run.precision)
    policy = handle.load(dtype=dtype).to(run.device)
    settings = {key: config[key] for key in ("temperature", "greedy", "max_new_tokens")}
    sampler, meter = replace(sampler or Default(), **settings), Meter()
    if config.get("answers") == "given":
        groups = _answered(prompts, name)
    else:  # The same random numbers for every version: what differs is the policy.
        drawing = Drawing(policy, sampler, meter, run.console.tick)
        groups = drawing.draw(prompts, config["n"], seed=(run.seed, "evaluate"), what=name, name=handle.key[:16])
    kl = None
    if reference is not None:
        other = None if reference.key == handle.key else open_reference(run, reference, policy, dtype, meter)
        kl = kl_per_response(
            policy,
            groups.select(range(min(config["kl_prompts"] or len(groups), len(groups)))),
            other,
            temperature=config["temperature"],
            max_tokens=run.max_tokens,
            max_prompt_tokens=sampler.max_prompt_tokens,
        )
    for label, reward in rewards.items():
        scores = metered_scores(groups, reward, meter)
        groups = groups.with_rewards(label, scores.values, scores.reasons)
        reward.release()
    rows = _evaluation_rows(groups, kl, list(rewards))
    with (work / "evaluation.jsonl").open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")  # scores in the order given: the first is the one that leads
    first = read_rows(baseline.path / "evaluation.jsonl") if baseline is not None else None
    return {"label": config["label"], "order": config["order"], **summarise_evaluation(rows, first)}


def _answered(groups: Groups, name: str) -> Groups:
    """The groups, each with an answer.

    Raises:
        DataError: naming the first without.
    """
    bare = [i for i, row in enumerate(groups) if not row["responses"]]
    if bare:
        raise DataError(
            f"{len(bare)} groups hold no answer", where=f"{name}, row {bare[0]}", remedy="sample them first"
        )
    return groups


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _evaluation_rows(groups: Groups, kl: list[list[float]] | None, names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(groups):
        for k, response in enumerate(row["responses"]):
            found = {r["name"]: r["values"][k] for r in row["rewards"] or []}
            scores = {name: found[name] for name in (*names, *(n for n in found if n not in names))}
            rows.append(
                {
                    "prompt_id": row["prompt_id"],
                    "prompt": [{"role": m["role"], "content": m["content"]} for m in row["prompt"]],
                    "tags": row["tags"],
                    "sample": k,
                    "response": response,
                    "finished": row["finished"][k] if row["finished"] else None,
                    "scores": scores,
                    "length": len(row["response_ids"][k]) if row["response_ids"] else None,
                    "kl": kl[number][k] if kl and number < len(kl) else None,
                }
            )
    return rows
