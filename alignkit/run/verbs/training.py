"""The work of the verbs that train on given rows: sft and train_reward, and what every training verb shares."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.groups import Groups
from alignkit.run.handles import PolicyHandle, RewardHandle
from alignkit.run.verbs.models import count_parameters

if TYPE_CHECKING:
    from alignkit.engine.learner import Learner
    from alignkit.registry.records import BoundLoss
    from alignkit.run.run import Run


@dataclass
class OneRound:
    """A source with one fixed round: supervised fine-tuning and reward models.

    Args:
        data: the round.
        steps: all its steps.
    """

    data: Any
    steps: Any
    rounds: int = 1

    def start(self, index: int) -> Any:
        return self.data, self.steps

    def finish(self, index: int, metrics: Mapping[str, float]) -> bool:
        return False

    def round_metrics(self) -> Mapping[str, float]:
        return {}

    def skip_rest(self, metrics: Mapping[str, float]) -> bool:
        return False


def _recorder(run: Run, work: Path, name: str, learner: Callable[[], Learner]) -> Callable[[dict[str, Any]], None]:
    """Append each step to metrics.jsonl and show where training is; the time left is that of the round's steps."""
    path, times = work / "metrics.jsonl", dict[int, tuple[int, float]]()

    def record(row: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, sort_keys=True) + "\n")
        here, clock = learner(), time.monotonic()
        first, began = times.setdefault(row["round"], (row["step"], clock))
        done = row["step"] - first + 1
        left = (clock - began) / max(done - 1, 1) * max(len(here.steps) - done, 0)
        where = f"round {row['round'] + 1}/{here.source.rounds}, " if here.source.rounds > 1 else ""
        show = f"step {done}/{len(here.steps)}, loss {row['loss']:.4f}"
        run.console.tick(f"{name}: {where}{show}" + (f", {left:.0f} s left" if done > 1 else ""))

    return record


def fit_learner(run: Run, work: Path, name: str, learner_arguments: dict[str, Any], checkpointing: bool) -> Learner:
    """Build the learner and fit it."""
    from alignkit.engine.fit import fit
    from alignkit.engine.learner import Learner

    box: list[Learner] = []
    learner = Learner(**learner_arguments, record=_recorder(run, work, name, lambda: box[0]))
    box.append(learner)
    fit(learner, precision=run.precision, trainer=run.trainer, checkpointing=checkpointing)
    return learner


def specs_kept(metrics: Mapping[str, Any] | None, logs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the numbers are that a stage logs beyond the core's own, as its result keeps it for the page."""
    specs = {**(logs or {}), **{name: metric.spec for name, metric in (metrics or {}).items()}}
    return {"specs": {name: spec.to_json() for name, spec in specs.items()}} if specs else {}


def _split(groups: Groups, fraction: float, seed: Sequence[int | str]) -> tuple[Groups, Groups]:
    """(train, held out), split by prompt, so that no prompt is on both sides."""
    from alignkit.randomness import stream_key, uniforms

    prompts = sorted({row["prompt_id"] for row in groups})
    draws = uniforms(np.array([stream_key(*seed, prompt) for prompt in prompts], dtype=np.uint64), 0)
    kept_back = {prompt for prompt, draw in zip(prompts, draws, strict=True) if draw < fraction}
    return groups.filter(lambda r: r["prompt_id"] not in kept_back), groups.filter(
        lambda r: r["prompt_id"] in kept_back
    )


def _drawn(groups: Groups, fraction: float, seed: Sequence[int | str]) -> Groups:
    """A share of the rows, drawn by counter, in their order."""
    from alignkit.randomness import permutation

    if fraction == 1:
        return groups
    return groups.select(sorted(permutation(len(groups), *seed)[: round(len(groups) * fraction)]))


def _checked_round(groups: Groups, model: Any, kind: Any, config: Mapping[str, Any], train: Any, where: str) -> Any:
    """Check, refuse or drop, encode."""
    from alignkit.data import check_groups, encode_groups, refuse_or_drop
    from alignkit.engine.training_data import TrainingData

    most = config["max_length"]
    problems = check_groups(groups, kind, model.chat, max_prompt_tokens=most, max_response_tokens=most)
    groups = refuse_or_drop(groups, problems, config["drop_bad"], where)
    encoded, left = encode_groups(groups, model.chat, max_prompt_tokens=most, max_response_tokens=most, train=train)
    groups = refuse_or_drop(groups, left, config["drop_bad"], where)
    return TrainingData(groups, list(encoded), shared=model.shares_prompts, pad_id=model.chat.pad_id)


def _training(training: Mapping[str, Any]) -> Any:
    from alignkit.optimizers import Training

    return Training(**training)


def sft(
    run: Run,
    work: Path,
    start: PolicyHandle,
    groups: Groups,
    loss: BoundLoss,
    config: Mapping[str, Any],
    training: Mapping[str, Any],
    name: str,
) -> dict[str, Any]:
    """Supervised fine-tuning."""
    from alignkit.optimizers import Term

    policy = trainable(run, start, name)
    learn, heldout = _split(groups, config["heldout_fraction"], (run.seed, name, "split"))
    data = _checked_round(learn, policy, "demonstrations", config, config["train"], name)
    steps = data.steps(config["batch_size"], config["epochs"], run.max_tokens, (run.seed, name, "order"), run.world)
    learner = fit_learner(
        run,
        work,
        name,
        {
            "model": policy,
            "loss": loss,
            "terms": {"loss": Term(reduction="token")},
            "training": _training(training),
            "source": OneRound(data, steps),
            "metrics": config.get("metrics"),
        },
        config["checkpointing"],
    )
    result: dict[str, Any] = {"steps": learner.steps_done, "rows": len(data.groups), "parameters": start.parameters}
    result |= specs_kept(config.get("metrics"))
    if len(heldout):
        result["heldout_loss"] = _mean_nll(
            policy, _checked_round(heldout, policy, "demonstrations", config, config["train"], name), run.max_tokens
        )
    if not run.rank:
        policy.save(work / "model")
    return result


def _mean_nll(policy: Any, data: Any, max_tokens: int) -> float:
    """Mean negative log-likelihood per learned token, in nats."""
    import torch

    total, tokens = 0.0, 0
    with torch.no_grad():
        for numbers in data.micro_batches(list(range(len(data.encoded))), max_tokens):
            batch = data.collate(numbers).to(policy.device)
            total -= float(policy.tensors(batch)["logprobs"].sum())
            tokens += int(batch.response_mask.sum())
    return total / max(tokens, 1)


def trainable(run: Run, handle: PolicyHandle, name: str) -> Any:
    """The live policy, its adapter (if it is to have one) initialised from the stage's own seed."""
    import torch

    from alignkit.engine.scoring import dtype_of
    from alignkit.randomness import derived_seed

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(run.seed, name, "init"))
        return handle.load(lora=handle.lora, trainable=True, dtype=dtype_of(run.precision))


def train_reward(
    run: Run,
    work: Path,
    init: PolicyHandle | RewardHandle,
    parts: Sequence[Groups],
    replay: Sequence[Groups],
    loss: BoundLoss,
    config: Mapping[str, Any],
    training: Mapping[str, Any],
    name: str,
) -> dict[str, Any]:
    """A reward model from comparisons or rankings, with its accuracy on prompts kept back."""
    from alignkit.engine.comparisons import comparison_report
    from alignkit.engine.scoring import Scorer, dtype_of
    from alignkit.models import RewardModel
    from alignkit.optimizers import Term
    from alignkit.randomness import derived_seed

    dtype = dtype_of(run.precision)
    if isinstance(init, RewardHandle):
        model = RewardModel.load(init.model_folder, trainable=True, dtype=dtype)
    else:
        seed = derived_seed(run.seed, name, "init")
        model = RewardModel.from_policy(init.model_folder, lora=init.lora, dtype=dtype, seed=seed)
    groups = Groups.concat(
        [*parts, _drawn(Groups.concat(list(replay)), config["replay_fraction"], (run.seed, name, "replay"))]
    )
    # The split depends on prompts alone, not on the stage, so that a model trained on later has never seen what is
    # kept back.
    learn, heldout = _split(groups, config["heldout_fraction"], (run.seed, "reward split"))
    kind = "comparisons" if all(len(row["responses"]) == 2 for row in learn) else "rankings"
    data = _checked_round(learn, model, kind, config, "last", name)
    steps = data.steps(config["batch_size"], config["epochs"], run.max_tokens, (run.seed, name, "order"), run.world)
    terms = {
        "loss": Term(reduction="group")
    }  # a prompt with many comparisons weighs no more than one with a single one
    learner = fit_learner(
        run,
        work,
        name,
        {
            "model": model,
            "loss": loss,
            "terms": terms,
            "training": _training(training),
            "source": OneRound(data, steps),
            "metrics": config.get("metrics"),
        },
        config["checkpointing"],
    )
    result: dict[str, Any] = {
        "steps": learner.steps_done,
        "pairs": len(data.pairs.group),
        "tied_pairs": sum(math.comb(len(row["responses"]), 2) for row in data.groups) - len(data.pairs.group),
        "parameters": count_parameters(model),
        **specs_kept(config.get("metrics")),
    }
    if len(heldout):
        result |= comparison_report(heldout, Scorer(model, run.max_tokens, config["max_length"]).score(heldout))
    if not run.rank:
        model.save(work / "model")
    return result
