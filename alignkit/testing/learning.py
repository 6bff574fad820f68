"""Learning in a test: one step, or the rounds of `improve`, with a look inside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from alignkit.annotators import Annotator
from alignkit.engine.fit import fit
from alignkit.engine.improve import Improvement, improvement
from alignkit.engine.judging import Judging
from alignkit.engine.learner import Learner
from alignkit.engine.lesson import OneRound
from alignkit.engine.reference import Reference
from alignkit.engine.setting import Models, Setting
from alignkit.groups import Groups
from alignkit.models import Policy
from alignkit.optimizers import PolicyOptimizer, Term, Training
from alignkit.rewards import FunctionReward, Reward
from alignkit.sampling import Sampler
from alignkit.testing.given import PROMPTS, bound, letters
from alignkit.testing.tensors import training_data

CPU = {"accelerator": "cpu"}


class Watched(Learner):
    """Keeps the gradients of its last step, from before they were clipped."""

    gradients: list[Tensor]

    def _clip(self) -> float:
        self.gradients = [p.grad.clone() for p in self.parameters() if p.grad is not None]
        return super()._clip()


def one_step(
    model: Policy,
    groups: Groups,
    loss: Any,
    terms: Term | Mapping[str, Term],
    max_tokens: int = 10**6,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    rows: list[dict[str, Any]] | None = None,
    streams: Callable[[Policy], Sequence[Any]] | None = None,
    checkpointing: bool = False,
    **options: Any,
) -> Watched:
    """Take one optimizer step on all groups.

    Args:
        model: learns; nothing is clipped.
        groups: to learn from.
        loss: a function or a name.
        terms: of the loss; one alone is called "loss".
        max_tokens: cells of a micro-batch.
        pairs: as in `Batch.pairs`.
        rows: what is logged is appended here.
        streams: makes further streams for the model.
        checkpointing: gradient checkpointing.
        options: of `Learner`.

    Returns:
        The learner, with `gradients`.
    """
    data = training_data(model, groups, pairs)
    made = Watched(
        model,
        bound(loss),
        {"loss": terms} if isinstance(terms, Term) else terms,
        Training(max_grad_norm=0.0),
        OneRound(data, data.steps(0, 1, max_tokens, (0, "order"))),
        record=(rows if rows is not None else []).append,
        streams=streams(model) if streams else (),
        **options,
    )
    fit(made, precision="32-true", trainer=CPU, checkpointing=checkpointing)
    return made


def same_gradients(mine: Sequence[Tensor], other: Sequence[Tensor], atol: float = 1e-6) -> None:
    """Assert that gradients are equal, up to `atol` times the largest of each tensor (1 at least)."""
    assert len(mine) == len(other) > 5
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol * max(1.0, float(b.abs().max())))


@contextlib.contextmanager
def first_gradients() -> Iterator[dict[str, Tensor]]:
    """A dict that holds, once a run inside has taken a step, the first step's gradients by parameter, not clipped."""
    seen: dict[str, Tensor] = {}
    clip = Learner._clip

    def keep(self: Learner) -> float:
        if not seen:
            seen.update({n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None})
        return clip(self)

    Learner._clip = keep  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        Learner._clip = clip  # type: ignore[method-assign]


LETTERS = FunctionReward(letters)


def rollouts(
    policy: Policy,
    optimizer: PolicyOptimizer,
    *,
    reward: Reward | None = LETTERS,
    annotator: Annotator | None = None,
    max_missing: float = 0.05,
    reference: Reference | None = None,
    value_model: Policy | None = None,
    **changes: Any,
) -> Improvement:
    """The rounds by which `policy` is improved: twelve new tokens, rewarded by `letters`, from `PROMPTS`.

    Args:
        policy: samples and learns.
        optimizer: the method.
        reward: what scores the responses.
        annotator: what ranks them.
        max_missing: the largest share of missing rewards.
        reference: of the KL; default a tiny policy of its own.
        value_model: a separate value model.
        changes: of the arguments of `improvement`.
    """
    made: dict[str, Any] = {
        "losses": [bound(optimizer.loss)],
        "sampler": Sampler(max_new_tokens=12, temperature=optimizer.temperature),
        "prompts": PROMPTS,
        "setting": Setting(seed=(0, "stage"), max_tokens=120),
        "max_response_tokens": 64,
    } | changes
    models = Models(policy, policy, reference or Reference(Policy.load("tiny")), value_model)
    judging = Judging(made["setting"], reward, annotator, max_missing)
    return improvement(optimizer, models=models, judging=judging, **made)


def learn(
    source: Improvement,
    optimizer: PolicyOptimizer,
    rows: list[dict[str, Any]] | None = None,
    learner: type[Learner] = Learner,
    precision: str = "32-true",
    checkpointing: bool = False,
    **options: Any,
) -> Learner:
    """Learn all rounds of `rollouts`, as `run.improve` does.

    Args:
        source: of the rounds.
        optimizer: whose terms, rate and so on.
        rows: what is logged is appended here.
        learner: a class derived from `Learner`, to look inside.
        precision: as Lightning names it.
        checkpointing: gradient checkpointing.
        options: of `Learner`.
    """
    models = source.known.models
    settings = {"temperature": optimizer.logprob_temperature, "value_model": models.value_model}
    made = learner(
        models.policy,
        bound(optimizer.loss),
        optimizer.terms(),
        optimizer,
        source,
        record=(rows if rows is not None else []).append,
        value_learning_rate=optimizer.value_learning_rate,
        **{**settings, **options},
    )
    fit(made, precision=precision, trainer=CPU, checkpointing=checkpointing)
    return made
