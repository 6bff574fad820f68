"""The work of improve: rollouts, learning, and what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import DataError
from alignkit.groups import Groups
from alignkit.run.handles import GroupsHandle, PolicyHandle
from alignkit.run.verbs.training import fit_learner, trainable

if TYPE_CHECKING:
    from alignkit.annotators import Annotator
    from alignkit.engine.improve import Improvement
    from alignkit.engine.reference import Reference
    from alignkit.meter import Meter
    from alignkit.optimizers import PolicyOptimizer
    from alignkit.rewards import Reward
    from alignkit.run.run import Run
    from alignkit.sampling import Sampler


@dataclass(frozen=True)
class ImproveRequest:
    """The arguments of `Run.improve`, resolved."""

    policy: PolicyHandle
    prompts: Groups | GroupsHandle
    optimizer: PolicyOptimizer
    loss: Any
    sampler: Sampler
    reward: Reward | None
    annotator: Annotator | None
    streams: Mapping[str, Groups | GroupsHandle]
    reference: PolicyHandle | None
    reference_logprobs: str
    init: PolicyHandle
    history: Sequence[GroupsHandle | Groups]
    heldout: Groups | None
    patience: int
    max_missing: float
    value_model: str
    checkpointing: bool
    iteration: int | None
    name: str


VALUE_MODEL = "value_model"
"""Folder of a separate value model, beside the policy's."""


def improve(run: Run, work: Path, request: ImproveRequest) -> dict[str, Any]:
    """Sample, score, learn, round by round."""
    from alignkit.engine.improve import improvement
    from alignkit.engine.judging import Judging
    from alignkit.engine.objectives import extra_objectives
    from alignkit.engine.setting import Models, Setting
    from alignkit.meter import Meter
    from alignkit.models.loading import dtype_of
    from alignkit.optimizers import Training
    from alignkit.vocabulary import roots, select

    opt, dtype = request.optimizer, dtype_of(run.precision)
    loss = run.host.build("loss", request.loss)
    policy = trainable(run, request.init, request.name)
    behaviour = policy if request.init.key == request.policy.key else request.policy.load(dtype=dtype).to(run.device)
    meter = Meter()
    reference = open_reference(run, request.reference, policy, dtype, meter)
    extras = {key: run.host.build("loss", fn) for key, fn in opt.extra_losses().items()}
    asked = {name for each in (loss, *extras.values()) for name in each.tensor_names} | {*opt.prepare_arguments()}
    values = bool(select(roots(asked), source="value"))
    value_model = _value_model(run, request, policy) if values else None
    setting = Setting(
        seed=(run.seed, request.name),
        max_tokens=run.max_tokens,
        world=(run.rank, run.world),
        meter=meter,
        say=lambda text: run.console.say(f"{request.name}: {text}"),
        tick=lambda text: run.console.tick(f"{request.name}: {text}"),
    )
    made = improvement(
        opt,
        (loss, *extras.values()),
        Models(policy, behaviour, reference, value_model),
        request.sampler,
        Judging(setting, request.reward, request.annotator, request.max_missing),
        _open(request.prompts),
        setting,
        history=Groups.concat([_open(h) for h in request.history]),
        heldout=request.heldout,
        patience=request.patience,
        reference_logprobs=request.reference_logprobs,
        max_response_tokens=max(request.sampler.max_new_tokens, 1024),
    )
    config = Training(**{f: getattr(opt, f) for f in Training.__dataclass_fields__})
    fit_learner(
        run,
        work,
        request.name,
        {
            "model": policy,
            "loss": loss,
            "terms": opt.terms(),
            "training": config,
            "rounds": made,
            "temperature": opt.logprob_temperature,
            "value_model": value_model,
            "extras": extra_objectives(extras, opt.terms()),
            "streams": _streams(run, request, policy),
            "reference": made.online_reference,
            "meter": meter,
        },
        request.checkpointing,
    )
    best = made.early_stop.restore_best()
    for part in (request.reward, request.annotator):
        if part is not None:
            part.release()
    return _keep_improved(run, work, request, made, best)


BUDGET = ("generated_tokens", "reward_calls", "trained_tokens", "optimizer_steps")
"""What of the meter stands in the result of improve."""


def _keep_improved(
    run: Run, work: Path, request: ImproveRequest, made: Improvement, best: int | None
) -> dict[str, Any]:
    sampled = Groups.concat(made.collect.sampled)
    sampled = sampled.map_rows(lambda row: {"iteration": request.iteration})
    models = made.known.models
    if not run.rank:
        sampled.save(work / "groups")
        models.policy.save(work / "model")
        models.policy.save_value_head(work / "model")
        if models.value_model is not None:
            models.value_model.save(work / VALUE_MODEL)
            models.value_model.save_value_head(work / VALUE_MODEL)
    counts = made.setting.meter.counts
    result = {
        "rows": len(sampled),
        "steps": counts["optimizer_steps"],
        "state": made.state,
        "parameters": request.init.parameters,
        "budget": {name: counts[name] for name in BUDGET},
        "last": dict(made.last),
    }
    if request.reward is not None and request.optimizer.samples_per_prompt > 1:
        result |= _best_of_n(sampled, request.reward.name)
    return result | ({"best_round": best} if best is not None else {})


def _best_of_n(sampled: Groups, name: str) -> dict[str, Any]:
    """Maximum and median reward among n samples of a prompt, over the prompts whose samples all have a reward."""
    from alignkit.evaluation import best_of_n_curve

    values, present = sampled.rewards(name)
    whole = [row for row, there in zip(values, present, strict=True) if all(there)]
    if not whole:
        return {}
    return {"best_of_n": {str(n): point for n, point in best_of_n_curve(whole).items()}, "best_of_n_score": name}


def _open(value: Groups | GroupsHandle) -> Groups:
    return value.groups if isinstance(value, GroupsHandle) else value


def open_reference(run: Run, handle: PolicyHandle | None, policy: Any, dtype: Any, meter: Meter) -> Reference | None:
    """A named state of the policy where it has the same base; else a model of its own, frozen."""
    from alignkit.engine.reference import Reference

    if handle is None:
        return None
    if policy.add_state("reference", handle.model_folder):
        return Reference(policy, "reference", meter)
    reference = handle.load(dtype=dtype).to(run.device)
    if reference.chat.fingerprint != policy.chat.fingerprint:
        raise DataError(
            "policy and reference have different tokenizers",
            where=handle.name,
            effect="Log-probs of the same ids would be of different texts.",
            remedy="use a reference with the policy's tokenizer",
        )
    return Reference(reference, meter=meter)


def _streams(run: Run, request: ImproveRequest, policy: Any) -> list[Any]:
    """The second data streams, encoded. What does not fit the length limits is left out and said."""
    from alignkit.engine.objectives import Objective, StreamData
    from alignkit.engine.training_data import TrainingData
    from alignkit.optimizers import Term

    found = []
    for name, stream in request.optimizer.streams().items():
        most = max(request.sampler.max_prompt_tokens, 1024)
        data, left = TrainingData.of_stream(policy, _open(request.streams[name]), most)
        if left:
            run.console.say(f"{request.name}: {len(left)} rows of the stream {name} left out: {left[0]}")
        if not data.encoded:
            raise DataError(f"the stream {name} has no row to learn from", where=request.name)
        term = Term(weight=stream.weight, reduction=stream.reduction)
        objective = Objective(run.host.build("loss", stream.loss), {name: term}, name)
        seed = (run.seed, request.name, "stream", name)
        found.append(StreamData(name, data, objective, stream.batch_size, run.max_tokens, seed))
    return found


def _value_model(run: Run, request: ImproveRequest, policy: Any) -> Any:
    """None after putting a head on the policy's trunk, or a model of its own."""
    from alignkit.models import Policy
    from alignkit.models.loading import dtype_of

    if request.value_model == "head":
        policy.add_value_head(request.init.model_folder)
        return None
    before = request.init.path / VALUE_MODEL
    if before.is_dir():  # the version before learned one: it goes on
        separate = Policy.load(before, lora=request.init.lora, trainable=True, dtype=dtype_of(run.precision))
    else:
        separate = trainable(run, request.init, request.name + "/value")
    separate.add_value_head(before)
    return separate
