"""Every argument of every verb and every field of every registered component is looked at where it is declared: what is
of another kind than its annotation says is one `AlignkitError`, before a model is loaded."""

from __future__ import annotations

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import pytest

from alignkit import LoRA, Run, compare, stages
from alignkit.errors import AlignkitError, ConfigError
from alignkit.fields import check_values
from alignkit.metrics.answers import Distinct, SelfBLEU
from alignkit.metrics.comparisons import CalibrationError
from alignkit.registry.host import default_host
from alignkit.rewards import FunctionReward, Piecewise, WeightedSum
from alignkit.testing import DEMOS, PAIRS, PROMPTS

THING = object()
NUMBERS = (math.nan, math.inf, "3", [1], None, THING)
WRONG: dict[str, tuple[Any, ...]] = {
    "int": (*NUMBERS, 2.5, True),
    "float": (*NUMBERS, True),
    "bool": (1, "True", None, [True], THING),
    "str": (1, math.nan, None, ["a"], THING),
    "str | None": (1, math.nan, True, ["a"], THING),
    "str | Path": (1, math.nan, True, None, ["a"], THING),
    "int | None": (math.nan, 2.5, True, "3", [1], THING),
    "float | None": (math.nan, math.inf, True, "3", [1], THING),
    "tuple[float, float]": (0.9, None, "ab", (0.9,), (0.9, math.nan), (0.9, 0.9, 0.9), THING),
    "tuple[float, ...]": (0.9, "ab", (0.5, "x"), (0.5, math.nan), THING),
    "tuple[str, str]": (1.0, None, ("a",), (1, "x"), THING),
}
"""What is wrong for an annotation."""


def declared(kind: str) -> list[Any]:
    """(component, its parameter, wrong value) of all that can be made without arguments."""
    found = []
    for record in default_host().components(kind):
        parameters = inspect.signature(record.object).parameters.values() if inspect.isclass(record.object) else ()
        if any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters):
            continue
        for p in parameters:
            found += [(record, p.name, wrong) for wrong in WRONG.get(str(p.annotation), ())]
    return found


def refused(call: Any, **arguments: Any) -> None:
    """Assert that a call ends in one of our errors."""
    try:
        call(**arguments)
    except AlignkitError:
        return
    except Exception as error:
        pytest.fail(f"{call}({arguments!r}) raises {error!r}")
    pytest.fail(f"{call}({arguments!r}) passes")


@pytest.mark.parametrize("kind", ["optimizer", "sampler", "reward", "annotator", "transform", "metric"])
def test_every_field_of_every_component_is_looked_at(kind: str) -> None:
    tried = declared(kind)
    assert tried
    for record, name, wrong in tried:
        refused(record.object, **{name: wrong})


@dataclasses.dataclass(frozen=True)
class Pair:
    of: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_values(self)


@pytest.mark.parametrize("wrong", [(1.0,), (1.0, 2.0, 3.0), (), (1.0, "x")])
def test_a_tuple_has_its_length(wrong: Any) -> None:
    assert Pair((2.0, 3.0)).of == (2.0, 3.0)
    refused(Pair, of=wrong)


def test_every_argument_of_every_verb_is_looked_at(tmp_path: Path) -> None:
    run = Run(tmp_path / "r", plan=True, quiet=True)
    v0 = run.policy("tiny")
    given: dict[str, dict[str, Any]] = {
        "policy": {"spec": "tiny"},
        "sft": {"policy": v0, "demonstrations": DEMOS},
        "sample": {"policy": v0, "prompts": PROMPTS},
        "annotate": {"groups": PAIRS, "annotator": "verifiable"},
        "train_reward": {"init": v0, "comparisons": PAIRS, "loss": "pairwise_ranking"},
        "reward_model": {"spec": "tiny"},
        "improve": {"policy": v0, "data": PAIRS, "optimizer": "dpo", "reference": v0},
        "evaluate": {"policy": v0, "prompts": PROMPTS, "scores": {"one": lambda response: 1.0}},
        "groups": {"groups": PAIRS},
        "export": {"policy": v0},
    }
    kinds = {kind.verb: kind for kind in vars(stages).values() if inspect.isclass(kind) and getattr(kind, "verb", "")}
    tried = 0
    for verb, arguments in given.items():
        for each in dataclasses.fields(kinds[verb]):
            for wrong in WRONG.get(str(each.type), ()):
                refused(getattr(run, verb), **{"name": f"{verb}-{tried}", **arguments, each.name: wrong})
                tried += 1
    assert tried > 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"folder": 3},
        {"seed": 2.5},
        {"seed": "3"},
        {"seed": math.nan},
        {"seed": True},
        {"plan": 1},
        {"quiet": None},
        {"trainer": [1]},
        {"trainer": "cpu"},
        {"host": 5},
    ],
)
def test_a_run_looks_at_its_own_arguments(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Run(**{"folder": tmp_path / "r", "quiet": True, **wrong})
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"methods": "dpo"},
        {"seeds": 2.5},
        {"seeds": "3"},
        {"seeds": True},
        {"seeds": [0.5]},
        {"threads": 0},
        {"processes": 1.5},
        {"tune": True},
        {"quiet": 1},
        {"lora": 2.5},
        {"temperature": math.inf},
        {"samples": "4"},
        {"run_dir": 5},
        {"tune_on": "gsm8k"},
        {"budget": [1]},
    ],
)
def test_a_comparison_looks_at_its_own_arguments(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        compare(**{"suite": "embedded", "methods": ["dpo"], "policy": "tiny", "run_dir": tmp_path / "c", **wrong})
    assert not (tmp_path / "c").exists()


def test_what_leaves_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path / "r", plan=True, quiet=True)
    v0 = run.policy("tiny")
    with pytest.raises(ConfigError, match="comparisons names none"):
        run.train_reward(v0, (), loss="pairwise_ranking")
    for share in (1.0, 1.5, -0.1):
        with pytest.raises(ConfigError, match="heldout_fraction"):
            run.sft(v0, DEMOS, heldout_fraction=share)
        with pytest.raises(ConfigError, match="heldout_fraction"):
            run.train_reward(v0, PAIRS, loss="pairwise_ranking", heldout_fraction=share)
    with pytest.raises(ConfigError, match="spec names no model"):
        run.reward_model("")
    with pytest.raises(ConfigError, match="iteration"):
        run.improve(v0, PAIRS, optimizer="dpo", reference=v0, iteration=-1)


@pytest.mark.parametrize("wrong", [8, "r=8", {"r": 8}, LoRA])
def test_the_adapter_of_a_reward_model_is_looked_at(tmp_path: Path, wrong: Any) -> None:
    run = Run(tmp_path / "r", plan=True, quiet=True)
    v0 = run.policy("tiny")
    first = run.train_reward(v0, PAIRS, loss="pairwise_ranking", name="first", lora=LoRA(r=2))
    with pytest.raises(ConfigError, match="pass a LoRA, or None"):
        run.train_reward(v0, PAIRS, loss="pairwise_ranking", lora=wrong)
    with pytest.raises(ConfigError, match="it goes on with its own"):
        run.train_reward(first, PAIRS, loss="pairwise_ranking", lora=LoRA(r=2))


def test_rewards_and_metrics_that_are_made_by_hand_are_looked_at() -> None:
    one = FunctionReward(lambda response: 1.0, name="one")
    for wrong in (
        lambda: WeightedSum((one,), (math.nan,)),
        lambda: WeightedSum((one,), 1.0),  # type: ignore[arg-type]
        lambda: Piecewise(one, one, threshold="0.5"),  # type: ignore[arg-type]
        lambda: Distinct(2.5),  # type: ignore[arg-type]
        lambda: SelfBLEU(smooth=1),  # type: ignore[arg-type]
        lambda: CalibrationError(0),
    ):
        with pytest.raises(ConfigError):
            wrong()


@pytest.mark.parametrize("component", ["gatt", "critique_revise", "instruction_consistency"])
def test_a_transform_cannot_sample_without_a_temperature(component: str) -> None:
    with pytest.raises(AlignkitError, match=r"temperature=0\.0 must be positive"):
        default_host().build("transform", f"{component}(temperature=0)")
