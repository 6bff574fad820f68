"""What a stage is given is looked at where it is declared: before anything is spent, with the field and the remedy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from alignkit import (
    Batch,
    ConfigError,
    DataError,
    Groups,
    GroupsHandle,
    PluginError,
    PolicyHandle,
    PolicyOptimizer,
    Run,
)
from alignkit.plugin import Made, Mean, MetricSpec, Place, Sampled, Sampler, Stage
from alignkit.registry.host import PluginHost
from alignkit.stages import Evaluate, Improved, Sample
from alignkit.stages.base import Context
from alignkit.stages.results import small_results

HOST = PluginHost(allow=())
PROMPTS = Groups.from_prompts(["a", "b", "c"])
PAIRS = Groups.from_rows({"prompt": p, "responses": ["yes", "no"], "ranks": [1, 2]} for p in "abc")
V0 = PolicyHandle("a" * 64, "v0", None, {}, parameters=10)
ROWS = GroupsHandle("b" * 64, "rows", None, {}, expected=2)
MADE = Improved(V0, ROWS, {}, {})


def once(response: str) -> float:
    return float(len(response))


@dataclass(frozen=True)
class Imitates(PolicyOptimizer):
    """Learns from its samples as they are."""

    def prepare(self, groups: Groups, state: Any) -> Batch:
        return Batch(groups)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "planned", plan=True, host=HOST, quiet=True)


WRONG = [
    (lambda run: run.sft(None, PAIRS), "policy is a NoneType, and not a PolicyHandle"),
    (lambda run: run.sft(PAIRS, V0), "policy is a Groups"),
    (lambda run: run.sample(V0, ["a", "b"]), r"prompts is a list, and not a Groups.*from_prompts"),
    (lambda run: run.sample(V0, V0), "prompts is a PolicyHandle"),
    (lambda run: run.evaluate(MADE, PROMPTS, {}), r"policy is a Improved.*pass its \.policy"),
    (lambda run: run.improve(V0, MADE, optimizer=Imitates(), reward=once), r"data is a Improved.*\.rollouts"),
    (lambda run: run.improve(V0, PROMPTS, optimizer=Imitates(), reward=once, reference=ROWS), "reference is a Groups"),
    (lambda run: run.improve(V0, PROMPTS, optimizer=Imitates(), reward=once, streams={"x": V0}), "streams is a Policy"),
    (lambda run: run.improve(V0, PROMPTS, optimizer=Imitates(), reward=once, history=[V0]), "history is a Policy"),
    (lambda run: run.train_reward(V0, {"helpfulness": ROWS}, loss=once), r"comparisons is a dict.*'helpfulness'"),
    (lambda run: run.evaluate(V0, PROMPTS, {}, baseline=V0), "baseline is a PolicyHandle"),
    (lambda run: run.export(PAIRS), "model is a Groups"),
    (lambda run: run.groups(ROWS), "groups is a GroupsHandle"),
    (lambda run: run.annotate(PAIRS, None), "annotator is None"),
    (lambda run: run.score(PAIRS, [once]), "reward is a list"),
    (lambda run: run.evaluate(V0, PROMPTS, [once]), "scores is a list"),
    (lambda run: run.evaluate(V0, PROMPTS, {"s": None}), "None"),
    (lambda run: run.evaluate(V0, PROMPTS, {"response_length": once}), "'response_length'"),
    (lambda run: run.evaluate(V0, PROMPTS, {}, n=0), "n=0"),
    (lambda run: run.evaluate(V0, PROMPTS, {}, kl_prompts=-1), "kl_prompts=-1"),
    (lambda run: run.evaluate(V0, PROMPTS, {}, metrics="perplexity"), "give a list"),
    (lambda run: run.evaluate(V0, PROMPTS, {}, temperature=float("inf")), "temperature=inf is no finite number"),
    (lambda run: run.sample(V0, PROMPTS, 0), "n=0"),
    (lambda run: run.sample(V0, PROMPTS, temperature=[]), "temperature names none"),
    (lambda run: run.sample([], PROMPTS), "policy names none"),
    (lambda run: run.sft(V0, PAIRS, batch_size=2.5), "batch_size=2.5 is no whole number"),
    (lambda run: run.sft(V0, PAIRS, drop_bad="no"), "drop_bad='no' is no truth value"),
    (lambda run: run.sft(V0, PAIRS, betas=(0.9,)), "give 2 of them"),
    (lambda run: run.sft(V0, PAIRS, max_grad_norm=None), "max_grad_norm=None is no finite number"),
    (lambda run: run.sft(V0, PAIRS, learning_rat=1.0), r"there is no argument 'learning_rat'.*learning_rate"),
    (lambda run: run.train_reward(V0, PAIRS), "missing a required argument: 'loss'"),
    (lambda run: run.policy("tiny", lora="rank8"), "lora='rank8'"),
    (lambda run: run.improve(V0, PROMPTS, optimizer=Imitates()), "a reward or an annotator"),
    (lambda run: run.improve(V0, PROMPTS, optimizer=Imitates(), reward=once, patience=1), "without held-out prompts"),
    (lambda run: run.stage(Sample(V0, PROMPTS), n=2), "further arguments"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_wrong_argument_is_told_in_a_plan_already(run: Run, call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        call(run)
    assert not run.planned


def test_several_inputs_may_be_one_or_many(run: Run) -> None:
    run.train_reward(V0, [PAIRS, ROWS], loss=lambda chosen_rewards: -chosen_rewards, replay=[ROWS], name="many")
    run.train_reward(V0, ROWS, loss=lambda chosen_rewards: -chosen_rewards, name="one")
    run.sample([V0, V0], ROWS)
    assert len(run.planned) == 3


def test_whole_numbers_for_a_rate_are_the_same_number() -> None:
    one, other = (Sample(V0, PROMPTS, temperature=t).resolved(Context(HOST)) for t in (1, 1.0))
    assert one.temperature == other.temperature
    assert isinstance(Evaluate(V0, PROMPTS, {}, temperature=1).temperature, float)


def test_the_samplers_own_settings_hold_where_the_verb_says_nothing() -> None:
    own = Sampler(greedy=True, temperature=0.3, max_new_tokens=7)
    found = Evaluate(V0, PROMPTS, {}, sampler=own).resolved(Context(HOST))
    assert (found.greedy, found.temperature, found.max_new_tokens) == (True, 0.3, 7)
    said = Evaluate(V0, PROMPTS, {}, sampler=own, greedy=False, max_new_tokens=9).resolved(Context(HOST)).sampler
    assert (said.greedy, said.temperature, said.max_new_tokens) == (False, 0.3, 9)


@dataclass(frozen=True, eq=False)
class Words(Stage[None]):
    """Words by annotations of every spelling."""

    verb: ClassVar[str] = "words"
    one: Literal["a", "b"] | None = None
    two: Literal["a", "b"] = "a"

    def work(self, place: Place) -> dict[str, Any]:
        return {}

    def handle(self, made: Made) -> None:
        return None


def test_words_are_checked_however_they_are_spelled() -> None:
    Words()
    Words(one="b", two="b")
    for wrong in ({"one": "c"}, {"two": "c"}):
        with pytest.raises(ConfigError, match="'c'"):
            Words(**wrong)


@dataclass(frozen=True, eq=False)
class Clash(Words):
    """Says a field's name again."""

    rows: int = 1

    def derived(self) -> dict[str, Any]:
        return {"rows": 7}


def test_a_derived_name_hides_no_field(run: Run) -> None:
    with pytest.raises(ConfigError, match="rows"):
        run.stage(Clash())


def test_small_results_are_json_or_refused_by_name() -> None:
    found = small_results({"x": np.float32(1.5), "n": np.int64(2), "t": (1, 2), "p": Path("a")}, "s")
    assert json.dumps(found) == '{"x": 1.5, "n": 2, "t": [1, 2], "p": "a"}'
    assert small_results(None, "s") == {}
    for wrong in ({"x": {"y": [float("nan")]}}, {"x": np.zeros(2)}, [1], {"x": object()}):
        with pytest.raises(ConfigError, match="s"):
            small_results(wrong, "s")


def staged(number: int) -> type[Stage[GroupsHandle]]:
    """The same stage with other code: how many rows it keeps is a variable of its surroundings."""

    @dataclass(frozen=True, eq=False)
    class First(Stage[GroupsHandle]):
        verb: ClassVar[str] = "first"
        groups: Groups

        def work(self, place: Place) -> dict[str, Any]:
            self.groups.select(range(number)).save(place.folder / "groups")
            return {"rows": number}

        def handle(self, made: Made) -> GroupsHandle:
            return GroupsHandle(**made.common(), expected=number)

    return First


def test_a_stage_whose_code_changed_is_another_stage(tmp_path: Path) -> None:
    kept = []
    for number in (1, 2, 2):
        with Run(tmp_path, host=HOST, quiet=True) as run:
            kept.append(len(run.stage(staged(number)(PROMPTS)).groups))
    assert kept == [1, 2, 2]
    assert len(list(tmp_path.glob("stages/[0-9]*"))) == 2


def test_an_interrupted_stage_may_be_asked_for_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def interrupted(response: str) -> float:
        if not HOST_STATE.get("mended"):
            raise KeyboardInterrupt
        return 1.0

    HOST_STATE.clear()
    with Run(tmp_path, host=HOST, quiet=True) as run:
        with pytest.raises(KeyboardInterrupt):
            run.score(PAIRS, interrupted)
        HOST_STATE["mended"] = True
        assert run.score(PAIRS, interrupted).result["mean"] == 1.0
    assert not calls


HOST_STATE: dict[str, bool] = {}


# -- what a method gives back ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Odd(Imitates):
    """Gives back what it must not."""

    samples_per_prompt: int = 1
    kind: str = "groups"

    def keep(self, groups: Groups) -> list[bool] | None:
        return [True] if self.kind == "keep" else None

    def prepare(self, groups: Groups, state: Any) -> Any:
        import torch

        count = groups.num_responses
        return {
            "groups": groups,
            "name": Batch(groups, {"advantage": torch.zeros(count)}),
            "short": Batch(groups, {"advantages": torch.zeros(count - 1)}),
            "metric": Batch(groups, metrics={"m": "high"}),  # type: ignore[dict-item]
        }.get(self.kind, Batch(groups))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("groups", "prepare returned a Groups"),
        ("name", "'advantage', which no loss can ask for; did you mean 'advantages'"),
        ("short", r"advantages of \[2\] for 3 responses"),
        ("metric", "a metric that is no number"),
        ("keep", "keep returned 1 flags for 3 groups"),
    ],
)
def test_what_a_method_returns_is_looked_at(tmp_path: Path, kind: str, message: str) -> None:
    with Run(tmp_path, host=HOST, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        with pytest.raises(PluginError, match=message):
            run.improve(v0, PROMPTS, optimizer=Odd(kind=kind), reward=once, max_new_tokens=3)


@dataclass(frozen=True)
class Engine(Sampler):
    """An engine that gives too little or too much."""

    tokens: int = 1
    logprobs: int = 1

    def generate(self, policy: Any, prompts: Any, keys: Any, end_ids: Any) -> Any:
        for number, mine in enumerate(keys):
            yield number, [Sampled([65] * self.tokens, [-1.0] * self.logprobs) for _ in mine]


def test_an_engine_must_give_a_log_prob_for_each_token_and_keep_to_the_limit(tmp_path: Path) -> None:
    with Run(tmp_path, host=HOST, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        for engine, message in ((Engine(logprobs=0), "0 log-probs"), (Engine(tokens=9, logprobs=9), "9 tokens of 4")):
            with pytest.raises(DataError, match=message):
                run.sample(v0, PROMPTS, sampler=engine, max_new_tokens=4)


class Referenced(Mean):
    """The mean distance to the reference, on the tensors of a step."""

    spec = MetricSpec("log π − log π_ref, nats per token")

    def update(self, logprobs: Any, ref_logprobs: Any, response_mask: Any) -> None:
        super().update(((logprobs - ref_logprobs) * response_mask).sum() / response_mask.sum(), 1.0)


def test_a_metric_of_steps_is_given_what_it_names_or_refused_at_once(tmp_path: Path) -> None:
    with Run(tmp_path, host=HOST, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        given = {"optimizer": Imitates(), "reward": once, "max_new_tokens": 3, "metrics": {"distance": Referenced}}
        made = run.improve(v0, PROMPTS, **given, reference=v0)
        rows = [json.loads(line) for line in (made.policy.path / "metrics.jsonl").read_text().splitlines()]
        assert abs(rows[0]["distance"]) < 1e-5
        with pytest.raises(ConfigError, match="ref_logprobs, which this stage does not have"):
            run.improve(v0, PROMPTS, **given, name="without")
        with pytest.raises(ConfigError, match="chosen_rewards"):
            run.improve(v0, PROMPTS, **(given | {"metrics": ["calibration_error"]}), name="scores")
