"""Contradictions of `improve`, refused before anything is spent, and what is learned otherwise than it is given.

Needs no model, and no torch.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from alignkit.calls import calling, told, whose
from alignkit.errors import ConfigError, PluginError
from alignkit.fields import name_of
from alignkit.groups import Groups
from alignkit.optimizers import PolicyOptimizer, Stream, Term
from alignkit.registry.records import BoundLoss
from alignkit.vocabulary import KEEP, PREPARE, not_offered, select


@dataclass(frozen=True)
class Facts:
    """What is there for a method to learn from.

    Args:
        rewarded: whether a reward scores the responses.
        annotated: whether an annotator ranks them.
        referenced: whether there is a reference.
        own_weights: whether the policy that is trained is the one that samples.
        truncates: whether the sampler truncates.
        greedy: whether it takes the likeliest token.
    """

    rewarded: bool
    annotated: bool
    referenced: bool
    own_weights: bool
    truncates: bool
    greedy: bool = False


def asked_by(losses: Iterable[BoundLoss], referenced: bool) -> frozenset[str]:
    """The tensors of the losses; reference ones that are optional only where there is a reference."""
    names: set[str] = set()
    for loss in losses:
        idle = frozenset() if referenced else select(loss.optional, source="reference")
        names |= set(loss.tensor_names) - idle
    return frozenset(names)


def refuse_contradictions(method: PolicyOptimizer, by_losses: frozenset[str], facts: Facts) -> None:
    """Refuse what cannot be learned, or would be learned wrongly.

    Args:
        method: the policy optimizer.
        by_losses: tensors that its losses ask for, see `asked_by`.
        facts: what is there.

    Raises:
        ConfigError: what is wrong, and what to do.
    """
    _refuse_wrong_names(method)
    samples = method.samples_per_prompt > 0
    compares = told(method, "on_policy", object) or "old_logprobs" in by_losses
    if samples:
        _refuse_strange_samples(method, compares, facts)
    if compares and facts.truncates:
        raise ConfigError(
            "the method compares with the probabilities of its sampler, and this sampler truncates them",
            where="improve",
            effect="Ratios would be between different distributions.",
            remedy="use a sampler without truncation",
        )
    if samples and facts.greedy:
        _refuse_greedy(method, compares)
    if method.importance_cap is not None and not (samples and {"old_logprobs", "advantages"} <= by_losses):
        raise ConfigError(
            f"importance_cap={method.importance_cap} with a method that takes no ratios to its sampler",
            where=name_of(method),
            effect="Nothing would be weighed.",
            remedy="leave it out, or use a loss that names old_logprobs and advantages",
        )
    if facts.annotated and not facts.rewarded:
        _refuse_without_scores(method)
    if samples and not (facts.rewarded or facts.annotated):
        raise ConfigError(
            "the method samples, so it needs a reward or an annotator",
            where="improve",
            remedy="pass reward=… or annotator=…",
        )
    if select([*by_losses, *method.prepare_arguments()], source="reference") and not facts.referenced:
        raise ConfigError("the method needs a reference", where="improve", remedy="pass reference=…")


def refuse_wrong_declarations(method: PolicyOptimizer) -> None:
    """Refuse a method whose terms, extra losses or streams are none.

    Raises:
        PluginError: it raised, or returned something else.
    """
    for name, kind in (("terms", Term), ("extra_losses", object), ("streams", Stream)):
        with calling(method, name):
            found = getattr(method, name)()
        if not isinstance(found, Mapping) or not all(isinstance(one, kind) for one in found.values()):
            shown = f"{found!r}" if found is None or isinstance(found, Mapping) else f"a {type(found).__name__}"
            remedy = f"return a mapping of {kind.__name__}s by name" if kind is not object else "return losses by name"
            raise PluginError(f"returned {shown}", where=f"{whose(method)}.{name}", remedy=remedy)


def unread(groups: Groups, losses: Sequence[BoundLoss]) -> list[str]:
    """What to say where losses of comparisons do not read all that is told of these: soft labels, which are then
    learned as certain ones, and margins, which are then 0.

    Args:
        groups: what is learned from.
        losses: what learns from them, the one that matters first.
    """
    main, named = losses[0], {name for loss in losses for name in loss.tensor_names}
    pairs = bool(select(main.tensor_names, level="pair"))
    if not (pairs or {"ranks", "labels"} & set(main.tensor_names)):
        return []
    rows, found = groups.each("ranks", "preference_prob", "meta"), []
    ranked = [(prob, json.loads(meta) if meta else {}) for ranks, prob, meta in rows if ranks is not None]
    soft = sum(prob not in (None, 1.0) for prob, _ in ranked)
    if soft and "preference_prob" not in named:
        found.append(
            f"loss {main.name} takes no soft labels: {soft} of {len(groups)} rows have a preference_prob, and are "
            "learned as if it were 1. Use a loss that names preference_prob, or leave it out of the data."
        )
    margins = sum(bool(meta.get("margin")) for _, meta in ranked)
    if margins and "margin" not in named and (pairs or "ranks" in main.tensor_names):
        found.append(
            f"loss {main.name} takes no margin: {margins} of {len(groups)} rows have one, and are learned as if it "
            "were 0. Use a loss that names margin, or leave it out of the data."
        )
    return found


def _refuse_wrong_names(method: PolicyOptimizer) -> None:
    keep = list(inspect.signature(method.keep).parameters.values())
    asked_to_keep = () if keep and keep[0].kind is keep[0].VAR_POSITIONAL else tuple(p.name for p in keep[1:])
    for name, asked, offers in (("prepare", method.prepare_arguments(), PREPARE), ("keep", asked_to_keep, KEEP)):
        if reason := not_offered(name, asked, offers):
            raise ConfigError(reason, where=type(method).__name__, remedy=f"name some of {', '.join(offers)}")


def _refuse_strange_samples(method: PolicyOptimizer, compares: bool, facts: Facts) -> None:
    if (compares or told(method, "own_samples", object)) and not facts.own_weights:
        raise ConfigError(
            "the method learns from its own samples, and init names other weights than the policy's",
            where="improve",
            effect="Its ratios would compare two policies of which neither drew the samples.",
            remedy="leave init out, or improve(init, …)",
        )
    if compares and method.sample_every != 1:
        raise ConfigError(
            f"sample_every={method.sample_every} with a method that compares with its sampler",
            where="improve",
            effect="Later rounds would take the weights of that moment for those that sampled.",
            remedy="use epochs, which keep the log-probs of the sampler",
        )


def _refuse_greedy(method: PolicyOptimizer, compares: bool) -> None:
    """Refuse a greedy sampler where its one answer per prompt is taken for draws."""
    if compares:
        what = "the method compares with the probabilities of its sampler, and this sampler is greedy"
        effect = "Nobody drew from the distribution that its ratios would be about."
    elif method.samples_per_prompt > 1:
        what = f"samples_per_prompt={method.samples_per_prompt} with a greedy sampler"
        effect = "All responses to a prompt would be the same one."
    else:
        return
    raise ConfigError(what, where="improve", effect=effect, remedy="leave greedy out")


def _refuse_without_scores(method: PolicyOptimizer) -> None:
    """Refuse a method that learns from scores where there are only ranks; one that can do without says so by a
    default for `reward_name`."""
    for function in (method.prepare, method.keep):
        parameters = inspect.signature(function).parameters
        needed = {"rewards", "present"} & set(parameters)
        name = parameters.get("reward_name")
        if needed or (name is not None and name.default is inspect.Parameter.empty):
            raise ConfigError(
                "the method learns from scores, and an annotator gives ranks",
                where="improve",
                remedy="pass reward=…, or use a method that learns from comparisons",
            )
