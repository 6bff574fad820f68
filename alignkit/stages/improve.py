"""improve: the next version of a policy, by any registered method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from alignkit.annotators import check_dimensions, dimensions_of
from alignkit.budget import NAMES, Budget, Spending, stopped
from alignkit.calls import calling, releasing, told
from alignkit.engine.checks import Facts, asked_by, refuse_contradictions
from alignkit.engine.state import begun_with
from alignkit.errors import ConfigError, DataError
from alignkit.groups import Groups
from alignkit.optimizers import check_not_negative, check_positive
from alignkit.stages.asked_metrics import by_name, check_steps, named, specs_kept
from alignkit.stages.base import Context, Cost, Made, Product, Stage, as_sequence, component, rows_of
from alignkit.stages.handles import GroupsHandle, Improved, PolicyHandle
from alignkit.stages.place import Place
from alignkit.stages.reference import open_reference
from alignkit.stages.sample import limited
from alignkit.stages.training import adapter_bytes, check_fraction, fit_learner, trainable

if TYPE_CHECKING:
    from alignkit.engine.improve import Improvement
    from alignkit.registry.records import BoundLoss

VALUE_MODEL = "value_model"
"""Folder of a separate value model, beside the policy's."""


@dataclass(frozen=True, eq=False)
class Improve(Stage[Improved]):
    """Make the next version of a policy with any registered optimizer.

    Args:
        policy: samples; and is trained, unless `init` says otherwise.
        data: prompts, or groups with responses (comparisons, labelled answers) for a method that samples nothing.
        optimizer: a registered policy optimizer.
        reward: what scores the responses.
        annotator: what ranks the responses of a round, along one dimension.
        reference: the policy that the KL is measured against (V0).
        reference_logprobs: "kept": the loss's reference log-probs are worked out once a round; "online": with every
            micro-batch, in less memory and more time.
        streams: groups of the second data streams that the optimizer declares, by name.
        init: whose weights are trained; default the policy's own.
        state: what the optimizer's state begins with, such as an adaptive coefficient: `Improved.state` of the version
            before, of the same optimizer; default its own beginning.
        history: samples of earlier versions, oldest first, scored again by the current reward.
        heldout: prompts on which the reward is measured after every round.
        patience: rounds without a better held-out reward before stopping; 0 never stops.
        sampler: a registered sampler; its temperature is the optimizer's.
        max_new_tokens: default the sampler's own.
        max_length: tokens of a given response, and of a piece of a stream's text; longer responses are refused.
        max_missing: the largest share of missing rewards a round may have.
        drop_bad: leave out useless rows, of those that a method is given to learn from, rather than refuse them.
        value_model: "head": a value head on the policy's trunk; "separate": a model of its own, started like the
            policy.
        checkpointing: gradient checkpointing: activations are computed again rather than kept.
        max_steps: optimizer steps, in place of the optimizer's `rounds` (of its `epochs`, where it learns from all the
            rows it is given at once); 0: these decide.
        iteration: number of the version, kept with the samples.
        metrics: what else to measure on the tensors of each step (registered names, `use(…)`, classes).
        budget: the most to spend, such as {"generated_tokens": "200k"}; names are those of the meter, and "flops". The
            round that would exceed it is cut: `docs/budgets.md` says how.
    """

    verb: ClassVar[str] = "improve"
    makes: ClassVar[tuple[Product, ...]] = ("policy", "groups")

    policy: PolicyHandle
    data: Groups | GroupsHandle
    _: KW_ONLY
    optimizer: Any = field(metadata=component("optimizer"))
    reward: Any = field(default=None, metadata=component("reward"))
    annotator: Any = field(default=None, metadata=component("annotator"))
    reference: PolicyHandle | None = None
    reference_logprobs: Literal["kept", "online"] = "kept"
    streams: Mapping[str, Groups | GroupsHandle] | None = None
    init: PolicyHandle | None = None
    state: Mapping[str, Any] | None = None
    history: Sequence[GroupsHandle | Groups] = ()
    heldout: Groups | GroupsHandle | None = None
    patience: int = 0
    sampler: Any = field(default="default", metadata=component("sampler"))
    max_new_tokens: int | None = None
    max_length: int = 1024
    max_missing: float = 0.05
    drop_bad: bool = False
    value_model: Literal["head", "separate"] = "head"
    checkpointing: bool = False
    max_steps: int = 0
    iteration: int | None = None
    metrics: Sequence[Any] | Mapping[str, Any] = field(default=(), metadata=component("metric", many=True))
    budget: Mapping[str, int | float | str] | Budget | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("max_missing", self.max_missing, self.name)
        check_positive(self, "max_length")
        check_not_negative(self, "patience", "max_steps", *(["iteration"] if self.iteration is not None else []))
        if self.patience and self.heldout is None:
            what = f"patience={self.patience} without held-out prompts"
            raise ConfigError(what, where=self.name, effect="Nothing would ever stop it.", remedy="pass heldout=…")
        if self.heldout is not None and self.reward is None:
            raise ConfigError("heldout without a reward to measure on it", where=self.name, remedy="pass reward=…")
        limit = Budget.of(self.budget).to_json().get("optimizer_steps", self.max_steps)
        if self.max_steps and limit != self.max_steps:
            what = f"max_steps={self.max_steps} and a budget of {limit} optimizer_steps"
            raise ConfigError(what, where=self.name, remedy="give one of them")

    # -- before anything is spent --------------------------------------------------------------------------------------

    def resolved(self, context: Context) -> Self:
        built = super(Improve, replace(self, metrics=named(context.host, self.metrics))).resolved(context)
        sources = {"policy", "value", "old", "method", "round", *(["reference"] if self.reference is not None else [])}
        check_steps(by_name(built.metrics), sources, built.optimizer.provides, built.optimizer.logs)
        sampler = limited(built.sampler, built.optimizer.temperature, self.max_new_tokens)
        streams = dict(self.streams or {})
        declared = built.optimizer.streams()
        if set(declared) != set(streams):
            raise ConfigError(
                f"the optimizer learns from the streams {sorted(declared)}, given are {sorted(streams)}",
                where=self.name,
                remedy="pass streams={name: groups} for those that it declares",
            )
        self._refuse_contradictions(context, built.optimizer, sampler)
        check_dimensions(() if built.annotator is None else [dimensions_of(built.annotator)], self.name)
        return replace(
            built,
            sampler=sampler,
            max_new_tokens=sampler.max_new_tokens,
            streams=streams,
            init=self.init or self.policy,
            history=as_sequence(self.history),
            budget=Budget.of({**Budget.of(self.budget).to_json(), **self._steps}),
        )

    @property
    def _steps(self) -> dict[str, int]:
        return {"optimizer_steps": self.max_steps} if self.max_steps else {}

    @property
    def _at_once(self) -> bool:
        """Whether the method learns from all rows in one round."""
        return not self.optimizer.samples_per_prompt and not self.optimizer.prompts_per_round

    @property
    def _method(self) -> Any:
        """The optimizer, with as many rounds as `max_steps` may take: each takes one at least."""
        if not self.max_steps:
            return self.optimizer
        return replace(self.optimizer, rounds=1 if self._at_once else self.max_steps)

    def _refuse_contradictions(self, context: Context, method: Any, sampler: Any) -> None:
        losses = [context.host.build("loss", loss) for loss in (method.loss, *method.extra_losses().values())]
        with calling(method, "check_use"):
            method.check_use(max_new_tokens=sampler.max_new_tokens, losses=losses)
        referenced = self.reference is not None
        facts = Facts(
            rewarded=self.reward is not None,
            annotated=self.annotator is not None,
            referenced=referenced,
            own_weights=self._start.key == self.policy.key,
            truncates=bool(told(sampler, "truncates", object)),
            greedy=bool(told(sampler, "greedy", object)),
        )
        refuse_contradictions(method, asked_by(losses, referenced), facts)
        begun_with(method, self.state, self.name)

    def derived(self) -> Mapping[str, Any]:
        return {"lora": self._start.lora, "declared_streams": self.optimizer.streams()}

    @property
    def _start(self) -> PolicyHandle:
        """Whose weights are trained."""
        return self.init or self.policy

    def _draws(self) -> tuple[int, int]:
        """(responses of all draws, responses learned from in all rounds)."""
        method, rows = self._method, len(self.data)
        every, rounds = method.sample_every or method.rounds or 1, told(method, "rounds_over", int, rows)
        if self.max_steps and not self._at_once and method.batch_size:
            a_round = -(-min(method.prompts_per_round or rows, rows) // method.batch_size) * method.epochs
            rounds = -(-self.max_steps // max(a_round, 1))
        draws, each = -(-rounds // every), max(method.samples_per_prompt, 1)
        drawn = min(method.prompts_per_round or rows, rows) * draws if method.rounds else rows
        return drawn * each, drawn * each * rounds // max(draws, 1)

    def cost(self) -> Cost:
        drawn, learned = self._draws()
        method, length, limits = self._method, self.sampler.max_new_tokens, Budget.of(self.budget).to_json()
        generated = drawn * length if method.samples_per_prompt else 0
        generated = min(generated, limits.get("generated_tokens", generated))
        passes = self.max_steps * (method.batch_size or learned // method.rounds) if self.max_steps else 0
        trained = (passes or learned * method.epochs) * length * 2
        return Cost(
            generated=generated,
            trained=min(trained, limits.get("trained_tokens", trained)),
            forwarded=generated * 2,
            parameters=self.policy.parameters,
            trainable=True,
            disk=adapter_bytes(self.policy),
        )

    # -- the work ------------------------------------------------------------------------------------------------------

    def work(self, place: Place) -> Mapping[str, Any]:
        """Sample, score, learn, round by round."""
        from alignkit.data.shown import overview
        from alignkit.engine.objectives import extra_objectives

        method, rows = self._method, self._checked_rows(place)
        loss = place.host.build("loss", method.loss)
        extras = {name: place.host.build("loss", fn) for name, fn in method.extra_losses().items()}
        policy = trainable(place, self._start, place.name)
        limit = self.sampler.max_prompt_tokens if method.samples_per_prompt else self.max_length
        shown = overview(rows, policy.chat, train="response", max_prompt_tokens=limit)
        place.say("\n".join(["what is learned from", *shown.lines()]))
        rounds = self._rounds(place, policy, (loss, *extras.values()), rows)
        arguments = {
            "model": policy,
            "loss": loss,
            "terms": method.terms(),
            "training": method,
            "rounds": rounds,
            "temperature": method.logprob_temperature,
            "value_model": rounds.known.models.value_model,
            "value_learning_rate": method.value_learning_rate,
            "extras": extra_objectives(extras, method.terms()),
            "streams": self._stream_data(place, policy),
            "reference": rounds.online_reference,
            "metrics": by_name(self.metrics),
        }
        with releasing(self.reward, self.annotator):  # one that failed may be tried again in this process
            fit_learner(place, arguments, self.checkpointing, rounds.setting.spending)
        best = rounds.restore_best()
        with place.meter.phase("write"):
            return self._kept(place, rounds, best)

    def _checked_rows(self, place: Place) -> Groups:
        """The prompts; given rows without those that nothing can be learned from, before anything is loaded.

        Raises:
            DataError: there are such rows, and they are not to be dropped.
        """
        from alignkit.data import check_given, refuse_or_drop
        from alignkit.data.across_rows import shared_prompts
        from alignkit.data.problems import report_notes

        rows = rows_of(self.data)
        if self.heldout is not None:
            held = rows_of(self.heldout).column("prompt_id")
            report_notes(shared_prompts(rows.column("prompt_id"), held, "heldout"), place.name)
        if not len(rows):
            raise DataError("AK-D28 there are no rows", where=place.name, remedy="check the file and the filters")
        if self.optimizer.samples_per_prompt:
            return rows
        with place.meter.phase("prepare"):
            return refuse_or_drop(rows, check_given(rows), self.drop_bad, place.name)

    def _rounds(self, place: Place, policy: Any, losses: Sequence[BoundLoss], rows: Groups) -> Improvement:
        from alignkit.engine.improve import improvement
        from alignkit.engine.judging import Judging
        from alignkit.engine.setting import Models, Setting
        from alignkit.vocabulary import roots, select

        own = self._start.key == self.policy.key
        behaviour = policy if own else place.load(self.policy)
        reference = open_reference(place, self.reference, policy)
        measured = frozenset(name for metric in by_name(self.metrics).values() for name in metric.asks_for())
        asked = (
            {name for loss in losses for name in loss.tensor_names} | {*self.optimizer.prepare_arguments()} | measured
        )
        valued = bool(select(roots(asked), source="value"))
        spending = Spending(Budget.of(self.budget), place.meter)
        setting = Setting(
            place.path,
            place.max_tokens,
            (place.rank, place.world),
            spending,
            say=place.say,
            tick=place.tick,
            steps=self.max_steps if self._at_once else 0,
        )
        return improvement(
            self._method,
            losses,
            Models(policy, behaviour, reference, self._value_model(place, policy) if valued else None),
            self.sampler,
            Judging(setting, self.reward, self.annotator, self.max_missing),
            rows,
            setting,
            state=self.state,
            history=_in_order([rows_of(part) for part in self.history]),
            heldout=None if self.heldout is None else rows_of(self.heldout),
            patience=self.patience,
            reference_logprobs=self.reference_logprobs,
            max_response_tokens=max(self.sampler.max_new_tokens, self.max_length),
            measured=measured,
        )

    def _value_model(self, place: Place, policy: Any) -> Any:
        """None after putting a head on the policy's trunk, or a model of its own."""
        from alignkit.models import Policy

        if self.value_model == "head":
            policy.add_value_head(self._start.model_folder)
            return None
        before = self._start.path / VALUE_MODEL
        if before.is_dir():  # the version before learned one: it goes on
            with place.meter.phase("load"):
                separate = Policy.load(before, lora=self._start.lora, trainable=True, dtype=place.dtype)
        else:
            separate = trainable(place, self._start, place.name + "/value")
        separate.add_value_head(before)
        return separate

    def _stream_data(self, place: Place, policy: Any) -> list[Any]:
        """The second data streams, encoded. What does not fit the length limits is left out and said."""
        from alignkit.engine.objectives import Objective, StreamData
        from alignkit.engine.training_data import TrainingData
        from alignkit.optimizers import Term

        found, most = [], max(self.sampler.max_prompt_tokens, self.max_length)
        for name, stream in self.optimizer.streams().items():
            data, left = TrainingData.of_stream(policy, rows_of((self.streams or {})[name]), most)
            if left:
                place.say(f"{len(left)} rows of the stream {name} left out: {left[0]}")
            if not data.encoded:
                raise DataError(f"the stream {name} has no row to learn from", where=place.name)
            term = Term(weight=stream.weight, reduction=stream.reduction)
            objective = Objective(place.host.build("loss", stream.loss), {name: term}, name)
            seed = (*place.path, "stream", name)
            found.append(StreamData(name, data, objective, stream.batch_size, place.max_tokens, seed))
        return found

    def _kept(self, place: Place, rounds: Improvement, best: int | None) -> dict[str, Any]:
        """Write what was made; returns the small results."""
        sampled = Groups.concat(rounds.collect.sampled)
        sampled = sampled.with_columns({"iteration": [self.iteration] * len(sampled)})
        models, meter = rounds.known.models, place.meter
        if place.writes:
            sampled.save(place.folder / "groups")
            for model, folder in ((models.policy, "model"), (models.value_model, VALUE_MODEL)):
                if model is not None:
                    model.save(place.folder / folder)
                    model.save_value_head(place.folder / folder)
        result = {
            "rows": len(sampled),
            "steps": meter.spent("optimizer_steps"),
            "state": rounds.state,
            "parameters": self._start.parameters,
            "budget": {name: meter.spent(name) for name in NAMES},
            "last": dict(rounds.last),
            **specs_kept(by_name(self.metrics), self.optimizer.logs),
            **stopped(rounds.setting.spending),
        }
        if self.reward is not None and self.optimizer.samples_per_prompt > 1 and len(sampled):
            result |= _best_of_n(place, sampled, self.reward.name)
        if rounds.left_out:
            result["rounds_left_out"] = rounds.left_out
        return result | ({"best_round": best} if best is not None else {})

    # -- what is returned ----------------------------------------------------------------------------------------------

    def handle(self, made: Made) -> Improved:
        start, common = self._start, made.common()
        policy = PolicyHandle(**common, lora=start.lora, parameters=start.parameters)
        expected, responses = self._draws()[0], self.optimizer.samples_per_prompt or 1
        rollouts = GroupsHandle(**common, expected=expected, responses=responses)
        # Of a planned stage as it begins: what goes on from it can be planned too.
        state = made.result.get("state", {}) if made.folder else begun_with(self.optimizer, self.state, self.name)
        return Improved(policy, rollouts, state, made.result)


def _in_order(history: Sequence[Groups]) -> Groups:
    """Samples of earlier versions as one. Those after the last version that is written down are numbered from there,
    as they were passed; those before it count as the oldest."""
    told = [[version for version in part.column("iteration") if version is not None] for part in history]
    written = [place for place, versions in enumerate(told) if versions]
    begin, latest = (written[-1] + 1, max(max(told[place]) for place in written)) if written else (0, 0)
    numbered = [
        part.with_columns({"iteration": [latest + after] * len(part)})
        for after, part in enumerate(history[begin:], start=1)
    ]
    return Groups.concat([*history[:begin], *numbered])


def _best_of_n(place: Place, sampled: Groups, name: str) -> dict[str, Any]:
    """Maximum and median reward among n samples of a prompt, over the prompts whose samples all have a reward."""
    from alignkit.evaluation import best_of_n_curve

    with place.meter.phase("evaluate"):
        values, present = sampled.rewards(name)
        whole = [row for row, there in zip(values, present, strict=True) if all(there)]
        curve = best_of_n_curve(whole) if whole else {}
    return {"best_of_n": {str(n): point for n, point in curve.items()}, "best_of_n_score": name} if curve else {}
