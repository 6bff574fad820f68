"""The rounds of `improve`: collect, know, prepare, describe, learn, stop early; `Improvement.rounds` is the whole loop.

The loop is a generator that Lightning drives, and not one `Trainer.fit` per round. A fit per round costs 10 to 20 ms
more, twice the time of a small round (`benchmarks/fit_per_round.py`), and more than time: it would wrap and broadcast
the model anew each time under DDP, shard it anew under a sharding strategy, have Lightning's teardown move it to the
CPU, and give callbacks a fit per round where they expect one per stage. So there is one fit: its epochs are the rounds,
it asks the loop for the next lesson when it wants data, sends the means of the round's metrics back, and stops when it
is told to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignkit.calls import calling, told, whose, within
from alignkit.engine.checks import Facts, asked_by, refuse_contradictions
from alignkit.engine.collect import Collect
from alignkit.engine.describe import Describe, said
from alignkit.engine.early_stop import EarlyStop
from alignkit.engine.judging import Judging
from alignkit.engine.known import Asked, Known, first_epoch
from alignkit.engine.lesson import Lesson, RoundLoop, refuse_nothing
from alignkit.engine.objectives import weighted
from alignkit.engine.prepare import Prepare, check_widths
from alignkit.engine.reduction import joins
from alignkit.engine.reference import Reference
from alignkit.engine.sampler_gap import COMPARED, mismatch, weighed
from alignkit.engine.setting import Models, Setting
from alignkit.engine.state import begun_with, checked_state
from alignkit.engine.training_data import Step, TrainingData, said_of_size
from alignkit.errors import NothingToLearnError
from alignkit.groups import Groups
from alignkit.models import Policy
from alignkit.optimizers import PolicyOptimizer
from alignkit.registry.records import BoundLoss
from alignkit.sampling import Drawing, Sampler


@dataclass
class Improvement:
    """The rounds by which a policy is improved; see `improvement`, which makes one.

    Args:
        method: what is learned, and how.
        asked: tensors that its losses and its `prepare` ask for.
        setting: where.
        collect: samples, scores, annotates, keeps.
        known: works out what is known before the steps.
        prepare: calls the method's `prepare`.
        describe: says what a round is like.
        early_stop: watches held-out prompts.
        state: of the method, plain JSON.
        last: metrics of the last round that learned.
        weighted: losses that the rounds learn from.
        left_out: rounds without anything to learn from.
    """

    method: PolicyOptimizer
    asked: Asked
    setting: Setting
    collect: Collect
    known: Known
    prepare: Prepare
    describe: Describe
    early_stop: EarlyStop
    state: dict[str, Any]
    last: Mapping[str, float]
    weighted: Sequence[BoundLoss] = ()
    left_out: list[int] = field(default_factory=list)
    _told: bool = False

    @property
    def count(self) -> int:
        """How many rounds there are, if nothing stops them early."""
        return self.setting.rounds

    def rounds(self) -> RoundLoop:
        """Round by round: yields the lesson, is sent the means of its metrics, yields whether to stop. It
        ends where the budget has nothing left for another round."""
        for index in range(self.count):
            if not self.collect.may_begin(index):
                return
            lesson = self._lesson_if_any(index)
            if lesson is None and self.setting.spending.stopped:
                return
            means = yield lesson  # Lightning takes its steps
            assert means is not None
            self.last = {**self.last, **{name: value for name, value in means.items() if name in COMPARED}}
            if lesson is None:
                yield False
            else:
                with within(f"round {index}"):
                    self.state = self._updated(means)
                    over = self.early_stop.over(index, self.state)
                yield over

    def restore_best(self) -> int | None:
        """Put back what the best held-out round left behind, the method's state with it; returns that round, or None
        where none is kept."""
        best = self.early_stop.restore_best()
        if best is not None:
            self.state = dict(self.early_stop.best_state)
        return best

    def _updated(self, means: Mapping[str, float]) -> dict[str, Any]:
        with calling(self.method, "update"):
            found = self.method.update(self.state, means)
        return checked_state(found, f"{whose(self.method)}.update")

    def _lesson_if_any(self, index: int) -> Lesson | None:
        """What round `index` learns; None where there is nothing, which is said, or where the budget paid for less
        than can be learned from.

        Raises:
            NothingToLearnError: nor was there in any other round.
        """
        spending, (place, rounds) = self.setting.spending, self.collect.place_in_lap(index)
        if not place:
            spending.drawing()
        try:
            with self.setting.meter.phase("prepare"), within(f"round {index}"):
                groups = self.collect(index)  # sample, score, annotate, keep
                spending.learning(place, rounds)
                return self.lesson(groups, index)  # know, prepare, describe
        except NothingToLearnError as nothing:
            if spending.stopped:
                return None
            self.left_out.append(index)
            if len(self.left_out) == self.count:
                raise
            self.setting.say(f"{self.setting.label(index)}: left out, there is nothing to learn from. {nothing.what}")
            return None

    def lesson(self, groups: Groups, index: int) -> Lesson:
        """What round `index` learns from its groups."""
        data = self.known.read(groups)
        steps = self._steps(data, index)
        known = self.known.work_out(data, first_epoch(steps), self.asked.before_prepare)
        metrics = self.describe(groups, data, known, fresh=not self.collect.place_in_lap(index)[0])
        batch = self.prepare(groups, data, known, index, self.state)
        if batch.state is not None:
            self.state = checked_state(batch.state, f"{whose(self.method)}.prepare")
        if batch.groups is not groups or batch.pairs is not None:  # other rows: nothing is known of them yet
            data, known = self.known.read(batch.groups, batch.pairs), {}
            steps = self._steps(data, index)
        data.tensors = dict(batch.tensors)
        refuse_nothing(data, self.weighted, f"{type(self.method).__name__}, round {index}")
        weighs = self.method.importance_cap is not None
        data.left_to_the_step = set() if weighs else self.asked.left_to_the_step(len(steps)) - set(known)
        missing = self.asked.before_steps - data.left_to_the_step - set(known)
        known |= self.known.work_out(data, first_epoch(steps), missing)
        check_widths(batch, data.response_mask.shape[1], f"{whose(self.method)}.prepare")
        made = {name: v.float() if v.is_floating_point() else v for name, v in batch.tensors.items()}
        sampled = None
        if self.method.samples_per_prompt and "old_logprobs" in self.asked.by_losses:
            if "logprobs" in known:
                metrics |= mismatch(data, known["logprobs"])
            else:  # the round's only step works them out
                sampled = data.sampled_logprobs()
            if self.method.importance_cap is not None:
                made["advantages"] = weighed(made["advantages"], data, known["logprobs"], self.method.importance_cap)
        data.tensors = self.asked.under_loss_names(known) | made
        self.last = {**metrics, **batch.metrics}
        self.setting.say(
            f"{self.setting.label(index)}: learning from {len(data.groups)} prompts in {len(steps)} steps; "
            f"{said(self.last)}"
        )
        return Lesson(data, steps, self.last, self._stop_epochs, sampled)

    def _stop_epochs(self, metrics: Mapping[str, float]) -> bool:
        with calling(self.method, "stop_epochs"):
            return bool(self.method.stop_epochs(metrics))

    def _steps(self, data: TrainingData, index: int) -> list[Step]:
        method, place = self.method, self.setting
        seed = (*place.seed, index, "order")
        together = joins(self.asked.by_losses)
        if together and (most := data.over(place.max_tokens)) and not self._told:
            self._told = True
            place.say(said_of_size(most, place.max_tokens))
        passes = (method.batch_size, method.epochs, place.max_tokens)
        return data.steps(*passes, seed, place.world[1], together, place.steps)

    @property
    def online_reference(self) -> Reference | None:
        """What the steps ask for reference log-probs; None where the rounds keep them."""
        online = self.asked.by_losses_of_reference and not self.asked.keeps_reference
        return self.known.models.reference if online else None


def improvement(
    method: PolicyOptimizer,
    losses: Sequence[BoundLoss],
    models: Models,
    sampler: Sampler,
    judging: Judging,
    prompts: Groups,
    setting: Setting,
    *,
    state: Mapping[str, Any] | None = None,
    history: Groups | None = None,
    heldout: Groups | None = None,
    patience: int = 0,
    reference_logprobs: str = "kept",
    max_response_tokens: int = 1024,
    measured: frozenset[str] = frozenset(),
) -> Improvement:
    """The parts of the rounds, put together.

    Args:
        method: the policy optimizer.
        losses: its loss and its extra losses, bound.
        models: who takes part.
        sampler: how responses are sampled.
        judging: what scores and ranks them.
        prompts: prompts, or groups with responses for a method that samples nothing.
        setting: where.
        state: the method's, as the version before ended; None: as it begins.
        history: groups of earlier versions.
        heldout: prompts for early stopping, or None.
        patience: rounds without a better held-out reward before stopping.
        reference_logprobs: "kept": worked out once a round; "online": with every micro-batch.
        max_response_tokens: longest response learned from.
        measured: tensors that the metrics of the steps ask for.

    Raises:
        ConfigError: a contradiction, see `refuse_contradictions`.
    """
    referenced = models.reference is not None
    by_losses = asked_by(losses, referenced)
    own = models.behaviour is models.policy
    scored, ranked = judging.reward is not None, judging.annotator is not None
    refuse_contradictions(method, by_losses, Facts(scored, ranked, referenced, own, *_of_sampler(sampler)))
    setting = replace(setting, rounds=told(method, "rounds_over", int, len(prompts)))
    judging = replace(judging, setting=setting)
    limits = (sampler.max_prompt_tokens, max_response_tokens, setting.max_tokens, setting.meter)
    known = Known(models, method.logprob_temperature, *limits)
    sampling = Known(replace(models, policy=models.behaviour), sampler.temperature, *limits)
    drawing = Drawing(models.behaviour, sampler, setting.meter, setting.tick, setting.world)
    _refuse_unfit(known, models.behaviour, sampler, prompts, heldout, method.samples_per_prompt > 0)
    name = judging.reward.name if judging.reward is not None else None
    return Improvement(
        method=method,
        asked=Asked(by_losses | measured, method.prepare_arguments(), reference_logprobs == "kept"),
        setting=setting,
        collect=Collect(method, prompts, drawing, judging, setting),
        known=known,
        prepare=Prepare(method, judging, known, history or Groups.from_rows([]), setting, sampler.max_new_tokens),
        describe=Describe(sampling, name, method.samples_per_prompt > 0 and not any(_of_sampler(sampler))),
        early_stop=EarlyStop(
            replace(drawing, policy=models.policy),
            judging.reward,
            heldout,
            patience,
            setting,
            value_model=models.value_model,
        ),
        state=begun_with(method, state),
        last={},
        # Not strict: a test may leave the extra losses out.
        weighted=weighted(losses[0], zip(method.extra_losses(), losses[1:], strict=False), method.terms()),
    )


def _of_sampler(sampler: Sampler) -> tuple[bool, bool]:
    """(whether it truncates, whether it is greedy), as it says."""
    return bool(told(sampler, "truncates", object)), bool(told(sampler, "greedy", object))


def _refuse_unfit(
    known: Known, behaviour: Policy, sampler: Sampler, prompts: Groups, heldout: Groups | None, samples: bool
) -> None:
    """Refuse rows of any round that a model whose positions run out could not read, before the first round.

    Raises:
        DataError: naming the first.
    """
    if behaviour.chat.positions is None and known.models.policy.chat.positions is None:
        return
    if samples:
        sampler.refuse_unfit(behaviour, prompts)
    else:
        known.read(prompts)
    if heldout is not None:
        sampler.refuse_unfit(known.models.policy, heldout)
