"""Checks of losses: what a call changes beside what it returns, and what it must not differentiate."""

from __future__ import annotations

import torch
from torch import Tensor

from alignkit.testing.conformance.loss_data import Tensors, terms_of
from alignkit.testing.conformance.loss_form import loss_of, tensors_of
from alignkit.testing.conformance.outcome import check, refuse, skip
from alignkit.testing.conformance.subject import Subject
from alignkit.testing.conformance.watching import twice_alike


@check("loss")
def inputs_unchanged(subject: Subject) -> str:
    """A loss writes into none of its tensors: the next micro-batch, the next epoch and the other terms read them
    too. trl#744, NeMo-Aligner#227: reference values that were no longer those of the reference."""
    loss, tensors = loss_of(subject), tensors_of(subject)
    leaves = tensors.changed(lambda _, v: v.clone())
    marks = {n: v._version for n, v in leaves.values.items()}
    terms_of(loss, leaves)
    for name, value in leaves.values.items():
        if value._version != marks[name] or not torch.equal(value, tensors.values[name]):
            refuse("the loss writes into it", name)
    return f"{len(marks)} tensors"


@check("loss")
def no_gradient_into_constants(subject: Subject) -> str:
    """`old_*`, `ref_*` and what `prepare` gave are constants: they stay without a gradient, and a term of the policy
    has none in the value model. trl#256, #495, #3194: a reference that moved with the policy."""
    loss, tensors = loss_of(subject), tensors_of(subject)
    constants = [n for n in tensors.values if n not in tensors.learned and tensors.values[n].is_floating_point()]
    if not constants:
        skip("all that it asks for is learned")
    leaves = tensors.with_gradients()
    terms = terms_of(loss, leaves)
    for name in constants:
        if leaves.values[name].requires_grad:
            refuse("the loss asks for its gradient", name)
    _values_apart(terms, leaves)
    return f"{', '.join(constants)} stay constant"


def _values_apart(terms: dict[str, Tensor], leaves: Tensors) -> None:
    """A term through the policy's log-probs has no gradient in the values, where there is more than one term."""
    policy, value = leaves.named(source="policy"), leaves.named(source="value")
    if not (policy and value and len(terms) > 1):
        return
    for name, term in terms.items():
        if term.requires_grad:
            names = [*policy, *value]
            found = torch.autograd.grad(
                term.sum(), [leaves.values[n] for n in names], allow_unused=True, retain_graph=True
            )
            moved = {n for n, g in zip(names, found, strict=True) if g is not None and (g != 0).any()}
            if moved & set(policy) and moved & set(value):
                refuse("a term of the policy has a gradient in the values: a detach is missing", f"term {name}")


@check("loss")
def deterministic(subject: Subject) -> str:
    """Twice the same tensors, twice the same values to the bit, and no global random state read or moved: ms-swift
    #3607, open-instruct#648, where a fixed seed did not reproduce a run."""
    loss, tensors = loss_of(subject), tensors_of(subject)

    def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> str:
        apart = [name for name in one if not torch.equal(one[name].nan_to_num(), other[name].nan_to_num())]
        return f"term {apart[0]}" if apart else ""

    twice_alike(lambda: terms_of(loss, tensors), differ, what="the loss")
    return "two calls agree to the bit"
