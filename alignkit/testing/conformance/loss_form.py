"""Checks of losses: what they return, and on what each element of it depends."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.registry.records import BoundLoss
from alignkit.testing.conformance.loss_data import (
    ELEMENTS,
    Tensors,
    draw,
    gradients,
    level,
    shown,
    terms_of,
    total,
)
from alignkit.testing.conformance.outcome import check, refuse, skip
from alignkit.testing.conformance.subject import Subject

GARBAGE = (61.0, -83.0)
"""What stands where nothing should be read."""


def loss_of(subject: Subject) -> BoundLoss:
    """The loss under the eye."""
    built: BoundLoss = subject.once("loss", subject.build)
    return built


def tensors_of(subject: Subject) -> Tensors:
    """What it is given."""
    names = loss_of(subject).tensor_names
    made: Tensors = subject.once("tensors", lambda: draw(names, subject.host.provided_tensors()))
    return made


def is_watched(subject: Subject) -> bool:
    """Whether methods compute it beside their loss, and none learns from it: a diagnostic."""
    found: bool = subject.once("diagnostic", lambda: _only_watched(subject))
    return found


def _only_watched(subject: Subject) -> bool:
    watched = False
    terms = set(terms_of(loss_of(subject), tensors_of(subject)))
    for record in subject.host.components("optimizer"):
        try:
            method = subject.host.build("optimizer", record.qualified)
            named = [subject.host.resolve("loss", loss) for loss in (method.loss, *method.extra_losses().values())]
        except AlignkitError:
            continue
        if subject.record in named[:1]:
            return False
        if subject.record in named:
            weighed = {name for name, term in method.terms().items() if term.weight} & (
                terms | {*method.extra_losses()}
            )
            watched = watched or not weighed - {"loss"}
    return watched


def per_element(subject: Subject) -> tuple[BoundLoss, Tensors]:
    """The loss and its tensors, where it returns a value for each element.

    Raises:
        DoesNotApplyError: it does not, which is the business of the check `unreduced`.
    """
    loss, tensors = loss_of(subject), tensors_of(subject)
    wrong = subject.once("sizes", lambda: wrong_sizes(loss, tensors, is_watched(subject)))
    if wrong:
        skip("it is not unreduced, see that check")
    return loss, tensors


def wrong_sizes(loss: BoundLoss, tensors: Tensors, watched: bool = False) -> str:
    """What is wrong with the shapes that it returns, or an empty string.

    Args:
        loss: the loss.
        tensors: what it is given.
        watched: it is a diagnostic, whose terms may be as wide as a mask [responses, 1] of the method's own.
    """
    for name, term in terms_of(loss, tensors).items():
        wanted = [tensors.count, tensors.mask.shape[1]] if term.ndim == 2 else [tensors.count]
        if list(term.shape) != wanted and not (watched and list(term.shape) == [tensors.count, 1]):
            return f"the term {name} has the shape {list(term.shape)} where {wanted} is one value for each element"
    return ""


def same(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> bool:
    """Equal up to rounding, NaN equal to NaN."""
    return torch.allclose(one.double(), other.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def compared(loss: BoundLoss, one: Tensors, other: Tensors, mask: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(term, its values in both), token values under the mask alone."""
    first, second = terms_of(loss, one), terms_of(loss, other)
    for name, value in first.items():
        width = mask.shape[1]
        if value.ndim == 2 and value.shape[1] >= width:
            yield name, value[:, :width][mask], second[name][:, :width][mask]
        else:
            yield name, value, second[name]


@check("loss")
def unreduced(subject: Subject) -> str:
    """A loss returns one value per token, response, pair or group. One that takes its own mean, or returns a number,
    hides from the engine what it must divide by: trl#6024, #3021, #5619, OpenRLHF#1249, where the gradient was 0.5 to
    4 times what it should be; [R, T, 1] was once accepted here in silence, with
    a sixth of the gradient."""
    loss, tensors = loss_of(subject), tensors_of(subject)
    if wrong := wrong_sizes(loss, tensors, is_watched(subject)):
        refuse(wrong)
    found = terms_of(loss, tensors)
    return ", ".join(f"{name}: per {level(loss, term)}" for name, term in found.items())


@check("loss")
def no_coupling_across_the_batch(subject: Subject) -> str:
    """The value of an element depends on that element alone; what is shared across the batch comes in declared and
    detached, as a baseline of the round does. Otherwise a result depends on who happens to be in the micro-batch:
    TRL's `aot` sorts over the batch, jhejna's reference code averages over the pairs that are not won yet."""
    loss, tensors = per_element(subject)
    whole = terms_of(loss, tensors)
    for index in range(tensors.count):
        alone = terms_of(loss, tensors.take(index))
        for name, value in whole.items():
            row = tensors.mask[index : index + 1]
            among, single = shown(value[index : index + 1], row), shown(alone[name], row)
            if not same(among, single):
                refuse(
                    f"element {index} is {_numbers(single)} alone and {_numbers(among)} among others", f"term {name}"
                )
    return f"{tensors.count} elements alone and together"


@check("loss")
def gradient_stays_in_its_element(subject: Subject) -> str:
    """The gradient of one element's value is zero in every other element's log-probs, also where values agree (a
    normalisation whose value cancels). verl#6310: a reward on a pad token leaked into the advantages of its peers."""
    loss, tensors = per_element(subject)
    leaves = tensors.with_gradients()
    terms = terms_of(loss, leaves)
    if not any(term.requires_grad for term in terms.values()):
        skip("nothing that it returns has a gradient")
    for name, term in terms.items():
        if not term.requires_grad:
            continue
        for index in range(tensors.count):
            value = shown(term[index : index + 1], tensors.mask[index : index + 1]).sum()
            names = leaves.learned
            found = torch.autograd.grad(value, [leaves.values[n] for n in names], allow_unused=True, retain_graph=True)
            for learned, gradient in zip(names, found, strict=True):
                others = [i for i in range(tensors.count) if i != index]
                if gradient is not None and gradient[others].abs().max() > 1e-12:
                    refuse(f"the value of element {index} has a gradient in {learned} of others", f"term {name}")
    return "no gradient from one element into another"


@check("loss")
def micro_batch_invariance(subject: Subject) -> str:
    """The gradient of a step is the same in one micro-batch and in many, for every reduction a method may declare. A
    mean of means is not the mean: trl#6024, #3021, #5619, ms-swift#10117, unsloth#1178."""
    loss, tensors = per_element(subject)
    for reduction in ("token", "sequence", "group", "constant"):
        results = []
        for parts in (((0, 1, 2, 3, 4),), ((0,), (1, 2, 3), (4,)), ((3, 1), (4, 0), (2,))):
            leaves = tensors.with_gradients()
            value = total(loss, [leaves.take(*part) for part in parts], reduction)  # type: ignore[arg-type]
            if value is None:
                skip("nothing that it returns is differentiated")
            results.append((value.detach(), gradients(value, leaves)))
        for value, gradient in results[1:]:
            if not same(value, results[0][0]):
                refuse(f"the step's loss is {float(results[0][0]):.6g} in one micro-batch, {float(value):.6g} in three",
                       f"reduction {reduction}")  # fmt: skip
            for name, each in gradient.items():
                if not same(each, results[0][1][name]):
                    refuse(f"the gradient in {name} depends on the micro-batches", f"reduction {reduction}")
    return "one micro-batch, three, and three in another order"


@check("loss")
def batch_order(subject: Subject) -> str:
    """Turning the order of the batch round turns the values round and changes nothing else."""
    loss, tensors = per_element(subject)
    turned = tensors.take(*reversed(range(tensors.count)))
    first, second = terms_of(loss, tensors), terms_of(loss, turned)
    for name, value in first.items():
        if not same(shown(value, tensors.mask), shown(second[name].flip(0), tensors.mask)):
            refuse("its values depend on the order of the batch", f"term {name}")
    return "turned round"


@check("loss")
def hidden_positions(subject: Subject) -> str:
    """What stands where nothing is learned changes neither value nor gradient. HIR's reference counts ignored
    positions as probability 1, trl#2022 summed a placeholder log-prob of padding for 21 months, verl#6310 wrote a
    reward on one."""
    loss, tensors = per_element(subject)
    masks = {"token": tensors.mask, "group": tensors.values.get("group_mask", torch.ones(ELEMENTS, 4)).bool()}
    wide = [n for n in tensors.values if tensors.levels[n] in masks and tensors.values[n].is_floating_point()]
    if not wide:
        skip("none of its tensors has padding")
    plain = tensors.with_gradients()
    noise = {n: _with_garbage(tensors.values[n], masks[tensors.levels[n]], k) for k, n in enumerate(wide)}
    noisy = tensors.but(**noise).with_gradients()
    for name, one, other in compared(loss, plain, noisy, tensors.mask):
        if not same(one, other):
            refuse("a value changes with what stands at a hidden position", f"term {name}")
    before, after = (gradients(total(loss, [case]), case) for case in (plain, noisy))
    for name in before:
        mask = masks.get(tensors.levels[name])
        if mask is not None and (after[name][~mask] != 0).any():
            refuse("a hidden position has a gradient", name)
        if not same(before[name], after[name]):
            refuse("the gradient changes with what stands at a hidden position", name)
    return f"garbage in {', '.join(wide)}"


def _with_garbage(value: Tensor, mask: Tensor, number: int) -> Tensor:
    noise = torch.full_like(value, GARBAGE[number % 2])
    return torch.where(mask, value, noise)


@check("loss")
def padding_side(subject: Subject) -> str:
    """Padding on the left, or a response with a hole in it, gives each token the value that it has with padding on
    the right. reward-bench#137, #154, trlx#474, LF#689: scores that depend on the padding side or on pads at all."""
    loss, tensors = per_element(subject)
    wide = [n for n in tensors.values if tensors.levels[n] in ("token", "mask")]
    if not wide:
        skip("it asks for no tensor of tokens")
    shifted = tensors.changed(lambda n, v: _to_the_right(v, tensors.mask) if n in wide else v)
    moved = _to_the_right(tensors.mask, tensors.mask)
    other = shifted.masked(moved)
    first, second = terms_of(loss, tensors), terms_of(loss, other)
    for name, value in first.items():
        if not same(shown(value, tensors.mask), shown(second[name], moved)):
            refuse("its values depend on the side of the padding", f"term {name}")
    return "padded on the right and on the left"


def _to_the_right(value: Tensor, mask: Tensor) -> Tensor:
    """Each row's learned part moved to the end of the row, the hidden part to its beginning."""
    rows = [torch.cat([row[~m], row[m]]) for row, m in zip(value, mask, strict=True)]
    return torch.stack(rows)


@check("loss")
def batch_composition(subject: Subject) -> str:
    """A longer neighbour widens the padding, and no value notices. RM scores that changed with the batch:
    reward-bench#137."""
    loss, tensors = per_element(subject)
    wide = [n for n in tensors.values if tensors.levels[n] in ("token", "mask")]
    if not wide:
        skip("it asks for no tensor of tokens")
    wider = tensors.changed(lambda n, v: _widened(v) if n in wide else v).masked(_widened(tensors.mask))
    for name, one, other in compared(loss, tensors, wider, tensors.mask):
        if not same(one, other):
            refuse("a value changes with the width of the padding", f"term {name}")
    return "three columns wider"


def _widened(value: Tensor) -> Tensor:
    fill = torch.zeros(len(value), 3, dtype=value.dtype)
    if value.is_floating_point():
        fill += GARBAGE[1]
    return torch.cat([value, fill], dim=1)


@check("loss")
def denominators(subject: Subject) -> str:
    """An element keeps its value when a longer one joins the batch, and a response without a learned token gives a
    finite value and no gradient: a loss that divides by lengths divides by at least one. trl#6024; HIR's reference
    and others give 0/0."""
    loss, tensors = per_element(subject)
    if not any(tensors.levels[n] in ("token", "mask") for n in tensors.values):
        return _short_groups(loss, tensors)
    mask = tensors.mask.clone()
    mask[0] = False
    emptied = tensors.masked(mask).with_gradients()
    before, after = terms_of(loss, tensors), terms_of(loss, emptied)
    for name, term in after.items():
        if not torch.isfinite(shown(term, mask)).all():
            refuse("a response without a learned token makes a value that is not finite", f"term {name}")
        if not same(shown(before[name][1:], mask[1:]), shown(term[1:], mask[1:])):
            refuse("an empty response changes the values of others", f"term {name}")
    for name, gradient in gradients(total(loss, [emptied]), emptied).items():
        if not torch.isfinite(gradient).all():
            refuse("an empty response makes a gradient that is not finite", name)
    return "with an empty response in the batch"


def _short_groups(loss: BoundLoss, tensors: Tensors) -> str:
    """The same of losses of groups: one response of the K alone, which nothing can be ranked against."""
    if "group_mask" not in tensors.values:
        skip("it counts nothing: it asks for no tensor with a mask")
    mask = tensors.values["group_mask"].clone()
    mask[0] = torch.arange(mask.shape[1]) == 0
    single = tensors.but(group_mask=mask).with_gradients()
    for name, term in terms_of(loss, single).items():
        if not torch.isfinite(term).all():
            refuse("a group of one response makes a value that is not finite", f"term {name}")
    for name, gradient in gradients(total(loss, [single]), single).items():
        if not torch.isfinite(gradient).all():
            refuse("a group of one response makes a gradient that is not finite", name)
    return "with a group of one response in the batch"


def _numbers(value: Tensor) -> str:
    return "[" + ", ".join(f"{float(v):.5g}" for v in value.reshape(-1)[:3]) + "]"
