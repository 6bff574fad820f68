"""Checks of losses: numbers, dtypes, gradients, and which way they push."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from alignkit.registry.records import BoundLoss
from alignkit.testing.conformance.loss_data import Tensors, gradients, level, shown, terms_of, total
from alignkit.testing.conformance.loss_form import is_watched, loss_of, per_element, same, tensors_of
from alignkit.testing.conformance.outcome import check, refuse, skip
from alignkit.testing.conformance.subject import Subject


def with_gradient(subject: Subject) -> tuple[BoundLoss, Tensors]:
    """The loss and its tensors, where it is one that is learned from.

    Raises:
        DoesNotApplyError: it is a diagnostic.
    """
    loss, tensors = per_element(subject)
    if is_watched(subject):
        skip("a diagnostic: methods log it and do not learn from it")
    leaves = tensors.with_gradients()
    if not any(term.requires_grad for term in terms_of(loss, leaves).values()):
        skip("nothing that it returns has a gradient: a diagnostic, see `has-a-gradient`")
    return loss, tensors


@check("loss")
def has_a_gradient(subject: Subject) -> str:
    """What is returned is differentiable in something that is trained. A loss that is detached trains nothing and
    says nothing , and was once accepted here; a dict of diagnostics that no method learns from may be."""
    loss, tensors = per_element(subject)
    terms = terms_of(loss, tensors.with_gradients())
    learned = [name for name, term in terms.items() if term.requires_grad]
    if is_watched(subject):
        skip("a diagnostic: methods log it and do not learn from it")
    if not learned and set(terms) != {"loss"}:
        skip("a diagnostic: it returns named terms, none with a gradient")
    if not learned:
        refuse(f"the loss has no gradient in any of {', '.join(tensors.learned) or 'its tensors'}")
    return f"{', '.join(learned)}"


@check("loss")
def every_logprob_counts(subject: Subject) -> str:
    """Every log-prob and score that is asked for changes a value: one that does not is a reference that was
    forgotten (trl#536, #495), and its forward pass is paid for nothing."""
    loss, tensors = loss_of(subject), tensors_of(subject)
    asked = [n for n in tensors.values if tensors.sources[n] in ("policy", "reference", "score", "old")]
    before = terms_of(loss, tensors)
    for name in asked:
        after = terms_of(loss, tensors.but(**{name: 1.3 * tensors.values[name] - 0.37}))
        if all(same(before[term], after[term]) for term in before):
            refuse("nothing that is returned depends on it", name)
    if not asked:
        skip("it asks for no log-prob and no score")
    return ", ".join(asked)


@check("loss")
def finite_and_exact_in_float32(subject: Subject) -> str:
    """float32 gives what float64 gives, to 1e-4, value and gradient: a difference of large sums, or exp of one, is
    where digits go."""
    loss, tensors = per_element(subject)
    exact, single = tensors.with_gradients(), tensors.to(torch.float32).with_gradients()
    for name, value in terms_of(loss, exact).items():
        if not torch.isfinite(shown(value, tensors.mask)).all():
            refuse("a value is not finite", f"term {name}")
        if not _near(terms_of(loss, single)[name], value, tensors.mask):
            refuse("float32 and float64 differ by more than 1e-4", f"term {name}")
    found, wanted = gradients(total(loss, [single]), single), gradients(total(loss, [exact]), exact)
    for name, gradient in wanted.items():
        if not same(found[name], gradient, 1e-4):
            refuse("its gradient in float32 and float64 differs by more than 1e-4", name)
    return "to 1e-4"


def _near(one: Tensor, other: Tensor, mask: Tensor) -> bool:
    one, other = shown(one, mask), shown(other, mask)
    return same(one, other, 1e-4 * max(1.0, float(other.detach().abs().max())))


@check("loss")
def finite_in_bf16(subject: Subject) -> str:
    """In bfloat16 values and gradients stay finite: a head of this library once had a gradient of exactly 0 there."""
    loss, tensors = per_element(subject)
    half = tensors.to(torch.bfloat16).with_gradients()
    for name, value in terms_of(loss, half).items():
        if not torch.isfinite(shown(value, tensors.mask)).all():
            refuse("a value is not finite in bfloat16", f"term {name}")
    for name, gradient in gradients(total(loss, [half]), half).items():
        if not torch.isfinite(gradient).all():
            refuse("a gradient is not finite in bfloat16", name)
    return "finite"


FAR = {"chosen_logprobs": -2000.0, "rejected_logprobs": -3.0, "ref_chosen_logprobs": -40.0, "chosen_rewards": -600.0,
       "ref_rejected_logprobs": -900.0, "rejected_rewards": 600.0, "old_logprobs": -40.0}  # fmt: skip


@check("loss")
def finite_far_away(subject: Subject) -> str:
    """A pair that is lost by thousands of nats, or scores 1200 apart, still has a finite value and gradient:
    log(sigmoid(x)) is -inf at -100 where logsigmoid is -100; one paper's reference code gives NaN where all
    pairs saturate (1.7)."""
    loss, tensors = per_element(subject)
    far = tensors.changed(lambda n, v: torch.full_like(v, FAR[n]) if n in FAR else v)
    lost = far.to(torch.float32).with_gradients()
    won = _swapped(far).to(torch.float32).with_gradients()
    for case, what in ((lost, "lost"), (won, "won")):
        for name, value in terms_of(loss, case).items():
            if not torch.isfinite(shown(value, tensors.mask)).all():
                refuse(f"a value is not finite where a comparison is {what} by far, in float32", f"term {name}")
        for name, gradient in gradients(total(loss, [case]), case).items():
            if not torch.isfinite(gradient).all():
                refuse(f"a gradient is not finite where a comparison is {what} by far, in float32", name)
    return "finite at thousands of nats"


def _swapped(tensors: Tensors) -> Tensors:
    """Chosen and rejected exchanged."""

    def partner(name: str) -> str:
        if "chosen" in name:
            return name.replace("chosen", "rejected")
        return name.replace("rejected", "chosen")

    values = tensors.values
    swapped = {n: values.get(partner(n), v) for n, v in values.items()}
    return replace(tensors, values=swapped)


@check("loss")
def gradcheck(subject: Subject) -> str:
    """The gradient is the derivative of the value, by finite differences in float64: a straight-through estimator
    that nobody declared, a custom backward with a wrong sign, a detach in the wrong place."""
    loss, tensors = with_gradient(subject)
    leaves = tensors.with_gradients()
    names = leaves.learned

    def value(*given: Tensor) -> Tensor:
        terms = terms_of(loss, leaves.but(**dict(zip(names, given, strict=True))))
        parts = [shown(t, tensors.mask).sum() for t in terms.values() if t.requires_grad]
        return torch.stack([part for part in parts if part.requires_grad]).sum()

    inputs = tuple(leaves.values[n] for n in names)
    if not torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-5, rtol=1e-4, raise_exception=False):
        refuse("autograd and finite differences disagree", ", ".join(names))
    return f"in {', '.join(names)}"


@check("loss")
def starts_at_the_reference(subject: Subject) -> str:
    """Where the policy is its reference nothing else of their log-probs matters: a logistic loss starts at log 2.
    NeMo-Aligner#227, #228, trl#744, #2042, #5542: a loss at step 0 that was not ln 2; a reference of the other
    response is the usual cause."""
    loss, tensors = per_element(subject)
    pairs = [(n, f"ref_{n}") for n in tensors.values if f"ref_{n}" in tensors.values]
    if not pairs:
        skip("it asks for no reference")
    start = tensors.but(**{ref: tensors.values[own] for own, ref in pairs})
    opposite = _reference_slopes(loss, start, pairs)
    moved = start
    for number, (own, ref) in enumerate(pairs):
        shape = start.values[own].shape
        shift = torch.linspace(-2, 3, shape.numel(), dtype=torch.float64).reshape(shape) * (1 - 2 * number)
        moved = moved.but(**{own: start.values[own] + shift, ref: start.values[ref] + shift})
    before, after = terms_of(loss, start), terms_of(loss, moved)
    stays = all(same(shown(before[name], tensors.mask), shown(after[name], tensors.mask), 1e-8) for name in before)
    learned = [n for n, t in terms_of(loss, start.with_gradients()).items() if t.requires_grad]
    if stays:
        values = {n: shown(before[n], tensors.mask).detach() for n in learned}
        return ", ".join(f"{n} starts between {float(v.min()):.6g} and {float(v.max()):.6g}" for n, v in values.items())
    if opposite or not learned:
        skip("it looks at log-probs beside their difference from the reference")
    refuse("its value at the start depends on more than the difference from the reference, whose sign is wrong")


def _reference_slopes(loss: BoundLoss, start: Tensors, pairs: list[tuple[str, str]]) -> bool:
    """Whether the value falls with a reference's log-prob where it rises with the policy's, and the other way."""
    leaves = start.changed(lambda _, v: v.clone().requires_grad_(v.is_floating_point()))
    value = sum(t.sum() for t in terms_of(loss, leaves).values() if t.requires_grad)
    if not isinstance(value, Tensor):
        return True
    for own, ref in pairs:
        mine, other = torch.autograd.grad(
            value, [leaves.values[own], leaves.values[ref]], allow_unused=True, retain_graph=True
        )
        if mine is None or other is None or float((mine * other).max()) > 0:
            return False
    return True


@check("loss")
def direction(subject: Subject) -> str:
    """It pushes the right way: a comparison won by far costs less than one lost by far, a ranking in order less than
    one turned round, a good response becomes likelier, a token of positive advantage too. The most asked question of
    five trackers is why chosen log-probs fall (trl#800, LF#6153); a sign, or chosen and rejected exchanged,
    is the case where it is a fault."""
    loss, tensors = with_gradient(subject)
    said = [
        found
        for look in (_of_pairs, _of_rankings, _of_labels, _of_advantages, _of_text)
        if (found := look(loss, tensors))
    ]
    if not said:
        skip("it asks for nothing that says which way is better")
    return ", ".join(said)


def _sum(loss: BoundLoss, tensors: Tensors) -> Tensor:
    """Of each element the sum of its terms that have a gradient."""
    terms = terms_of(loss, tensors.with_gradients())
    parts = [t.detach() for t in terms.values() if t.requires_grad]
    return torch.stack([(p * tensors.mask).sum(-1) if p.ndim == 2 else p for p in parts]).sum(0)


def _of_pairs(loss: BoundLoss, tensors: Tensors) -> str:
    for what, far in (("logprobs", 40.0), ("rewards", 5.0)):
        chosen, rejected = f"chosen_{what}", f"rejected_{what}"
        if chosen not in tensors.values:
            continue
        middle = torch.full((tensors.count,), -60.0 if what == "logprobs" else 0.0, dtype=torch.float64)
        flat = {f"ref_{n}": middle for n in (chosen, rejected)}
        lengths = torch.full((tensors.count,), 8)
        even = tensors.but(**flat, chosen_lengths=lengths, rejected_lengths=lengths)
        won = even.but(**{chosen: middle + far / 2, rejected: middle - far / 2})
        lost = even.but(**{chosen: middle - far / 2, rejected: middle + far / 2})
        worse = _sum(loss, won) >= _sum(loss, lost)
        if worse.any():
            refuse(f"a comparison won by {far} costs as much as one lost by it, or more", chosen)
        return f"won comparisons cost less ({what})"
    return ""


def _of_rankings(loss: BoundLoss, tensors: Tensors) -> str:
    if not {"rewards", "ranks"} <= set(tensors.values):
        return ""
    right = -tensors.values["ranks"].double()
    if (_sum(loss, tensors.but(rewards=right)) >= _sum(loss, tensors.but(rewards=-right))).any():
        refuse("a ranking in order costs as much as one turned round, or more", "rewards")
    return "rankings in order cost less"


def _of_labels(loss: BoundLoss, tensors: Tensors) -> str:
    if not {"labels", "logprobs"} <= set(tensors.values):
        return ""
    leaves = tensors.with_gradients()
    slope = gradients(total(loss, [leaves]), leaves)["logprobs"].sum(-1)
    good = tensors.values["labels"] == 1
    if (slope[good] > 0).any() or (slope[~good] < 0).any():
        refuse("a good response becomes less likely, or a bad one likelier", "logprobs")
    return "good responses become likelier"


def _of_advantages(loss: BoundLoss, tensors: Tensors) -> str:
    if not {"advantages", "logprobs"} <= set(tensors.values):
        return ""
    leaves = tensors.but(old_logprobs=tensors.values["logprobs"]).with_gradients()
    slope = gradients(total(loss, [leaves]), leaves)["logprobs"]
    if (slope * tensors.values["advantages"])[tensors.mask].max() >= 0:
        refuse("at the start of a round a token of positive advantage does not become likelier", "logprobs")
    return "tokens of positive advantage become likelier"


def _of_text(loss: BoundLoss, tensors: Tensors) -> str:
    if set(tensors.learned) - {"logprobs", "mean_logprobs"} or len(tensors.values) != len(tensors.learned):
        return ""
    leaves = tensors.with_gradients()
    slope = gradients(total(loss, [leaves]), leaves)["logprobs"]
    if slope[tensors.mask].max() >= 0:
        refuse("text that is imitated does not become likelier", "logprobs")
    return "imitated text becomes likelier"


@check("loss")
def values_learn_their_target(subject: Subject) -> str:
    """A value above its return falls, one below rises: the sign of the returns."""
    loss, tensors = with_gradient(subject)
    if not {"values", "returns"} <= set(tensors.values):
        skip("it has no value model")
    leaves = tensors.but(old_values=tensors.values["values"]).with_gradients()
    slope = gradients(total(loss, [leaves]), leaves)["values"]
    if (slope * (tensors.values["values"] - tensors.values["returns"]))[tensors.mask].min() <= 0:
        refuse("a value does not move towards its return", "values")
    return "values move towards their returns"


@check("loss")
def soft_labels_are_the_mean(subject: Subject) -> str:
    """With preference_prob p a pair costs p times the loss of the label plus 1 - p times that of the other label:
    soft labels that were something else, or dropped in silence, here too once."""
    loss, tensors = per_element(subject)
    if "preference_prob" not in tensors.values:
        skip("it asks for no preference_prob")
    one = torch.ones(tensors.count, dtype=torch.float64)
    as_labelled, turned = terms_of(loss, tensors), terms_of(loss, _swapped(tensors))
    for prob in (0.0, 0.3, 0.5, 0.9):
        soft = terms_of(loss, tensors.but(preference_prob=prob * one))
        for name, value in soft.items():
            wanted = prob * as_labelled[name] + (1 - prob) * turned[name]
            if level(loss, value) == "pair" and value.requires_grad is False and not same(value, wanted, 1e-8):
                refuse(f"at p = {prob} the value is {float(value[0]):.6g}, the mean over labels "
                       f"{float(wanted[0]):.6g}", f"term {name}, pair 0")  # fmt: skip
    return "at p = 0, 0.3, 0.5, 0.9"
