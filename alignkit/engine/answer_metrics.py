"""Metrics of an evaluation: each is fed with the answers to one prompt after another, by the names in its `update`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignkit.data.encode import encode_groups
from alignkit.engine.training_data import TrainingData, laid_out_for
from alignkit.groups import Groups
from alignkit.meter import Meter
from alignkit.metrics import Metric, alone, values_of
from alignkit.metrics.states import states_of
from alignkit.models import Policy


@dataclass(frozen=True)
class Measured:
    """What metrics say of an evaluation.

    Args:
        values: bare numbers, by name.
        by_prompt: of metrics of single prompts: name -> value by prompt id.
        states: what they counted, as tensors by name; of a metric of single prompts its values [prompts].
        metric_of: which metric said each.
    """

    values: dict[str, float] = field(default_factory=dict)
    by_prompt: dict[str, dict[str, float]] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)
    metric_of: dict[str, str] = field(default_factory=dict)


def measure_answers(metrics: Mapping[str, Metric], offers: Mapping[str, Sequence[Mapping[str, Any]]]) -> Measured:
    """Feed the metrics and read them.

    Args:
        metrics: by name; each starts anew.
        offers: prompt id -> what is known of its answers, by the names of `OFFERS`, group by group. A metric is not fed
            with a group that lacks something it names.
    """
    out = Measured()
    for name, given in metrics.items():
        metric: Any = alone(given.clone())
        metric.reset()
        if metric.per_prompt:
            for prompt, value in _by_prompt(name, metric, offers):
                for part, number in value.items():
                    out.by_prompt.setdefault(part, {})[prompt] = number
                    out.metric_of[part] = name
            continue
        for groups in offers.values():
            _feed(metric, groups)
        found = values_of(name, metric)
        out.values.update(found)
        out.metric_of.update(dict.fromkeys(found, name))
        out.states.update(states_of({name: metric}))
    for name, values in out.by_prompt.items():
        out.states[f"{name}.per_prompt"] = torch.tensor(
            [values.get(prompt, float("nan")) for prompt in offers], dtype=torch.float64
        )
    return out


def _by_prompt(
    name: str, metric: Metric, offers: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[tuple[str, dict[str, float]]]:
    for prompt, groups in offers.items():
        metric.reset()
        if _feed(metric, groups):
            yield prompt, values_of(name, metric)


def _feed(metric: Metric, groups: Sequence[Mapping[str, Any]]) -> bool:
    """Update with each group that has what is named; returns whether any has."""
    needed, optional = metric.asks_for(), metric.asks_for(optional=True)
    fed = [group for group in groups if all(group.get(name) is not None for name in needed)]
    for group in fed:
        metric.update(**{name: group.get(name) for name in (*needed, *optional)})
    return bool(fed)


def answers_offered(
    groups: Groups, kl: Sequence[Sequence[float]] | None, logprobs: Sequence[Tensor | None] | None
) -> dict[str, list[dict[str, Any]]]:
    """What an evaluation knows of its answers: prompt id -> one entry per group, by the names of `OFFERS`.

    Args:
        groups: with responses, scored.
        kl: of the first groups, per answer; None without a reference.
        logprobs: per group [K, T], NaN beyond an answer's tokens; None where nobody asked.
    """
    out: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(groups):
        count = len(row["responses"])
        prompt = [{"role": m["role"], "content": m["content"]} for m in row["prompt"]]
        found = logprobs[number] if logprobs is not None else None
        known = {
            "prompts": [prompt] * count,
            "responses": list(row["responses"]),
            "lengths": _numbers(map(len, row["response_ids"])) if row["response_ids"] else None,
            "finished": _numbers(row["finished"]) if row["finished"] else None,
            "kl": _numbers(kl[number]) if kl is not None and number < len(kl) else None,
            "scores": {r["name"]: _numbers(r["values"]) for r in row["rewards"] or []},
            "logprobs": found.nan_to_num(0.0) if found is not None else None,
            "response_mask": ~found.isnan() if found is not None else None,
        }
        out.setdefault(row["prompt_id"], []).extend([known] if count else [])
    return out


def _numbers(values: Any) -> Tensor:
    """[R] float64; a missing one is NaN."""
    return torch.tensor([float("nan") if v is None else float(v) for v in values], dtype=torch.float64)


@torch.no_grad()
def answer_logprobs(
    policy: Policy, groups: Groups, max_tokens: int, max_prompt_tokens: int, meter: Meter | None = None
) -> list[Tensor | None]:
    """log_softmax(logits) of the answers' tokens at temperature 1: per group [K, T], NaN beyond an answer's end.

    Args:
        policy: whose log-probs.
        groups: with responses, sampled by it or not.
        max_tokens: cells of a micro-batch.
        max_prompt_tokens: at which the sampler cut prompts.
        meter: counts the passes.

    Returns:
        One entry per group; None for a group that does not fit.
    """
    longest = 1 << 30  # whatever was sampled or given is measured whole
    encoded, _ = encode_groups(
        groups,
        policy.chat,
        max_prompt_tokens=max_prompt_tokens,
        max_response_tokens=longest,
        train="response",
    )
    data = TrainingData(groups, list(encoded), **laid_out_for(policy))
    out: list[Tensor | None] = [None] * len(groups)
    for group in encoded:
        out[group.index] = torch.full((len(group.responses), max(map(len, group.responses))), float("nan"))
    for numbers in data.micro_batches(list(range(len(encoded))), max_tokens):
        if meter is not None:
            meter.add("scored_tokens", data.reading(numbers).tokens)
            meter.compute(policy.flops(data.reading(numbers)).forward)
        batch = data.collate(numbers).to(policy.device)
        found = policy.tensors(batch, {"logprobs"})["logprobs"].float().cpu()
        lengths = batch.response_mask.sum(-1).tolist()
        for row, number, group in zip(range(len(found)), batch.responses.tolist(), batch.groups.tolist(), strict=True):
            whole = out[encoded[group].index]
            assert whole is not None
            whole[number - data.first_response[group], : lengths[row]] = found[row, : lengths[row]]
    return out
