"""The conformance kit finds every planted fault with the check that is meant for it, and none in what is shipped."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from alignkit import cli
from alignkit.errors import ConfigError
from alignkit.groups import Groups
from alignkit.registry.grammar import use
from alignkit.registry.hookspecs import KINDS, hookimpl
from alignkit.registry.host import PluginHost, default_host
from alignkit.registry.metadata import PluginInfo
from alignkit.testing.conformance import CHECKS, Given, Subject, checks_of, conformance, examine, find
from alignkit.testing.conformance.imports import HEAVY, SECONDS, imported

HERE = Path(__file__).parent / "planted"


def planted(name: str) -> ModuleType:
    """A module of `tests/planted`, imported under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"planted_{name}", HERE / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def host_with(kind: str, name: str, target: Any) -> PluginHost:
    """A host of the core and one component."""

    def register_one(self: Any, register: Callable[[str, Any], None]) -> None:
        register(name, target)

    hook = KINDS[kind]
    register_one.__name__ = hook
    plugin = type("Planted", (), {hook: hookimpl(register_one)})
    host = PluginHost(allow=())
    host.register(plugin(), "planted")
    return host


FAULTS = [
    *[("loss", name, check, loss) for name, (check, loss) in planted("losses").LOSSES.items()],
    *planted("others").PLANTED,
]


@pytest.mark.parametrize(("kind", "name", "check", "target"), FAULTS, ids=["-".join(each[:3]) for each in FAULTS])
def test_each_planted_fault_is_found_by_its_check(kind: str, name: str, check: str, target: Any) -> None:
    [subject] = find(f"{kind}:{name}", host_with(kind, name, target))
    [one] = [one for one in checks_of(kind) if one.name == check]
    found = examine(subject, one)
    assert found.verdict == "fail", found
    assert found.text
    assert not found.text.startswith("raised"), found.text


def shortened(response: str, *, words: int = 12) -> float:
    """1 for an answer of at most `words` words.

    Args:
        words: above 0.
    """
    if words < 1:
        raise ConfigError(f"words={words}", where="shortened")
    return float(len(response.split()) <= words)


def cut(groups: Groups, ctx: Any, *, most: int = 3) -> Groups:
    """The first groups.

    Args:
        groups: any.
        ctx: not used.
        most: above 0.
    """
    if most < 1:
        raise ConfigError(f"most={most}", where="cut")
    return groups.select(range(min(most, len(groups))))


@pytest.mark.parametrize(("kind", "function"), [("reward", shortened), ("transform", cut)])
def test_a_function_that_refuses_a_setting_when_it_is_called_refuses_it(kind: str, function: Any) -> None:
    [subject] = find(f"{kind}:{function.__name__}", host_with(kind, function.__name__, function))
    [one] = [one for one in checks_of(kind) if one.name == "refuses-negative"]
    assert examine(subject, one).verdict == "pass"


# -- what is shipped ---------------------------------------------------------------------------------------------------


SHIPPED = sorted(path.name for path in (Path(__file__).parent.parent / "plugins").iterdir() if path.is_dir())

GIVEN = Given(
    settings={
        "reward:direct": {"model": "tiny"},
        "annotator:gold": {"reward": use("alignkit-tasks/gsm8k"), "noise": 0.0},
    },
    groups={
        "annotator:gold": Groups.from_rows(
            {
                "prompt": f"How much is {n} and {n}?",
                "responses": ["It is 7.", f"{2 * n}"],
                "meta": {"answer": f"{2 * n}"},
            }
            for n in range(3)
        )
    },
)
"""What components need that are shipped here."""


LONG = "exact-gap"
"""The one check that takes seconds. Whole runs of the shipped methods on that suite are what its own tests do."""


@pytest.mark.parametrize("name", ["alignkit", *SHIPPED])
def test_nothing_shipped_is_complained_of(name: str) -> None:
    subjects = [each for each in find(name, default_host(), GIVEN) if each.kind != "plugin"]
    found = [examine(each, one) for each in subjects for one in checks_of(each.kind) if one.name != LONG]
    assert [one for one in found if one.verdict == "fail"] == []
    assert sum(one.verdict == "pass" for one in found) >= 2 * len(subjects)


@pytest.mark.full
@pytest.mark.parametrize("name", SHIPPED)
def test_a_short_run_of_what_is_shipped_comes_nearer_to_its_optimum(name: str) -> None:
    [gap] = [one for one in CHECKS if one.name == LONG]
    found = [examine(each, gap) for each in find(name, default_host(), GIVEN) if each.kind in gap.kinds]
    assert [one for one in found if one.verdict == "fail"] == []


def test_importing_what_is_shipped_costs_little_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process of its own, after which a module that meddles is found out in it."""
    text = "import os, torch\nos.environ['A'] = '1'\ntorch.set_default_dtype(torch.float64)\n"
    (tmp_path / "meddler.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    modules = [info.module for info in PluginHost().plugins() if info.distribution in SHIPPED]
    assert len(modules) == len(SHIPPED)
    seen = imported([*modules, "meddler"])
    for module in modules:
        one = seen[module]
        assert not set(one["new"]) & set(HEAVY), module
        assert (one["changed"], one["cuda"]) == ([], False), module
        assert one["seconds"] < SECONDS, module
    assert seen["meddler"]["changed"] == ["default dtype", "environment"]


def of_distribution(check: str, seen: dict[str, Any], requires: str = "<0.2,>=0.1") -> str:
    """The verdict of a check of a whole distribution that was seen to be so."""
    info = PluginInfo("alignkit-dpo", "0.1.0", "dpo", "alignkit_dpo", requires=requires)
    subject = Subject("plugin", "alignkit-dpo", PluginHost(allow=()), info=info)
    plain = {"seconds": 0.1, "new": ["alignkit_dpo"], "changed": [], "cuda": False}
    subject.kept["probe"] = ({"alignkit_dpo": {**plain, **seen}}, None)
    [one] = [one for one in checks_of("plugin") if one.name == check]
    return examine(subject, one).verdict


def test_a_whole_distribution_is_checked_for_what_its_import_costs_and_what_it_asks_for() -> None:
    assert of_distribution("import-is-cheap", {}) == "pass"
    assert of_distribution("import-is-cheap", {"new": ["trl"]}) == "fail"
    assert of_distribution("import-is-cheap", {"seconds": 4.0}) == "fail"
    assert of_distribution("import-changes-nothing", {}) == "pass"
    assert of_distribution("import-changes-nothing", {"changed": ["environment"]}) == "fail"
    assert of_distribution("import-changes-nothing", {"cuda": True}) == "fail"
    assert of_distribution("says-what-it-needs", {}) == "pass"
    assert of_distribution("says-what-it-needs", {}, requires="") == "fail"
    assert of_distribution("says-what-it-needs", {}, requires=">=0.1") == "fail"


def test_what_is_broken_on_purpose_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = planted("losses").LOSSES["straight_through"][1]
    monkeypatch.setattr(loss, "declined", {"gradcheck": "it is one"}, raising=False)
    [subject] = find("loss:through", host_with("loss", "through", loss))
    found = {one.name: examine(subject, one) for one in checks_of("loss")}
    assert (found["gradcheck"].verdict, found["gradcheck"].text) == (
        "does not apply",
        "declined by its author: it is one",
    )
    assert found["unreduced"].verdict == "pass"


# -- on an exact suite -------------------------------------------------------------------------------------------------


def of_optimizer(check: str, target: Any, **settings: Any) -> Any:
    """What a check says of an optimizer."""
    given = Given(settings={"optimizer:tried": settings})
    [subject] = find("optimizer:tried", host_with("optimizer", "tried", target), given)
    [one] = [one for one in checks_of("optimizer") if one.name == check]
    return examine(subject, one)


@pytest.mark.parametrize("name", ["Base", "Comparing"])
def test_a_sound_method_that_the_suite_does_not_know_passes(name: str) -> None:
    """One that samples and has no KL, and one that learns from hard labels and has no reference."""
    target = getattr(planted("others"), name)
    for check in ("exact-gradient", "exact-gap"):
        assert of_optimizer(check, target).verdict == "pass", check


@pytest.mark.parametrize("reduction", ["token", "sequence", "group", "constant"])
def test_the_plain_gradient_knows_all_that_a_method_may_declare(reduction: str) -> None:
    """Every reduction under a mask of the method's own, extra losses of three levels, pairs between prompts, groups of
    unequal size, without a pair and without a token."""
    found = of_optimizer("exact-gradient", planted("others").DeclaresAll, reduction=reduction, prompts_per_round=4)
    assert found.verdict == "pass", found


def test_a_reduction_of_the_engine_that_is_not_the_declared_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A divisor of the step that is one too large."""
    from alignkit.engine.training_data import TrainingData

    count = TrainingData.count
    monkeypatch.setattr(TrainingData, "count", lambda self, *args: count(self, *args) + 1)
    assert "the engine's gradient differs" in of_optimizer("exact-gradient", planted("others").Base).text


def test_two_gradients_of_nothing_say_nothing() -> None:
    """Whoever learns nothing is for `finite-gradient` and `exact-gap` to find."""
    found = of_optimizer("exact-gradient", planted("others").StaysWhereItIs)
    assert (found.verdict, found.text[:20]) == ("does not apply", "both gradients are 0")


def test_log_probs_that_prepare_is_given_are_those_of_single_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    from alignkit.engine.known import Known

    worked_out = Known.work_out
    monkeypatch.setattr(
        Known, "work_out", lambda self, *args: {n: 1.001 * v for n, v in worked_out(self, *args).items()}
    )
    found = of_optimizer("exact-gradient", planted("others").AsksForLogprobs)
    assert re.search(r"prepare was given values .* \(in ref_logprobs\)", found.text), found


def test_without_an_exact_suite_the_check_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["alignkit.testing.conformance.exact"], "default_host", lambda: PluginHost(allow=()))
    found = of_optimizer("exact-gap", planted("others").Base)
    assert found.verdict == "does not apply"
    assert found.text == "alignkit-enumerable is not installed (pip install alignkit-enumerable)"


def test_settings_are_the_suites_for_a_method_that_it_knows_and_the_authors_before_them() -> None:
    module = sys.modules["alignkit.testing.conformance.exact"]
    [known] = find("optimizer:alignkit-grpo/rloo", default_host())
    suite = module.exact_suite(known)
    made = module.suited(known, suite, module.SHORT)
    assert (made.rounds, made.samples_per_prompt, made.kl_coef, made.learning_rate) == (20, 64, 0.5, 5e-3)
    [told] = find("optimizer:alignkit-grpo/rloo", default_host(), Given(settings={"optimizer:rloo": {"kl_coef": 0.1}}))
    assert module.suited(told, suite, module.SHORT).kl_coef == 0.1
    step = module.suited(told, suite, module.FEW, module.STEP)
    assert (step.rounds, step.samples_per_prompt, step.batch_size) == (1, 16, 0)
    host = host_with("optimizer", "own", planted("others").Base)
    [stranger] = find("optimizer:own", host)
    made = module.suited(stranger, suite, module.SHORT)
    assert (made.rounds, made.samples_per_prompt, made.learning_rate, made.schedule) == (20, 64, 1e-3, "linear")


# -- how it is told ----------------------------------------------------------------------------------------------------


def test_every_kind_has_checks_and_each_tells_the_pain_it_spares() -> None:
    kinds = {kind for one in CHECKS for kind in one.kinds}
    assert kinds == {*KINDS, "plugin", "any"}
    names = [one.name for kind in KINDS for one in checks_of(kind)]
    assert len({one.name for one in CHECKS}) == len(CHECKS) > 60
    assert {one.name for one in CHECKS if "plugin" not in one.kinds} == set(names)
    assert all(len(one.doc) > 40 for one in CHECKS)


def test_every_check_has_a_planted_fault_that_it_finds() -> None:
    """But those of whole distributions, which the test below is about, and those that only say how a run went."""
    untested = {
        "runs-a-round", "done-already", "numbers-are-declared", "builds-from-its-defaults", "says-what-it-needs",
        "import-is-cheap", "import-changes-nothing",
    }  # fmt: skip
    assert {check for _, _, check, _ in FAULTS} | untested >= {one.name for one in CHECKS}


def test_one_component_is_checked_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "--check", "loss:alignkit/nll"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"conformance of alignkit [\d.]+: 1 components, \d+ passed, 0 failed, \d+ do not apply", shown)
    assert "imitated text becomes likelier" in shown
    assert cli.main(["plugins", "--check", "loss:alignkit/nll", "--json"]) == 0
    [first, *_] = json.loads(capsys.readouterr().out)
    assert set(first) == {"subject", "check", "verdict", "text", "reproduce"}
    assert cli.main(["plugins", "--check", "no-such-plugin"]) == 2
    assert "no plugin is called 'no-such-plugin'" in capsys.readouterr().err


def test_a_failure_says_what_where_and_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = planted("losses").LOSSES["prefers_the_rejected"][1]
    host = host_with("loss", "bad", bad)
    for module in (
        "alignkit.testing.conformance",
        "alignkit.registry.host",
    ):  # the face has a function of the first name
        monkeypatch.setattr(sys.modules[module], "default_host", lambda: host)
    assert cli.main(["plugins", "--check", "loss:bad", "--json"]) == 1
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["direction"]["verdict"] == "fail"
    assert found["direction"]["text"].endswith("(in chosen_logprobs)")
    assert found["direction"]["reproduce"] == "alignkit plugins --check loss:bad"
    assert cli.main(["plugins", "--check", "loss:bad"]) == 1
    assert "2 failed: loss:bad documented, loss:bad direction" in capsys.readouterr().out


def test_a_plugins_tests_have_a_case_for_each_component_and_check() -> None:
    bad = planted("losses").LOSSES["prefers_the_rejected"][1]
    test = conformance("loss:bad", host=host_with("loss", "bad", bad))
    [mark] = test.pytestmark  # type: ignore[attr-defined]
    cases = {each.id: each.values for each in mark.args[1]}
    assert list(cases) == [f"loss:bad-{one.name}" for one in checks_of("loss")]
    test(*cases["loss:bad-unreduced"])
    with pytest.raises(AssertionError, match=r"loss:bad: direction: a comparison won by 40"):
        test(*cases["loss:bad-direction"])
    with pytest.raises(pytest.skip.Exception, match="padding"):
        test(*cases["loss:bad-hidden-positions"])
