"""Checks of policy optimizers on a suite whose truth is whole: the gradient of the first step, and the way to the
optimum.

A suite says so by a mark where it is registered, `my_suite.exact = True`: its policy is so small that every response
can be listed, and its `measure` gives `gap`, 0 at the method's own optimum and 1 where it started, `kl`, and
`frontier_share`, the gain in reward as a share of the largest at this KL. `own["kind"]` is "objective" for a method of
which it does not know what it makes for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from alignkit.errors import NumericError, PluginError
from alignkit.groups import Groups
from alignkit.optimizers import PolicyOptimizer
from alignkit.registry.finding import absent_exact
from alignkit.registry.host import default_host
from alignkit.rewards import FunctionReward, Reward
from alignkit.run import Run
from alignkit.suites import Suite
from alignkit.testing.conformance.method_runs import Call, watched_prepare
from alignkit.testing.conformance.outcome import check, refuse, skip
from alignkit.testing.conformance.plain import Reader, Step, far_apart, measured, said_in
from alignkit.testing.conformance.subject import Subject, refusal
from alignkit.testing.learning import first_gradients
from alignkit.vocabulary import MEASURED

T = TypeVar("T")

NEAR = 1e-5
"""By how much the two gradients may differ, as a share of the largest element: float32 beside float64."""

STEP = {"rounds": 1, "sample_every": 1, "epochs": 1, "batch_size": 0, "warmup_ratio": 0.0}
"""Settings of one step on all that there is."""
FEW = {"samples_per_prompt": 16, "prompts_per_round": 16}
"""At most so many for it."""

USUAL = {
    "learning_rate": 1e-3,
    "schedule": "linear",
    "warmup_ratio": 0.0,
    "temperature": 1.0,
    "require_finished": False,
}
"""Where a suite has no settings for a method: a rate for a model of ten thousand weights, which takes far more than the
default of a large one; what is cut at its longest is no fault where that is two tokens."""
SAMPLES = {"rounds": 20, "samples_per_prompt": 64, "prompts_per_round": 0, "batch_size": 0}
"""The same of methods that sample."""
LEARNS = {"batch_size": 64, "epochs": 4}
"""The same of methods that learn from what they are given."""
SHORT = {"rounds": 20, "epochs": 4, "prompts_per_round": 500}
"""At most so many in a run of a few seconds; suites' own settings have 200 rounds and more."""

CLOSED = 0.9
"""The gap below which a method must come; see `exact_gap`."""
RAISED = 0.05
"""The share of the largest gain at its KL for a method that samples nothing and that the suite does not know."""
MOVED = 1e-3
"""Nats a response that a policy must have gone from the start for that share to mean anything."""


def exact_suite(subject: Subject) -> Suite:
    """The suite: of the plugins that the subject is among, else of those that are installed.

    Raises:
        DoesNotApplyError: there is none; the reason says what to install.
    """
    for host in (subject.host, default_host()):
        for record in host.components("suite"):
            if getattr(record.object, "exact", False):
                made: Suite = host.build("suite", record.qualified)()
                return made
    brought = sorted(set(absent_exact().values()))
    skip(f"{' or '.join(brought)} is not installed (pip install {brought[0]})")


@dataclass(frozen=True)
class Problem:
    """An exact suite in a run that is thrown away.

    Args:
        subject: the optimizer that is tried.
        suite: the problem.
        run: where.
        start: the policy that every method starts from, and the reference.
    """

    subject: Subject
    suite: Suite
    run: Run
    start: Any

    def improve(self, policy: Any, method: PolicyOptimizer) -> Any:
        """The method's run from a policy, judged as the suite judges."""
        label, score = next(iter(self.suite.scores.items()))
        truth = score if isinstance(score, Reward) else FunctionReward(score, label)
        samples = bool(method.samples_per_prompt)
        annotator = self.suite.annotator if samples and "annotated" in method.prepare_arguments() else None
        return self.run.improve(
            policy, self._data(method), optimizer=method, reference=self.start, annotator=annotator,
            reward=truth if samples and annotator is None else None, max_new_tokens=self.suite.max_new_tokens,
        )  # fmt: skip

    def _data(self, method: PolicyOptimizer) -> Groups:
        if self.suite.data is not None:
            found: Groups = self.suite.data(self.run, self.start, method, "data")
            return found
        if not method.samples_per_prompt:
            skip("it samples nothing, and the suite has nothing to give it")
        return self.suite.prompts

    def moved(self, folder: Path) -> Any:
        """Another policy than the start: every weight moved by a tenth of its spread, so that every KL counts."""
        policy = self.start.load()
        drawn = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in policy.model.parameters():
                weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=drawn)
        policy.export(folder)
        return self.run.policy(folder, lora=None, name="moved")


@contextmanager
def problem(subject: Subject, max_tokens: int) -> Iterator[tuple[Problem, Path]]:
    """(the problem, a folder), both thrown away.

    Args:
        subject: the optimizer.
        max_tokens: cells of a micro-batch.
    """
    suite = exact_suite(subject)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options: dict[str, Any] = {"quiet": True, "trainer": {"accelerator": "cpu"}, "max_tokens": max_tokens}
        with Run(folder / "run", host=subject.host, **options) as run:
            yield Problem(subject, suite, run, suite.start(run)), folder


def tried(subject: Subject, work: Callable[[], T]) -> T:
    """What `work()` gives.

    Raises:
        Failed: what the method made cannot be learned from.
        DoesNotApplyError: the method says what it lacks on the suite's rows.
    """
    try:
        return work()
    except (PluginError, NumericError) as error:  # what the method made, and not what it was given
        refuse(str(error), "the first round")
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        skip(f"it cannot be tried on the responses of the exact suite ({reason})")


def suited(
    subject: Subject, suite: Suite, most: Mapping[str, int], fixed: Mapping[str, Any] | None = None
) -> PolicyOptimizer:
    """The method with the suite's settings for it, else with usual ones, as far as it takes them; its author's stand.

    Args:
        subject: the optimizer.
        suite: whose settings.
        most: bounds of counts, 0 (all there are) left as it is.
        fixed: set whatever else is said.
    """
    assert subject.record is not None
    plain, known = subject.build(), subject.record.hyperparameters
    wanted = dict(suite.settings.get(subject.record.name) or USUAL | (SAMPLES if plain.samples_per_prompt else LEARNS))
    for name, bound in most.items():
        now = wanted.get(name, getattr(plain, name, 0))
        wanted[name] = min(now, bound) if now else (bound if name == "rounds" else 0)
    wanted = {n: v for n, v in wanted.items() if n in known and n not in subject.settings}
    fixed = {n: v for n, v in (fixed or {}).items() if n in known}
    free = {n: v for n, v in wanted.items() if n not in SAMPLES}  # a method may have a number of samples of its own
    for settings in (wanted | fixed, free | fixed, fixed):
        try:
            made: PolicyOptimizer = subject.build(**settings)
        except Exception as error:
            if refusal(error) is None:
                raise
            continue
        return made
    return plain


@check("optimizer")
def exact_gradient(subject: Subject) -> str:
    """On a policy whose every response can be listed the first step's gradient is the one that the method declares:
    its losses, called for one response (or pair) at a time in float64, its terms and reductions as sums over lists, on
    what its `prepare` gave. A loss that looks at its neighbours, at the padding or at the size of its batch is not the
    method's: trl#3021, #5619, #6024, whose loss hung on the micro-batch. A formula that is wrong in itself is not
    seen here but by `exact-gap`."""
    calls: list[Call] = []
    with problem(subject, 256) as (at, folder):
        method = suited(subject, at.suite, FEW, STEP)
        if method.streams():
            skip("it learns from further data streams, which the suite does not have")
        policy = at.moved(folder / "moved")
        with watched_prepare(method, calls), first_gradients() as seen:
            tried(subject, lambda: at.improve(policy, method))
        live = policy.load(dtype=torch.float64, trainable=True)
        reader = Reader(live, at.start.load(dtype=torch.float64), method.logprob_temperature)
    if not seen:
        refuse("the first step has no gradient at all")
    call = calls[0]
    _measured_alike(call, reader)
    step = Step(reader, call.batch, said_in(call.batch.groups, reader.policy))
    total = step.total(method, lambda loss: subject.host.build("loss", loss))
    if total.requires_grad:
        total.backward()
    apart, largest, where = far_apart(seen, reader.gradients())
    if not apart <= NEAR * largest:
        what = f"the engine's gradient differs by {apart:.3g} from that of single responses, whose largest element is"
        refuse(f"{what} {largest:.3g}", where)
    if not largest:
        skip("both gradients are 0: its settings let nothing be learned here")
    return f"within {apart / largest:.1g} of the largest element, {len(step.said)} responses"


def _measured_alike(call: Call, reader: Reader) -> None:
    """What `prepare` was given is what single responses have."""
    said = said_in(call.groups, reader.policy)
    for name in MEASURED:
        if name in call.given:
            given = call.given[name].double()
            apart = float((given - measured(reader, said, name, given.shape[1])).abs().max())
            if not apart <= NEAR * max(1.0, float(given.abs().max())):
                refuse(f"prepare was given values that are {apart:.3g} from those of single responses", name)


@check("optimizer")
def exact_gap(subject: Subject) -> str:
    """A short run comes nearer to the method's own optimum, by the gap of an exact suite: 1 where it started, 0 there,
    and below 0.9 after 20 rounds or 4 epochs. All that is shipped and tried left 0.03 to 0.56 in five seeds. A method
    that the suite does not know is measured by J = E r - beta KL, with a small rate, at which a KL that it does not
    have costs little: sound ones left 0.3 to 0.9 in four seeds, advantages of the wrong response 0.95 to 1.7, wrong
    signs more. One that learns from what it is given may have no reference and go far: it passes too with a twentieth
    of the gain in reward that its KL could have bought (without a reference 0.11 to 0.21, wrong way round at most 0).
    LF#845, DeepSpeedExamples#586, RAGEN#52: runs that fell apart, with no diagnosis."""
    with problem(subject, 1 << 14) as (at, _):
        method = suited(subject, at.suite, SHORT)
        made = tried(subject, lambda: at.improve(at.start, method))
        assert at.suite.measure is not None
        found = at.suite.measure(at.run, made.policy, name="exact", label="exact")
        gap, own = float(found.metrics["gap"]), str(found.result.get("own", {}).get("kind", ""))
    what = f"the gap is {gap:.3f}, where it was 1" + (f" ({own})" if own else "")
    if gap < CLOSED:
        return what
    moved, gained = float(found.metrics["kl"]) > MOVED, float(found.metrics["frontier_share"])
    told = f"{what}; {gained:.2f} of the gain in reward that its KL could have bought"
    if own == "objective" and not method.samples_per_prompt and moved and gained > RAISED:
        return told
    steps = f"{made.result.get('steps')} steps on the exact suite"
    refuse(
        told if moved else f"{what}; it stays where it is",
        reproduce=f"alignkit plugins --check {subject.label}: {steps}",
    )
