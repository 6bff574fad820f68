"""Words and numbers are checked where they are declared: of stages, optimizers, samplers, terms, adapters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from alignkit import Groups, LoRA, PolicyOptimizer, Run, Sampler, Term
from alignkit.errors import ConfigError
from alignkit.fields import check_values
from alignkit.identity import digest, plain
from alignkit.optimizers import Stream
from alignkit.registry.host import PluginHost
from alignkit.trainer import precision_named

Sweet = Literal["honey", "sugar"]


@dataclass
class Tea:
    minutes: float = 3
    cups: int = 1
    milk: bool = False
    sweet: Sweet | None = None
    pot: Literal["clay", "iron"] = "clay"
    steps: tuple[float, ...] = (1.0,)
    names: tuple[str, ...] = ()
    other: str | float = "x"
    made: dict[str, float] = field(default_factory=dict)


def test_a_value_that_its_annotation_allows_stays_and_whole_numbers_become_floats() -> None:
    tea = Tea(minutes=2, sweet="honey", steps=[1, 2], names=("a",), other=math.inf, made={"a": math.inf})
    check_values(tea)
    assert (tea.minutes, type(tea.minutes), tea.steps, type(tea.steps[0])) == (2.0, float, (1.0, 2.0), float)
    assert (tea.names, tea.other) == (("a",), math.inf)


@pytest.mark.parametrize(
    "wrong",
    [
        {"minutes": math.inf},
        {"minutes": math.nan},
        {"minutes": "3"},
        {"minutes": True},
        {"cups": 1.5},
        {"milk": 1},
        {"sweet": "suger"},
        {"pot": "glass"},
        {"steps": (1.0, math.inf)},
        {"steps": (1.0, "2")},
    ],
)
def test_a_value_that_its_annotation_does_not_allow_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        check_values(Tea(**wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PolicyOptimizer(learning_rate=math.inf),
        lambda: PolicyOptimizer(weight_decay=math.inf),
        lambda: PolicyOptimizer(value_learning_rate=-1.0),
        lambda: PolicyOptimizer(betas=(0.9, math.nan)),
        lambda: PolicyOptimizer(epochs=1.5),  # type: ignore[arg-type]
        lambda: PolicyOptimizer(temperature=math.inf),
        lambda: Sampler(temperature=math.inf),
        lambda: Sampler(batch_size=2.5),  # type: ignore[arg-type]
        lambda: Term(weight=math.nan),
        lambda: Term(reduction="tokens"),  # type: ignore[arg-type]
        lambda: Stream(weight=math.inf),
        lambda: Stream(batch_size=0),
        lambda: LoRA(r=2.5),  # type: ignore[arg-type]
        lambda: LoRA(alpha=-1.0),
        lambda: LoRA(alpha=math.nan),
    ],
)
def test_what_is_declared_wrongly_is_refused_where_it_is_declared(wrong: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError):
        wrong()


@pytest.mark.parametrize("max_tokens", [0, -1, 2.5, True])
def test_a_run_has_room_for_a_token(max_tokens: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_tokens"):
        Run(tmp_path / "r", max_tokens=max_tokens, host=PluginHost(allow=()))


@pytest.mark.parametrize("name", ["16-mixed", "16", 16])
def test_each_name_of_16_mixed_is_refused(name: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="scales the loss"):
        Run(tmp_path / "r", precision=name, host=PluginHost(allow=()))
    assert not (tmp_path / "r").exists()


def test_a_precision_has_one_name_and_another_word_is_refused() -> None:
    assert [precision_named(name) for name in ("bf16", "bf16-mixed", 32, "64", "16-true")] == [
        "bf16-mixed", "bf16-mixed", "32-true", "64-true", "16-true",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="use 32-true"):
        precision_named("bf17")


def test_infinity_is_part_of_a_key_as_any_number_is() -> None:
    """The settings of a loss may hold it, such as a limit that is none."""
    assert digest(plain({"limit": math.inf})) != digest(plain({"limit": -math.inf}))
    assert plain([math.inf, 1.5]) == [{"float": "inf"}, 1.5]


def test_an_infinite_setting_of_a_loss_trains(tmp_path: Path) -> None:
    def limited(logprobs: Any, *, limit: float = math.inf) -> Any:
        return (-logprobs).clamp(max=limit)

    with Run(tmp_path / "r", quiet=True, host=PluginHost(allow=())) as run:
        rows = Groups.from_rows([{"prompt": "a", "responses": ["b"]}])
        assert run.sft(run.policy("tiny", lora=LoRA(r=2)), rows, loss=limited).result["steps"] == 1
