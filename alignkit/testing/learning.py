"""Learning in a test: one step, or the rounds of `improve`, with a look inside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from alignkit.engine.fit import fit
from alignkit.engine.improve import Rollouts
from alignkit.engine.learner import Learner, OneRound
from alignkit.groups import Groups
from alignkit.models import Policy
from alignkit.optimizers import PolicyOptimizer, Term, Training
from alignkit.rewards import FunctionReward
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
        max_tokens: padded cells of a micro-batch.
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


def rollouts(policy: Policy, optimizer: PolicyOptimizer, **changes: Any) -> Rollouts:
    """The rounds by which `policy` is improved: twelve new tokens, rewarded by `letters`, from `PROMPTS`."""
    fields: dict[str, Any] = {
        "policy": policy,
        "behaviour": policy,
        "reference": Policy.load("tiny"),
        "reference_state": None,
        "optimizer": optimizer,
        "loss": bound(optimizer.loss),
        "sampler": Sampler(max_new_tokens=12, temperature=optimizer.temperature),
        "reward": FunctionReward(letters),
        "prompts": PROMPTS,
        "history": Groups.from_rows([]),
        "seed": (0, "stage"),
        "max_tokens": 120,
        "max_response_tokens": 64,
        "state": {},
    }
    return Rollouts(**{**fields, **changes})


def learn(
    source: Rollouts,
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
    made = learner(
        source.policy,
        source.loss,
        optimizer.terms(),
        Training(**{f: getattr(optimizer, f) for f in Training.__dataclass_fields__}),
        source,
        record=(rows if rows is not None else []).append,
        **{"temperature": optimizer.logprob_temperature, **options},
    )
    fit(made, precision=precision, trainer=CPU, checkpointing=checkpointing)
    return made
