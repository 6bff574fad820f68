"""evaluate: held-out prompts are answered, and the answers scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from alignkit.calls import releasing, told
from alignkit.errors import ConfigError, DataError
from alignkit.groups import Groups
from alignkit.metrics.specs import ANSWERS
from alignkit.optimizers import check_positive
from alignkit.run_folder import EVALUATION, read_evaluation
from alignkit.stages.asked_metrics import by_name, check_answers, named
from alignkit.stages.base import Context, Cost, Made, Product, Stage, component, rows_of
from alignkit.stages.handles import EvaluationHandle, GroupsHandle, PolicyHandle
from alignkit.stages.place import Place
from alignkit.stages.reference import open_reference
from alignkit.stages.sample import limited


@dataclass(frozen=True, eq=False)
class Evaluate(Stage[EvaluationHandle]):
    """Answer held-out prompts and score the answers.

    Args:
        policy: the version.
        prompts: held-out prompts.
        scores: name -> reward or plain function; the first is the one that the report leads with.
        n: answers per prompt.
        sampler: a registered sampler.
        temperature: of sampling; default the sampler's own, 1.
        greedy: take the likeliest tokens; default the sampler's own, no.
        max_new_tokens: of an answer; default the sampler's own, 128.
        reference: the policy for the KL (V0), which is measured on answers drawn from the policy: neither greedily nor
            from a truncated distribution.
        kl_prompts: how many of the prompts the KL is measured on; default all.
        label: of the version, such as "V1"; default the stage's name.
        baseline: the evaluation to pair with; default the first of this run.
        metrics: what else to measure on the answers: registered names, `use(…)`, or classes; by name where one is used
            twice. `kl`, `response_length` and `finished` are always there.
        answers: "sampled" from the policy, or "given": those that the groups hold, such as turns of a dialogue.
    """

    verb: ClassVar[str] = "evaluate"
    makes: ClassVar[tuple[Product, ...]] = ("evaluation",)

    policy: PolicyHandle
    prompts: Groups | GroupsHandle
    scores: Mapping[str, Any] = field(metadata=component("reward", named=True))
    _: KW_ONLY
    n: int = 1
    sampler: Any = field(default="default", metadata=component("sampler"))
    temperature: float | None = None
    greedy: bool | None = None
    max_new_tokens: int | None = None
    reference: PolicyHandle | None = None
    kl_prompts: int | None = None
    label: str | None = None
    baseline: EvaluationHandle | None = None
    answers: Literal["sampled", "given"] = "sampled"
    metrics: Sequence[Any] | Mapping[str, Any] = field(default=(), metadata=component("metric", many=True))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "n")
        if self.kl_prompts is not None:
            check_positive(self, "kl_prompts")
        if isinstance(self.scores, Mapping) and (taken := sorted(set(self.scores) & set(ANSWERS))):
            what = f"a metric that is always there is called {taken[0]!r}"
            raise ConfigError(what, where=self.name, remedy="give the score another name")
        if self.answers == "given" and self.reference is not None:
            raise ConfigError(
                "answers='given' with a reference",
                where=self.name,
                effect="The KL of a policy is measured on its own samples, and these may be another's.",
                remedy="leave reference out, or sample",
            )

    def resolved(self, context: Context) -> Self:
        built = super(Evaluate, replace(self, metrics=named(context.host, self.metrics))).resolved(context)
        answers = self.n if self.answers == "sampled" else 0
        check_answers(by_name(built.metrics), answers=answers, reference=self.reference is not None, scores=self.scores)
        sampler = limited(built.sampler, self.temperature, self.max_new_tokens)
        sampler = sampler if self.greedy is None else replace(sampler, greedy=self.greedy)
        if self.reference is not None and self.answers == "sampled":
            _refuse_other_samples(sampler, self.name)
        baseline = self.baseline or context.first_evaluation
        return replace(
            built,
            sampler=sampler,
            temperature=sampler.temperature,
            greedy=sampler.greedy,
            max_new_tokens=sampler.max_new_tokens,
            label=self.label or self.name,
            baseline=baseline,
        )

    def derived(self) -> Mapping[str, Any]:
        return {"order_of_scores": list(self.scores)}  # the first one leads

    def cost(self) -> Cost:
        tokens = len(self.prompts) * self.n * self.sampler.max_new_tokens
        return Cost(
            generated=tokens if self.answers == "sampled" else 0,
            forwarded=tokens * (len(self.scores) + 1),
            parameters=self.policy.parameters,
        )

    def work(self, place: Place) -> Mapping[str, Any]:
        """Sample, score, measure the KL; one row per prompt and sample."""
        if not place.writes:
            return {}
        with place.meter.phase("evaluate"), place.computing():
            return self._measured(place)

    def _measured(self, place: Place) -> dict[str, Any]:
        from alignkit.engine.answer_metrics import answers_offered, measure_answers
        from alignkit.evaluation import summarise_evaluation
        from alignkit.metrics import states
        from alignkit.metrics.answers import always
        from alignkit.rewards import metered_scores

        policy = place.load(self.policy)
        groups = self._answers(place, policy)
        kl = self._kl(place, policy, groups) if self.reference is not None else None
        logprobs = self._logprobs(place, policy, groups)
        for label, reward in self.scores.items():
            with releasing(reward):
                found = metered_scores(groups, reward, place.meter)
            groups = groups.with_rewards(label, found.values, found.reasons)
            if gone := found.missing():
                why = next((reason for row in found.reasons for reason in row if reason), "no reason given")
                place.say(f"{gone} of {groups.num_responses} answers have no {label}: {why}")
        rows = _evaluation_rows(groups, kl, list(self.scores))
        with place.meter.phase("write"), (place.folder / EVALUATION).open("w", encoding="utf-8") as out:
            for row in rows:
                out.write(json.dumps(row) + "\n")  # scores in the order given: the first is the one that leads
        first = read_evaluation(self.baseline.path) if self.baseline is not None else None
        metrics = by_name(self.metrics)
        measured = measure_answers({**always(), **metrics}, answers_offered(groups, kl, logprobs))
        states.save(place.folder, measured.states)
        asked = {part: metrics[name].spec.to_json() for part, name in measured.metric_of.items() if name in metrics}
        summary = summarise_evaluation(rows, first, by_prompt=measured.by_prompt, values=measured.values)
        return {"label": self.label, **summary, **({"specs": asked} if asked else {})}

    def _logprobs(self, place: Place, policy: Any, groups: Groups) -> Any:
        """Of the answers, where a metric asks for them."""
        from alignkit.engine.answer_metrics import answer_logprobs

        metrics = by_name(self.metrics)
        if not any("logprobs" in m.asks_for() + m.asks_for(optional=True) for m in metrics.values()):
            return None
        return answer_logprobs(policy, groups, place.max_tokens, self.sampler.max_prompt_tokens, place.meter)

    def _answers(self, place: Place, policy: Any) -> Groups:
        prompts = rows_of(self.prompts)
        if not len(prompts):
            raise DataError("AK-D28 there are no prompts", where=place.name, remedy="check the file and the filters")
        if self.answers == "given":
            return _answered(prompts, place.name)
        from alignkit.sampling import Drawing

        # The same random numbers for every version: what differs is the policy.
        drawing = Drawing(policy, self.sampler, place.meter, place.tick)
        return drawing.draw(prompts, self.n, seed=(place.seed, "evaluate"), name=self.policy.key[:16])

    def _kl(self, place: Place, policy: Any, groups: Groups) -> list[list[float]]:
        from alignkit.engine.reference import kl_per_response

        assert self.reference is not None
        itself = self.reference.key == self.policy.key
        return kl_per_response(
            policy,
            groups.select(range(min(self.kl_prompts or len(groups), len(groups)))),
            None if itself else open_reference(place, self.reference, policy),
            temperature=self.sampler.temperature,
            max_tokens=place.max_tokens,
            max_prompt_tokens=self.sampler.max_prompt_tokens,
        )

    def handle(self, made: Made) -> EvaluationHandle:
        return EvaluationHandle(**made.common())

    def summary(self, result: Mapping[str, Any]) -> str:
        if not result:
            return "done"
        parts = [f"{name} {_spelled(value)}" for name, value in result["metrics"].items()]
        return f"{result['label']}: {', '.join(parts)}"


def _refuse_other_samples(sampler: Any, where: str) -> None:
    """Refuse a KL along answers that were not drawn from the policy's own distribution."""
    how = "a greedy sampler" if told(sampler, "greedy", object) else None
    how = how or ("a sampler that truncates" if told(sampler, "truncates", object) else None)
    if how:
        raise ConfigError(
            f"{how} with a reference",
            where=where,
            effect="The KL is a mean over draws from the policy; along other answers log-ratios are no KL.",
            remedy="leave reference out, and measure the KL in an evaluation that samples",
        )


def _spelled(value: Any) -> str:
    """A mean with its interval, or a bare number."""
    if isinstance(value, Mapping):
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value:.3f}"


def _answered(groups: Groups, name: str) -> Groups:
    """The groups, each with an answer.

    Raises:
        DataError: naming the first without.
    """
    bare = [i for i, row in enumerate(groups) if not row["responses"]]
    if bare:
        raise DataError(
            f"{len(bare)} groups hold no answer", where=f"{name}, row {bare[0]}", remedy="sample them first"
        )
    return groups


def _evaluation_rows(groups: Groups, kl: list[list[float]] | None, names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for number, row in enumerate(groups):
        for k, response in enumerate(row["responses"]):
            found = {r["name"]: r["values"][k] for r in row["rewards"] or []}
            scores = {name: found[name] for name in (*names, *(n for n in found if n not in names))}
            rows.append(
                {
                    "prompt_id": row["prompt_id"],
                    "prompt": [{"role": m["role"], "content": m["content"]} for m in row["prompt"]],
                    "tags": row["tags"],
                    "sample": k,
                    "response": response,
                    "finished": row["finished"][k] if row["finished"] else None,
                    "scores": scores,
                    "response_length": len(row["response_ids"][k]) if row["response_ids"] else None,
                    "kl": kl[number][k] if kl and number < len(kl) else None,
                }
            )
    return rows
