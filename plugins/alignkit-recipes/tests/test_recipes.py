"""The recipes on the tiny model: what they run, what they refuse before any work, and what they make of the truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alignkit_recipes import instructgpt, llama2, method
from alignkit_recipes.settings import MODELS, OPTIMIZERS, configured
from alignkit_recipes.texts import plain_texts

from alignkit import ConfigError, DataError, FunctionReward, Groups, PluginError, Reward, Run
from alignkit.plugin import Component, Scores, parse
from alignkit.testing import default_host

SMALL: dict[str, Any] = {"policy": "tiny", "max_new_tokens": 6}
SUITE = "embedded(prompts=12, heldout=6)"
known = {record.name for record in default_host().components() if record.kind == "optimizer"}


def needs(*optimizers: str) -> pytest.MarkDecorator:
    missing = sorted(set(optimizers) - known)
    return pytest.mark.skipif(bool(missing), reason=f"no plugin brings {', '.join(missing)}")


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Result of each stage by its name."""
    records = [json.loads(file.read_text()) for file in (folder / "stages").glob("*/stage.json")]
    return {record["name"]: record["result"] for record in records}


def run_recipe(folder: Path, main: Callable[..., None], **arguments: Any) -> dict[str, dict[str, Any]]:
    with Run(folder, quiet=True) as run:
        main(run, **{**SMALL, **arguments})
    return results(folder)


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["small", "tiny"])
@pytest.mark.parametrize("name", sorted(OPTIMIZERS["tiny"]))
def test_every_setting_is_one_that_the_optimizer_has(kind: str, name: str, tmp_path: Path) -> None:
    if name not in known:
        pytest.skip(f"no plugin brings {name}")
    run = Run(tmp_path, quiet=True)
    given = configured(run, parse(name), kind, 0.5)
    assert set(given.params) == {"temperature", *OPTIMIZERS[kind][name]}
    assert run.host.build("optimizer", given).temperature == 0.5
    run.close()


def test_what_the_user_writes_goes_before_the_settings(tmp_path: Path) -> None:
    run = Run(tmp_path, quiet=True)
    given = configured(run, parse("ppo(kl_coef=0.5, temperature=0.3)"), "tiny", 1.0)
    assert (given.params["kl_coef"], given.params["temperature"]) == (0.5, 0.3)
    assert given.params["rounds"] == OPTIMIZERS["tiny"]["ppo"]["rounds"]
    run.close()


# -- method ------------------------------------------------------------------------------------------------------------


def test_a_method_that_samples_gets_the_truth_as_its_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(tmp_path) as run:
        method.main(run, optimizer="ppo(rounds=2, prompts_per_round=6)", suite=SUITE, **SMALL)
    found = results(tmp_path)
    assert {found[f"v{i}/heldout"]["label"] for i in (0, 1)} == {"V0", "V1"}
    assert "gold" in found["v1/heldout"]["paired_to_first"]
    assert found["v1/heldout"]["metrics"]["gold"]["n"] == 6
    shown = capsys.readouterr().out
    assert "round  reward_mean  kl_per_sequence" in shown
    assert shown.rstrip().splitlines()[-2].split()[0] == "2"


@needs("dpo")
def test_a_method_that_does_not_sample_gets_samples_ranked_by_the_truth(tmp_path: Path) -> None:
    found = run_recipe(tmp_path, method.main, optimizer="dpo", suite=SUITE, samples=3)
    assert 0 < found["comparisons"]["rows"] <= 12
    assert found["comparisons"]["responses"] == 3 * found["comparisons"]["rows"]
    assert found["v1"]["steps"] > 0


def test_samples_are_ranked_and_labelled_and_ties_make_no_comparison() -> None:
    groups = Groups.from_rows(
        [{"prompt": "a", "responses": ["xx", "x", "xxx", "xx"]}, {"prompt": "b", "responses": ["y", "z", "w", "v"]}]
    )
    ranked = method.RankBy(FunctionReward(length))(groups, None)
    assert [row["ranks"] for row in ranked] == [[2, 4, 1, 2]]
    assert [row["labels"] for row in ranked] == [[None, False, True, None]]
    with pytest.raises(ConfigError, match="ranked alike"):
        method.RankBy(FunctionReward(length))(groups.select([1]), None)


def length(response: str) -> float:
    return float(len(response))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"annotator": "verifiable"}, "helpfulness, safety"),
        ({"optimizer": "nothing_of_the_kind"}, "nothing_of_the_kind"),
        ({"suite": "nothing_of_the_kind"}, "nothing_of_the_kind"),
        ({"optimizer": "ppo(kl=1)"}, "kl_coef"),
    ],
)
def test_method_refuses_before_any_work(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, PluginError), match=message):
        run_recipe(tmp_path, method.main, **arguments)
    assert results(tmp_path) == {}


def test_a_curve_of_many_steps_is_averaged_to_a_few_rows(tmp_path: Path) -> None:
    rows = [{"round": 0, "step": i, "loss": float(i), "reward_mean": 0.5, "lr": 1e-3} for i in range(1, 25)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = method.curve(SimpleNamespace(path=tmp_path)).splitlines()  # type: ignore[arg-type]
    assert [line.split() for line in lines[:3]] == [["step", "loss"], ["2", "1.5"], ["4", "3.5"]]
    assert len(lines) == 1 + method.ROWS + 1
    assert lines[-1] == "throughout: reward_mean 0.5"


# -- llama2 ------------------------------------------------------------------------------------------------------------


@needs("dpo", "grpo")
def test_llama2_takes_methods_that_learn_from_its_comparisons_and_others(tmp_path: Path) -> None:
    found = run_recipe(
        tmp_path, llama2.main, algorithms="dpo,grpo(rounds=1)", prompts_per_version=8, heldout=4, gatt=None
    )
    assert [found[f"v{i}/heldout"]["label"] for i in range(3)] == ["V0", "V1", "V2"]
    assert found["v1/comparisons"]["rows"] > 0
    assert found["v1"]["budget"]["generated_tokens"] == 0 < found["v2"]["budget"]["generated_tokens"]


def test_comparisons_of_two_dimensions_become_one_for_each_prompt() -> None:
    def rows(dimension: str, prompts: str) -> Groups:
        return Groups.from_rows(
            {
                "prompt": p,
                "responses": ["a", "b"],
                "ranks": [1, 2],
                "dimension": dimension,
                "tags": ["safety"] if p == "u" else [],
            }
            for p in prompts
        )

    both = llama2.OneOrder(rows("safety", "pus"))(rows("helpfulness", "pqu"), None)
    assert [(row["prompt"][0]["content"], row["dimension"]) for row in both] == [
        ("p", "helpfulness"),
        ("q", "helpfulness"),
        ("u", "safety"),
        ("s", "safety"),
    ]


@needs("hir")
@pytest.mark.parametrize(
    ("kind", "last", "expected"),
    [
        ("small", False, {"by_prompt": True, "batch_size": 24, "epochs": 2, "learning_rate": 2e-3}),
        ("small", True, {"by_prompt": True, "batch_size": 24, "epochs": 1, "learning_rate": 1e-3}),
        ("tiny", False, {"by_prompt": False, "batch_size": 16, "epochs": 6, "learning_rate": 2e-3}),
        ("tiny", True, {"by_prompt": False, "batch_size": 16, "epochs": 1, "learning_rate": 1e-3}),
    ],
)
def test_a_reward_model_goes_on_for_one_epoch_at_half_the_rate(kind: str, last: bool, expected: dict[str, Any]) -> None:
    asked = dict[str, Any]()
    recorded: Any = SimpleNamespace(train_reward=lambda init, new, **given: asked.update(given, init=init, new=new))
    models: Any = ("v0", "last" if last else None)
    new = Groups.from_rows([{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}])
    for rewards, goes_on in (("continue", last), ("fresh", False)):
        llama2._reward_model(recorded, *models, new, [new], "safety", 2, kind, rewards, 0.5)
        if rewards == "continue":
            assert {name: asked[name] for name in expected} == expected
        assert (asked["init"], asked["replay_fraction"]) == (("last", 0.5) if goes_on else ("v0", 1.0))
        assert (asked["new"], asked["replay"]) == (new, [new])


@pytest.mark.parametrize(("asked", "expected"), [(None, 1.0), (0.3, 0.3)])
def test_versions_are_evaluated_at_a_temperature_of_their_own(
    asked: float | None, expected: float, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {"prompts_per_version": 8, "heldout": 4, "temperature": 0.7}
    run_recipe(tmp_path, llama2.main, algorithms="dpo", evaluation_temperature=asked, **sizes)
    (answered,) = (tmp_path / "stages").glob("*-v1-answers-*/groups")
    assert Groups.load(answered)[0]["sampled_by"][-1]["temperature"] == 0.7
    (evaluated,) = (tmp_path / "stages").glob("*-v1-heldout-*/stage.json")
    assert json.loads(evaluated.read_text())["config"]["sampler"]["temperature"] == expected


def test_a_small_instruct_model_is_evaluated_as_its_card_uses_it() -> None:
    assert (MODELS["small"].used_at, MODELS["small"].temperature) == (0.2, 0.8)


def test_llama2_says_why_hindsight_has_nothing_to_say_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a program can check"):
        run_recipe(tmp_path, llama2.main, algorithms="hir", prompts_per_version=4, heldout=4)
    assert set(results(tmp_path)) <= {"policy"}


def test_llama2_ends_with_ghost_attention_where_it_is_asked_for(tmp_path: Path) -> None:
    if "gatt" not in {record.name for record in default_host().components() if record.kind == "transform"}:
        pytest.skip("no plugin brings gatt")
    found = run_recipe(
        tmp_path,
        llama2.main,
        algorithms="rejection_sampling(samples_per_prompt=2, epochs=1, require_finished=False)",
        prompts_per_version=8,
        heldout=4,
        gatt="gatt",
    )
    assert found["v2/heldout"]["label"] == "V1+GAtt"
    assert found["gatt/dialogues"]["rows"] == llama2.GATT_DIALOGUES * llama2.GATT_TURNS


# -- instructgpt -------------------------------------------------------------------------------------------------------


def test_instructgpt_goes_through_its_three_steps_with_the_mix(tmp_path: Path) -> None:
    found = run_recipe(
        tmp_path,
        instructgpt.main,
        suite="embedded(heldout=4)",
        prompts=30,
        ppo="ppo(rounds=1)",
        ptx_coef=0.5,
    )
    assert found["demonstrations"]["rows"] == found["demonstrations"]["responses"] == 10
    assert found["reward"]["pairs"] > 10
    assert [found[f"{v}/heldout"]["label"] for v in ("v0", "sft", "ppo")] == ["V0", "SFT", "PPO"]
    assert found["sft/heldout"]["metrics"]["kl"]["mean"] == 0
    files = (tmp_path / "stages").glob("*-ppo-*/metrics.jsonl")
    steps = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert all(step["ptx"] > 0 for step in steps)
    assert steps


def drawn(prompts: Groups, n: int, **_: Any) -> Groups:
    """Stands in for a policy: responses of 1 to n letters."""
    return prompts.map_rows(lambda row: {"responses": ["x" * (k + 1) for k in range(n)]})


def share(response: str) -> float:
    return min(len(response) / 9, 1.0)


def test_rankings_have_4_to_9_responses_in_the_order_of_the_truth_but_for_the_error() -> None:
    prompts = Groups.from_prompts(f"p{i}" for i in range(60))
    ctx = SimpleNamespace(sample=drawn, seed=3, meter=None)
    exact = instructgpt.Rankings(FunctionReward(share), (4, 9), 0.0, {})(prompts, ctx)
    sizes = [len(row["responses"]) for row in exact]
    assert set(sizes) == set(range(4, 10))
    for row in exact:
        assert row["ranks"] == sorted(row["ranks"], reverse=True)  # longer is better
    nine = next(row["ranks"] for row in exact if len(row["ranks"]) == 9)
    assert len(set(nine)) == instructgpt.LEVELS - 1  # truths from 1/9 to 1 are rated 2 to 7, so some tie
    noisy = instructgpt.Rankings(FunctionReward(share), (4, 9), 0.3, {})(prompts, ctx)
    again = instructgpt.Rankings(FunctionReward(share), (4, 9), 0.3, {})(prompts, ctx)
    assert noisy.digest() == again.digest() != exact.digest()
    wrong = sum(a < b for row in noisy for a, b in zip(row["ranks"], row["ranks"][1:], strict=False))
    assert wrong > 10


def test_the_best_answer_is_the_demonstration() -> None:
    groups = Groups.from_rows([{"prompt": "a", "responses": ["x", "xxx", "xxx", "xx"]}])
    best = instructgpt.Best(FunctionReward(length))(groups, SimpleNamespace(meter=None))
    assert [row["responses"] for row in best] == [["xxx"]]


class Lengths(Reward):
    name = "lengths"

    def score(self, groups: Groups) -> Scores:
        values = [[float(len(r)) if r else None for r in row["responses"]] for row in groups]
        return Scores(values, [[None] * len(row) for row in values])

    def key(self) -> Any:
        return "lengths"


def test_the_reward_is_zero_where_the_demonstrations_are() -> None:
    shown = Groups.from_rows([{"prompt": "a", "responses": ["xx"]}, {"prompt": "b", "responses": ["xxxx"]}])
    reward = instructgpt.AboveDemonstrations(Lengths(), shown)
    assert reward.score(shown).values == [[-1.0], [1.0]]
    assert reward.score(Groups.from_rows([{"prompt": "c", "responses": ["", "x"]}])).values == [[None, -2.0]]
    assert reward.key() != instructgpt.AboveDemonstrations(Lengths(), shown.select([0])).key()


def test_plain_texts_are_rows_without_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("one\ntwo\n\n\n  three  \n")
    rows = plain_texts(str(file))
    assert [(row["prompt"], row["responses"]) for row in rows] == [([], ["one two"]), ([], ["three"])]
    assert len({row["prompt_id"] for row in plain_texts(None)}) == len(plain_texts(None)) > 10
    file.write_text("\n \n")
    with pytest.raises(DataError, match="no text"):
        plain_texts(str(file))


def test_ppo_of_instructgpt_has_the_papers_settings_and_the_users_before_them(tmp_path: Path) -> None:
    run = Run(tmp_path, quiet=True)
    component: Component = instructgpt._ppo(run, "ppo(kl_coef=0.1)", "tiny", 1.0, 27.8, 4)
    assert component.params["kl_coef"] == 0.1
    assert (component.params["ptx_coef"], component.params["ptx_batch_size"]) == (27.8, 4)
    assert component.params["whiten_scores"] is False
    run.close()
