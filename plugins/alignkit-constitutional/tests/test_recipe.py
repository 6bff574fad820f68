"""The recipe `constitutional`, whole, on the tiny model: what it makes, from what, and what it measures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from alignkit_constitutional import read_constitution, recipe
from alignkit_constitutional.recipe import answers_harmless, refuses_harmful
from alignkit_rlaif import Judge

from alignkit import ConfigError, Groups, PluginError, Run
from alignkit.testing import default_host

REFUSAL = "I can't help with that."
SMALL: dict[str, Any] = {"prompts": 6, "heldout": 3, "max_new_tokens": 4}


def run(folder: Path, **arguments: Any) -> dict[str, Mapping[str, Any]]:
    """The stages of a run by name."""
    with Run(folder, quiet=True) as made:
        recipe.main(made, policy="tiny", **{**SMALL, **arguments})
    records = [json.loads(file.read_text()) for file in folder.glob("stages/*/stage.json")]
    return {record["name"]: record | {"folder": folder / "stages"} for record in records}


def groups(folder: Path, name: str, part: str = "groups") -> Groups:
    (found,) = (f.parent for f in folder.glob("stages/*/stage.json") if json.loads(f.read_text())["name"] == name)
    return Groups.load(found / part)


def test_both_stages_run_and_three_versions_are_measured(tmp_path: Path) -> None:
    stages = run(tmp_path, optimizer="ppo(rounds=1, prompts_per_round=12)")
    labels = [stages[f"{v}/heldout"]["result"]["label"] for v in ("v0", "sl_cai", "rl_cai")]
    assert labels == ["V0", "SL-CAI", "RL-CAI"]
    assert set(stages["v0/heldout"]["config"]["scores"]) == {"gold", "safety", "helpfulness"}
    revised, answers = groups(tmp_path, "revisions"), groups(tmp_path, "helpful_answers")
    assert all("safety" in row["tags"] for row in revised)
    assert not any("safety" in row["tags"] for row in answers)
    learned = groups(tmp_path, "demonstrations")
    assert {row["responses"][0] for row in learned} >= {row["responses"][0] for row in revised}
    assert {row["prompt_id"] for row in learned} > {row["prompt_id"] for row in revised}  # ordinary answers too
    assert stages["rl_cai"]["inputs"]["policy"] == {"stage": stages["sl_cai"]["key"]}
    assert stages["rl_cai"]["inputs"]["reference"] == {"stage": stages["sl_cai"]["key"]}
    sampled = groups(tmp_path, "rl_cai")
    assert sum("safety" in row["tags"] for row in sampled) == 6  # of twelve: prompts of both kinds
    assert stages["preference_model"]["config"]["loss"]["component"] == "alignkit-rlaif/soft_ranking"
    assert len(stages["preference_model"]["inputs"]["comparisons"]) == 2
    held = [json.loads(line) for line in next(tmp_path.glob("stages/*v0*heldout*/evaluation.jsonl")).open()]
    assert not {row["prompt_id"] for row in held} & {row["prompt_id"] for row in learned}
    assert [("safety" in row["tags"]) for row in held] == [True] * 3 + [False] * 3
    assert (tmp_path / "report.html").is_file()


def test_on_files_with_a_judge_by_principle_and_an_offline_optimizer(tmp_path: Path) -> None:
    red, ordinary, pairs, words = (tmp_path / f"{name}.jsonl" for name in ("red", "ordinary", "pairs", "words"))
    red.write_text("".join(json.dumps({"prompt": f"harm {i}", "harmful": i % 2 == 0}) + "\n" for i in range(12)))
    ordinary.write_text("".join(json.dumps({"prompt": f"say {i}", "harmful": False}) + "\n" for i in range(12)))
    pairs.write_text("".join(f'{{"prompt": "q{i}", "chosen": "yes {i}", "rejected": "no"}}\n' for i in range(4)))
    one = {"critique_revision": [{"id": "a", "critique": "Is it bad?", "revision": "Mend it."}]}
    words.write_text(json.dumps({**one, "preference": [{"id": "p", "text": "The kind one."}]}))
    stages = run(
        tmp_path / "run",
        red_team=str(red),
        helpful=str(ordinary),
        comparisons=str(pairs),
        constitution=str(words),
        judge="judge(model='tiny', min_mass=0.0)",
        optimizer="dpo(epochs=1)",
    )
    assert stages["labels"]["config"]["annotator"]["judge"]["constitution"] == ["The kind one."]
    labels = groups(tmp_path / "run", "labels", "groups-harmlessness")
    votes = [labels.meta(i)["judge"][0]["votes"][0] for i in range(len(labels))]
    assert {vote["principle"] for vote in votes} == {0}
    assert all(0.5 <= row["preference_prob"] <= 1 for row in labels)
    learned = groups(tmp_path / "run", "all_labels")
    assert len(learned) == len(labels) + 4
    told = groups(tmp_path / "run", "revisions").meta(0)["critique_revise"]
    assert told["rounds"][0]["principle"] == "a"
    assert set(stages["v0/heldout"]["inputs"]["scores"]) == {"preference_model", "refuses_harmful", "answers_harmless"}
    held = [json.loads(line) for line in next((tmp_path / "run").glob("stages/*v0*heldout*/evaluation.jsonl")).open()]
    assert [row["scores"]["refuses_harmful"] is None for row in held] == [False, True, False] + [True] * 3


def test_the_judge_is_by_default_the_policy_as_it_came_with_all_principles(tmp_path: Path) -> None:
    with Run(tmp_path, quiet=True) as made:
        v0 = made.policy("tiny", lora=None)
        judge = recipe._judge(made, None, "small", False, v0, read_constitution(), 2, True)
        other = recipe._judge(made, "judge(model='tiny', cot=False)", "small", False, v0, read_constitution(), 2, True)
    assert isinstance(judge, Judge)
    assert (judge.model, judge.constitution) == (v0, read_constitution().texts)
    assert (judge.n_principles, judge.cot, judge.limits) == (2, True, (0.4, 0.6))
    assert (other.cot, other.n_principles, other.constitution) == (False, 2, read_constitution().texts)


@pytest.mark.parametrize(
    ("meta", "response", "refuses", "answers"),
    [
        ({"harmful": True}, REFUSAL, 1.0, None),
        ({"harmful": True}, "Take a stone.", 0.0, None),
        ({"harmful": False}, REFUSAL, None, 0.0),
        ({"harmful": False}, "Take a stone.", None, 1.0),
        ({"harmful": None}, REFUSAL, None, None),
        ({"unsafe": True}, REFUSAL, 1.0, None),
        ({}, REFUSAL, None, None),
    ],
)
def test_refusals_count_where_it_is_known_whether_a_prompt_is_harmful(
    meta: dict[str, Any], response: str, refuses: float | None, answers: float | None
) -> None:
    assert refuses_harmful(meta, response) == refuses
    assert answers_harmless(meta, response) == answers


def test_what_cannot_work_is_refused_before_any_sampling(tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text('{"prompt": "harm"}\n')
    enough = tmp_path / "enough.jsonl"
    enough.write_text("".join(f'{{"prompt": "harm {i}"}}\n' for i in range(20)))
    for name, arguments, error in (
        ("a", {"optimizer": "no_such_thing"}, PluginError),
        ("b", {"constitution": "nowhere.json"}, ConfigError),
        ("c", {"prompts": 500}, ConfigError),
        ("d", {"red_team": str(few), "judge": "judge"}, ConfigError),
        ("e", {"shots": 50}, ConfigError),
        ("f", {"red_team": str(enough)}, ConfigError),
    ):
        with pytest.raises(error):
            run(tmp_path / name, **arguments)
        assert not list((tmp_path / name).glob("stages/*revisions*"))


def test_recipe_and_transform_are_registered_and_a_plan_spends_nothing(tmp_path: Path) -> None:
    host = default_host()
    assert host.resolve("transform", "critique_revise(rounds=2)").qualified == "alignkit-constitutional/critique_revise"
    assert host.build("transform", "critique_revise(rounds=2)").rounds == 2
    assert host.resolve("recipe", "constitutional").object is recipe.main
    with Run(tmp_path, quiet=True, plan=True) as made:
        recipe.main(made, policy="tiny", **SMALL)
    assert [stage.name for stage in made.planned][-1] == "rl_cai/heldout"
    assert not (tmp_path / "stages").exists()
