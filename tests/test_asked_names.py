"""What a method asks for by name is known before anything is spent: at registration, or before the first sample."""

from __future__ import annotations

import types
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from alignkit import Batch, ConfigError, Groups, PluginError, PolicyOptimizer, Run, Sampler, hookimpl
from alignkit.engine.checks import Facts, asked_by, refuse_contradictions
from alignkit.engine.prepare import Offers
from alignkit.registry.host import PluginHost
from alignkit.vocabulary import MEASURED, PREPARE, VOCABULARY, roots, select

ALL = Facts(rewarded=True, annotated=False, referenced=True, own_weights=True, truncates=False)


@dataclass(frozen=True)
class Good(PolicyOptimizer):
    def prepare(self, groups: Groups, state: Any, *, rewards: Any, ref_logprobs: Any) -> Batch:
        return Batch(groups)

    def keep(self, groups: Groups, reward_name: str) -> None:
        return None


@dataclass(frozen=True)
class Misspelled(Good):
    def prepare(self, groups: Groups, state: Any, *, rewards: Any, ref_logprob: Any) -> Batch:  # type: ignore[override]
        return Batch(groups)


@dataclass(frozen=True)
class Hidden(Good):
    def prepare(self, groups: Groups, state: Any, **everything: Any) -> Batch:
        return Batch(groups)


@dataclass(frozen=True)
class Kept(Good):
    def keep(self, groups: Groups, reward: str) -> None:  # type: ignore[override]
        return None


def registered(target: type) -> PluginHost:
    host, plugin = PluginHost(allow=()), types.ModuleType("brings")

    def register_optimizers(register: Any) -> None:
        register("made", target)

    plugin.register_optimizers = hookimpl(register_optimizers)  # type: ignore[attr-defined]
    host.register(plugin, "brings")
    return host


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Misspelled, "prepare asks for 'ref_logprob', which the engine does not give; did you mean 'ref_logprobs'"),
        (Hidden, r"prepare has \*\*everything: .*, which hides what it needs"),
        (Kept, "keep asks for 'reward', which the engine does not give; did you mean 'reward_name'"),
    ],
)
def test_a_wrong_name_is_refused_at_registration_with_what_there_is(target, said):
    assert registered(Good).build("optimizer", "made").prepare_arguments() == ("rewards", "ref_logprobs")
    with pytest.raises(PluginError, match=said) as error:
        registered(target)
    assert "name parameters from" in str(error.value)


def test_a_method_that_was_never_registered_is_refused_before_a_model_is_sampled_from(tmp_path):
    def never(response):
        raise AssertionError("a response was scored")

    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        with pytest.raises(PluginError, match="ref_logprob"):
            run.improve(v0, Groups.from_prompts(["a"]), optimizer=Misspelled(), reward=never)
    with pytest.raises(ConfigError, match="ref_logprob"):  # the engine's own check, for whoever comes without a run
        refuse_contradictions(Misspelled(), frozenset(), ALL)
    with pytest.raises(ConfigError, match="keep asks for 'reward'"):
        refuse_contradictions(Kept(), frozenset(), ALL)


def test_a_method_that_needs_a_reference_is_told_before_the_first_sample():
    refuse_contradictions(Good(), frozenset(), ALL)
    with pytest.raises(ConfigError, match="needs a reference"):
        refuse_contradictions(Good(), frozenset(), Facts(True, False, False, True, False))
    with pytest.raises(ConfigError, match="needs a reference"):
        refuse_contradictions(Imitates(), frozenset({"ref_chosen_logprobs"}), Facts(True, False, False, True, False))


@dataclass(frozen=True)
class Imitates(PolicyOptimizer):
    def prepare(self, groups: Groups, state: Any) -> Batch:
        return Batch(groups)


def test_an_optional_reference_tensor_is_not_asked_for_without_a_reference():
    def loss(chosen_logprobs, ref_chosen_logprobs=None, ref_logprobs=None):
        return chosen_logprobs

    bound = PluginHost(allow=()).build("loss", loss)
    assert asked_by([bound], referenced=False) == {"chosen_logprobs"}
    assert asked_by([bound], referenced=True) == {"chosen_logprobs", "ref_chosen_logprobs", "ref_logprobs"}


def test_every_offered_name_is_made_by_the_engine_and_no_other():
    made = {name for name in vars(Offers) if not name.startswith("_")} - {"give"}
    assert made == set(PREPARE) - set(MEASURED)
    assert set(MEASURED) <= set(PREPARE) & set(VOCABULARY)


def test_levels_and_sources_are_those_of_the_names():
    assert select(VOCABULARY, level="group") == {"rewards", "ranks", "group_mask"}
    assert all(("chosen" in name or "rejected" in name) == bool(spec.of) for name, spec in VOCABULARY.items()
               if spec.level == "pair" and spec.source != "round")  # fmt: skip
    assert select(VOCABULARY, source="reference") == {n for n in VOCABULARY if n.startswith("ref_")}
    assert select(VOCABULARY, source="old") == {n for n in VOCABULARY if n.startswith("old_")}
    assert roots(["old_values", "values", "ref_chosen_logprobs", "own"]) == {"values", "ref_logprobs", "own"}


@dataclass(frozen=True)
class Drawing(PolicyOptimizer):
    samples_per_prompt: int = 1
    on_policy: Any = False

    def prepare(self, groups: Groups, state: Any, *, rewards: Any, generator: Any) -> Batch:
        return Batch(groups)


GREEDY = replace(ALL, greedy=True)


@pytest.mark.parametrize(
    ("method", "losses", "said"),
    [
        (Drawing(on_policy=True), frozenset[str](), "this sampler is greedy"),
        (Drawing(), frozenset({"old_logprobs"}), "this sampler is greedy"),
        (Drawing(samples_per_prompt=4), frozenset[str](), "samples_per_prompt=4 with a greedy sampler"),
    ],
)
def test_a_greedy_sampler_is_no_source_of_draws(method: Drawing, losses: frozenset[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        refuse_contradictions(method, losses, GREEDY)
    refuse_contradictions(method, losses, ALL)
    refuse_contradictions(Drawing(), frozenset(), GREEDY)


def test_the_sampler_that_is_greedy_is_told_to_the_check(tmp_path: Path) -> None:
    method = Drawing(samples_per_prompt=2)
    options: Any = {"optimizer": method, "reward": spaces, "sampler": Sampler(greedy=True)}
    with Run(tmp_path / "r", quiet=True, plan=True) as run:
        policy = run.policy("tiny")
        with pytest.raises(ConfigError, match="greedy sampler"):
            run.improve(policy, Groups.from_prompts(["a"]), **options)


def test_the_generator_of_prepare_is_another_one_each_round() -> None:
    groups = Groups.from_prompts(["a"])
    part: Any = types.SimpleNamespace(setting=types.SimpleNamespace(seed=(0, "v1")))
    data: Any = None
    drawn = [Offers(part, groups, data, index).generator().initial_seed() for index in (0, 1, 2, 0)]
    assert len(set(drawn)) == 3
    assert drawn[0] == drawn[3]


@dataclass(frozen=True)
class Truncating(Sampler):
    def warp(self, logprobs: Any) -> Any:
        return logprobs


@pytest.mark.parametrize("options", [{"greedy": True}, {"sampler": Sampler(greedy=True)}, {"sampler": Truncating()}])
def test_no_kl_is_measured_along_answers_that_were_not_drawn_from_the_policy(tmp_path: Path, options: Any) -> None:
    prompts = Groups.from_prompts(["a"])
    with Run(tmp_path / "r", quiet=True, plan=True) as run:
        policy = run.policy("tiny")
        with pytest.raises(ConfigError, match="with a reference"):
            run.evaluate(policy, prompts, {"r": spaces}, reference=policy, **options)
        run.evaluate(policy, prompts, {"r": spaces}, **options)


def spaces(response: str) -> float:
    return float(response.count(" "))
