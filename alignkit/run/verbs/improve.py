"""The work of improve: rollouts, learning, and what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.errors import DataError
from alignkit.groups import Groups
from alignkit.run.handles import GroupsHandle, PolicyHandle
from alignkit.run.verbs.training import fit_learner, specs_kept, trainable

if TYPE_CHECKING:
    from alignkit.annotators import Annotator
    from alignkit.engine.learner import Learner
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
    metrics: Mapping[str, Any]


VALUE_MODEL = "value_model"
"""Folder of a separate value model, beside the policy's."""


def improve(run: Run, work: Path, request: ImproveRequest) -> dict[str, Any]:
    """Sample, score, learn, round by round."""
    from alignkit.engine.improve import Rollouts
    from alignkit.engine.objectives import extra_objectives
    from alignkit.engine.scoring import dtype_of, release
    from alignkit.optimizers import Training

    opt, dtype = request.optimizer, dtype_of(run.precision)
    loss = run.host.build("loss", request.loss)
    policy = trainable(run, request.init, request.name)
    behaviour = policy if request.init.key == request.policy.key else request.policy.load(dtype=dtype).to(run.device)
    reference, state_name = open_reference(run, request.reference, policy, dtype)
    extras = {key: run.host.build("loss", fn) for key, fn in opt.extra_losses().items()}
    asked = {name for each in (loss, *extras.values()) for name in each.tensor_names}
    values = bool({"values", "old_values"} & {*asked, *opt.prepare_arguments()})
    value_model = _value_model(run, request, policy) if values else None
    source = Rollouts(
        policy=policy,
        behaviour=behaviour,
        reference=reference,
        reference_state=state_name,
        optimizer=opt,
        loss=loss,
        sampler=request.sampler,
        reward=request.reward,
        annotator=request.annotator,
        extras=extras,
        reference_logprobs=request.reference_logprobs,
        prompts=_open(request.prompts),
        history=Groups.concat([_open(h) for h in request.history]),
        seed=(run.seed, request.name),
        max_tokens=run.max_tokens,
        max_response_tokens=max(request.sampler.max_new_tokens, 1024),
        state=opt.initial_state(),
        heldout=request.heldout,
        patience=request.patience,
        max_missing=request.max_missing,
        value_model=value_model,
        world=(run.rank, run.world),
        say=lambda text: run.console.say(f"{request.name}: {text}"),
        tick=lambda text: run.console.tick(f"{request.name}: {text}"),
    )
    config = Training(**{f: getattr(opt, f) for f in Training.__dataclass_fields__})
    learner = fit_learner(
        run,
        work,
        request.name,
        {
            "model": policy,
            "loss": loss,
            "terms": opt.terms(),
            "training": config,
            "source": source,
            "temperature": opt.logprob_temperature,
            "value_model": value_model,
            "extras": extra_objectives(extras, opt.terms()),
            "streams": _streams(run, request, policy),
            "reference": source.online_reference,
            "metrics": request.metrics,
        },
        request.checkpointing,
    )
    best = source.restore_best()
    release(request.reward)
    if request.annotator is not None:
        request.annotator.release()
    return _keep_improved(run, work, request, source, learner, policy, best)


def _keep_improved(
    run: Run, work: Path, request: ImproveRequest, source: Any, learner: Learner, policy: Any, best: int | None
) -> dict[str, Any]:
    sampled = Groups.concat(source.sampled)
    sampled = sampled.map_rows(lambda row: {"iteration": request.iteration})
    if not run.rank:
        sampled.save(work / "groups")
        policy.save(work / "model")
        policy.save_value_head(work / "model")
        if source.value_model is not None:
            source.value_model.save(work / VALUE_MODEL)
            source.value_model.save_value_head(work / VALUE_MODEL)
    result = {
        "rows": len(sampled),
        "steps": learner.steps_done,
        "state": source.state,
        "parameters": request.init.parameters,
        "budget": {**source.counts, "optimizer_steps": learner.steps_done},
        "last": dict(source.round_metrics()),
        **specs_kept(request.metrics, request.optimizer.logs),
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


def open_reference(run: Run, handle: PolicyHandle | None, policy: Any, dtype: Any) -> tuple[Any, str | None]:
    """A named state of the policy where it has the same base; else a model of its own, frozen."""
    if handle is None:
        return None, None
    if policy.add_state("reference", handle.model_folder):
        return None, "reference"
    reference = handle.load(dtype=dtype).to(run.device)
    if reference.chat.fingerprint != policy.chat.fingerprint:
        raise DataError(
            "policy and reference have different tokenizers",
            where=handle.name,
            effect="Log-probs of the same ids would be of different texts.",
            remedy="use a reference with the policy's tokenizer",
        )
    return reference, None


def _streams(run: Run, request: ImproveRequest, policy: Any) -> list[Any]:
    """The second data streams, encoded. What does not fit the length limits is left out and said."""
    from alignkit.data.encode import encode_groups, encode_texts, is_plain_text
    from alignkit.engine.objectives import Objective, StreamData
    from alignkit.engine.training_data import TrainingData
    from alignkit.optimizers import Term

    found = []
    for name, stream in request.optimizer.streams().items():
        groups, most = _open(request.streams[name]), max(request.sampler.max_prompt_tokens, 1024)
        texts, talks = groups.filter(is_plain_text), groups.filter(lambda row: not is_plain_text(row))
        pieces = encode_texts(texts, policy.chat, most)
        encoded, left = encode_groups(talks, policy.chat, max_prompt_tokens=most, max_response_tokens=most)
        if left:
            run.console.say(f"{request.name}: {len(left)} rows of the stream {name} left out: {left[0]}")
        if not encoded and not pieces:
            raise DataError(f"the stream {name} has no row to learn from", where=request.name)
        rows = Groups.concat([texts.select(e.index for e in pieces), talks.select(e.index for e in encoded)])
        data = TrainingData(rows, [*pieces, *encoded], shared=policy.shares_prompts, pad_id=policy.chat.pad_id)
        term = Term(weight=stream.weight, reduction=stream.reduction)
        objective = Objective(run.host.build("loss", stream.loss), {name: term}, name)
        seed = (run.seed, request.name, "stream", name)
        found.append(StreamData(name, data, objective, stream.batch_size, run.max_tokens, seed))
    return found


def _value_model(run: Run, request: ImproveRequest, policy: Any) -> Any:
    """None after putting a head on the policy's trunk, or a model of its own."""
    from alignkit.engine.scoring import dtype_of
    from alignkit.models import Policy

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
