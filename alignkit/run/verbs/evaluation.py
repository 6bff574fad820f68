"""The work of evaluate: answers, scores and the KL, one row per prompt and sample."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import DataError
from alignkit.groups import Groups
from alignkit.run.handles import EvaluationHandle, PolicyHandle
from alignkit.run.verbs.data import show_progress
from alignkit.run.verbs.improve import open_reference

if TYPE_CHECKING:
    from alignkit.run.run import Run


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
) -> dict[str, Any]:
    """Sample, score, measure the KL and the metrics; one row per prompt and sample."""
    from alignkit.engine.answer_metrics import answer_logprobs, answers_offered, measure_answers
    from alignkit.engine.measure import kl_per_response
    from alignkit.engine.scoring import dtype_of, release
    from alignkit.evaluation import summarise_evaluation
    from alignkit.metrics import states
    from alignkit.metrics.answers import always
    from alignkit.sampling import Sampler

    if run.rank:
        return {}
    dtype = dtype_of(run.precision)
    policy = handle.load(dtype=dtype).to(run.device)
    sampler = Sampler(
        temperature=config["temperature"], greedy=config["greedy"], max_new_tokens=config["max_new_tokens"]
    )
    if config.get("answers") == "given":
        groups = _answered(prompts, name)
    else:  # The same random numbers for every version: what differs is the policy.
        groups = sampler.sample(
            policy,
            prompts,
            config["n"],
            seed=(run.seed, "evaluate"),
            name=handle.key[:16],
            progress=show_progress(run, name),
        )
    kl = None
    if reference is not None:
        second, state = (None, None) if reference.key == handle.key else open_reference(run, reference, policy, dtype)
        some = groups.select(range(min(config["kl_prompts"] or len(groups), len(groups))))
        kl = kl_per_response(
            policy, some, second, state, config["temperature"], run.max_tokens, sampler.max_prompt_tokens
        )
    metrics, logprobs = config.get("metrics", {}), None
    if any("logprobs" in metric.asks_for() + metric.asks_for(optional=True) for metric in metrics.values()):
        logprobs = answer_logprobs(policy, groups, run.max_tokens, sampler.max_prompt_tokens)
    for label, reward in rewards.items():
        scores = reward.score(groups)
        groups = groups.with_rewards(label, scores.values, scores.reasons)
        release(reward)
    rows = _evaluation_rows(groups, kl, list(rewards))
    with (work / "evaluation.jsonl").open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")  # scores in the order given: the first is the one that leads
    first = read_rows(baseline.path / "evaluation.jsonl") if baseline is not None else None
    found = measure_answers({**always(), **metrics}, answers_offered(groups, kl, logprobs))
    states.save(work, found.states)
    asked = {part: metrics[key].spec.to_json() for part, key in found.metric_of.items() if key in metrics}
    summary = summarise_evaluation(rows, first, by_prompt=found.by_prompt, values=found.values)
    return {"label": config["label"], "order": config["order"], **summary, **({"specs": asked} if asked else {})}


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
