"""Checks of policy optimizers: what `prepare` makes of awkward rounds, and what the first step's gradient is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignkit.errors import AlignkitError, NumericError
from alignkit.groups import Groups
from alignkit.metrics.specs import CORE as CORE_SPECS
from alignkit.optimizers import Batch
from alignkit.testing.conformance.method_runs import Call, trial
from alignkit.testing.conformance.outcome import check, refuse, skip
from alignkit.testing.conformance.subject import Subject
from alignkit.testing.conformance.watching import twice_alike
from alignkit.vocabulary import VOCABULARY


def first_call(subject: Subject) -> Call:
    """The first `prepare` of a try."""
    call: Call = trial(subject).calls[0]
    return call


@check("optimizer")
def runs_a_round(subject: Subject) -> str:
    """A round on the tiny model, from prompts to a saved policy. LF#5936, #6373, unsloth#4006: what an update of a
    library breaks is the first round."""
    found = trial(subject)
    if not found.result.get("steps"):
        refuse("no optimizer step was taken")
    return f"{found.result['steps']} steps"


@check("optimizer")
def done_already(subject: Subject) -> str:
    """The same command finds the finished stage: its key holds still from one build to the next. trl#2657, #1643,
    NeMo RL#3171: runs that could not be taken up again."""
    if not trial(subject).again:
        refuse("the same command made the stage anew: something in it is another at each build")
    return "the same command made nothing"


@check("optimizer")
def finite_gradient(subject: Subject) -> str:
    """The first step has a gradient: finite, and not zero everywhere. LF#845, #856, DeepSpeedExamples#586."""
    found = trial(subject)
    if not found.gradients:
        refuse("the first step has no gradient at all")
    norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in found.gradients.values()))
    if not math.isfinite(norm) or norm == 0:
        refuse(f"the norm of the first gradient is {norm}")
    return f"norm {norm:.4g}"


@check("optimizer")
def prepared_batch(subject: Subject) -> str:
    """What `prepare` returns is aligned with its groups, detached, finite where it is learned from, and called by
    names that were declared: 2R values were once accepted here, and graphs that kept models alive."""
    batch = first_call(subject).batch
    responses = batch.groups.num_responses
    promised = {n for n, spec in VOCABULARY.items() if spec.source == "method"} | set(trial(subject).method.provides)
    for name, value in batch.tensors.items():
        if name not in promised and name not in VOCABULARY:
            refuse("it is neither in the vocabulary nor in `provides`", f"Batch.tensors[{name!r}]")
        if len(value) != responses:
            refuse(f"it has {len(value)} rows for {responses} responses", f"Batch.tensors[{name!r}]")
        if value.requires_grad:
            refuse("it has a gradient", f"Batch.tensors[{name!r}]")
        if not torch.isfinite(value.float()).all():
            refuse("it is not finite", f"Batch.tensors[{name!r}]")
    missing = {n for n in trial(subject).method.provides if n not in batch.tensors}
    if missing:
        refuse(f"`provides` declares {sorted(missing)}, and the batch has none")
    return f"{responses} responses, {', '.join(batch.tensors) or 'no tensors'}"


@check("optimizer")
def hidden_advantages(subject: Subject) -> str:
    """Beyond the tokens of a response the tensors of `prepare` are 0, so that nobody's padding carries a reward:
    verl#6310, a reward on a pad token of an empty response."""
    call = first_call(subject)
    mask = call.given.get("response_mask")
    if mask is None or call.batch.groups.num_responses != len(mask):
        skip("it asks for no response_mask, or learns from other responses than were sampled")
    for name, value in call.batch.tensors.items():
        if value.shape == mask.shape and (value[~mask.bool()] != 0).any():
            refuse("it is not 0 beyond the tokens of a response", f"Batch.tensors[{name!r}]")
    return "0 beyond the tokens of a response"


@check("optimizer")
def prepare_changes_nothing(subject: Subject) -> str:
    """`prepare` writes into nothing that it was given, moves no global random state, and gives the same twice:
    ms-swift#3607, open-instruct#648 (a fixed seed that is not reproducible)."""
    call = first_call(subject)
    for name, before in call.before.items():
        if not torch.equal(before.nan_to_num(), call.given[name].nan_to_num()):
            refuse("prepare writes into it", name)
    state = json.dumps(call.state, sort_keys=True, default=str)
    twice_alike(call.again, batches_differ, call.groups, what="prepare")
    if json.dumps(call.state, sort_keys=True, default=str) != state:
        refuse("prepare changes the state that it was given, instead of returning a new one")
    return "two calls agree to the bit"


def batches_differ(one: Batch, other: Batch) -> str:
    """In what two batches differ, or an empty string."""
    if one.groups.digest() != other.groups.digest():
        return "groups"
    for name, value in one.tensors.items():
        if name not in other.tensors or not torch.equal(
            value.float().nan_to_num(), other.tensors[name].float().nan_to_num()
        ):
            return f"tensors[{name!r}]"
    return "metrics" if dict(one.metrics) != dict(other.metrics) else ""


@check("optimizer")
def state_is_json(subject: Subject) -> str:
    """The state is plain JSON that reads back as it was, `initial_state` names all of it, and `update` returns a new
    one: what cannot be written down starts over after a crash, and the next version goes on with what is named.
    trl#2657, NeMo RL#3171 (resumed with a fresh optimizer, in silence)."""
    call = first_call(subject)
    method = call.method
    states = {"initial_state()": method.initial_state(), "Batch.state": call.batch.state or {}}
    before = dict(method.initial_state())
    states["update()"] = method.update(before, _Numbers())
    if before != method.initial_state():
        refuse("update changes the state that it was given, instead of returning a new one")
    for name, state in states.items():
        if more := sorted(set(state) - set(before)):
            refuse(f"it holds {more}, which initial_state does not name", name)
        try:
            back = json.loads(json.dumps(state, allow_nan=False))
        except (TypeError, ValueError) as error:
            refuse(f"it is no JSON: {error}", name)
        if back != dict(state):
            refuse("it reads back as something else (numbers as keys, tuples)", name)
    return ", ".join(f"{name}: {len(state)} entries" for name, state in states.items())


class _Numbers(dict[str, float]):
    """The metrics of a round, whatever `update` asks of them."""

    def __missing__(self, key: str) -> float:
        return 0.5

    def get(self, key: str, default: Any = None) -> Any:
        return 0.5


@check("optimizer")
def constant_rewards(subject: Subject) -> str:
    """Where all responses score alike nothing is NaN: the advantage is 0, or the round is refused in words. A
    deviation of 0 divides (verl, TRL: eps), and whitening equal scores made noise of
    rounding."""
    call = first_call(subject)
    name = _scored(call)
    groups = call.groups.with_rewards(name, [[1.0] * len(row["responses"]) for row in call.groups])
    return _finite(call, groups, "all responses score 1", rewards=_ones(call))


def _ones(call: Call) -> Tensor:
    given = call.given.get("rewards")
    return torch.ones(call.groups.num_responses) if given is None else torch.ones_like(given)


def _scored(call: Call) -> str:
    """The reward's name, of a method that looks at scores."""
    if not {"rewards", "reward_name"} & set(call.given) or not call.groups.reward_names():
        skip("it does not look at scores")
    return call.groups.reward_names()[0]


def _finite(call: Call, groups: Groups, what: str, **changes: Tensor) -> str:
    """Refuse a batch that is not finite; a refusal in words is an answer too."""
    try:
        batch = call.changed(groups, **changes)
    except NumericError as error:
        refuse(f"{what}: {error}")
    except AlignkitError as error:
        return f"refused: {error}"
    for name, value in batch.tensors.items():
        if not torch.isfinite(value.float()).all():
            refuse(f"{what}: it is not finite", f"Batch.tensors[{name!r}]")
    bad = [name for name, value in batch.metrics.items() if not math.isfinite(value)]
    if bad:
        refuse(f"{what}: they are not finite", f"Batch.metrics: {', '.join(bad)}")
    return what


@check("optimizer")
def missing_rewards(subject: Subject) -> str:
    """A reward that is missing is not a reward of 0: what stands in its place changes nothing. trl#6427, where a
    default of 0.0 reinforced doing nothing."""
    call = first_call(subject)
    name = _scored(call)
    values, _ = call.groups.rewards(name)
    gone = [[None if (i + k) % 3 == 0 else v for k, v in enumerate(row)] for i, row in enumerate(values)]
    groups = call.groups.with_rewards(name, gone)  # type: ignore[arg-type]
    present = torch.tensor([v is not None for row in gone for v in row])
    batches = []
    for filler in (0.0, 1000.0):
        rewards = torch.tensor([filler if v is None else v for row in gone for v in row])
        rewards = rewards if "rewards" not in call.given else rewards.to(call.given["rewards"].dtype)
        try:
            batches.append(call.changed(groups, rewards=rewards, present=present))
        except NumericError as error:
            refuse(f"with missing rewards: {error}")
        except AlignkitError as error:
            return f"refused: {error}"
    if difference := batches_differ(*batches):
        refuse(f"what stands where a reward is missing is read as one: {difference} differs", "prepare")
    return "what stands in their place changes nothing"


@check("optimizer")
def empty_responses(subject: Subject) -> str:
    """A response without a learned token makes nothing NaN, and no reward of it lands on another: verl#6310."""
    call = first_call(subject)
    mask = call.given.get("response_mask")
    if mask is None:
        skip("it does not look at tokens")
    emptied = mask.clone()
    emptied[0] = False
    return _finite(call, call.groups, "the first response has no token", response_mask=emptied)


@check("optimizer")
def keeps_by_prompt(subject: Subject) -> str:
    """`keep` says yes or no once for each prompt, or nothing."""
    call = first_call(subject)
    if type(call.method).keep is _base_keep():
        skip("it keeps all")
    known = {"reward_name": next(iter(call.groups.reward_names()), None)}
    asked = [name for name in known if name in _parameters(type(call.method).keep)]
    kept = call.method.keep(call.groups, **{name: known[name] for name in asked})
    if kept is not None and (len(kept) != len(call.groups) or not all(isinstance(k, bool) for k in kept)):
        refuse(f"it gives {len(kept)} answers for {len(call.groups)} prompts, or other than True and False", "keep")
    return f"{kept}"


def _base_keep() -> Any:
    from alignkit.optimizers import PolicyOptimizer

    return PolicyOptimizer.keep


def _parameters(function: Any) -> Mapping[str, Any]:
    import inspect

    return inspect.signature(function).parameters


@check("optimizer")
def every_micro_batch_alike(subject: Subject) -> str:
    """The first step's gradient is the same in one micro-batch and in many: trl#6024, #3021, #5619, ms-swift#10117."""
    whole, parts = trial(subject).gradients, trial(subject, max_tokens=48).gradients
    _same_gradients(whole, parts, "the first gradient depends on the micro-batches")
    return "one micro-batch and many"


def _same_gradients(one: Mapping[str, Tensor], other: Mapping[str, Tensor], what: str) -> None:
    if set(one) != set(other):
        refuse(f"{what}: other weights have one")
    for name, value in one.items():
        far = float((value - other[name]).abs().max())
        if far > 1e-5 * max(1.0, float(value.abs().max())):
            refuse(f"{what}: by {far:.3g} where the largest is {float(value.abs().max()):.3g}", name)


@check("optimizer")
def numbers_are_declared(subject: Subject) -> str:
    """What it logs has a `MetricSpec`, so that a reader knows what a number is and when it is bad: trl#800, LF#6153,
    algorithm behaviour that users cannot interpret. One that is not declared is named, and is no failure."""
    call = first_call(subject)
    known = {**CORE_SPECS, **call.method.logs}
    silent = [name for name in (*call.batch.metrics, *call.method.terms()) if name not in known]
    return f"not declared: {', '.join(silent)}" if silent else "all of them"
