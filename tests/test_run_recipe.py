"""A recipe runs from Python as from the command line: same stages, and what is wrong is said before any work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignkit import Groups, LoRA, Run, cli, hookimpl
from alignkit.errors import ConfigError, PluginError
from alignkit.registry.host import default_host
from alignkit.run import evaluate_versions, run_recipe
from alignkit.run_folder import read_run

RECIPE = '''
from alignkit import Groups, LoRA, Run

def main(run: Run, topics: list[str], rank: int = 2, tokens: int = 4) -> None:
    """Say something.

    Args:
        topics: to speak of.
    """
    v0 = run.policy("tiny", lora=LoRA(r=rank))
    run.sample(v0, Groups.from_prompts(topics), 1, max_new_tokens=tokens)
'''


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.py").write_text(RECIPE)
    return tmp_path / "talk.py"


def keys(folder: Path) -> list[str]:
    return [stage.key for stage in read_run(folder).stages]


def test_python_and_the_command_line_make_the_same_stages(recipe: Path) -> None:
    run = run_recipe(recipe, run_dir="here", seed=3, topics=["tea", "rain"], tokens=3)
    flags = ["--topics", '["tea", "rain"]', "--tokens", "3", "--seed", "3", "--run-dir", "there"]
    assert cli.main(["run", str(recipe), *flags]) == 0
    assert run.folder == Path("here")
    assert keys(Path("here")) == keys(Path("there"))
    assert len(keys(Path("here"))) == 2
    assert read_run(Path("here")).status == "complete"
    run_recipe(str(recipe), run_dir="here", seed=4, topics=["tea", "rain"], tokens=3)
    assert set(keys(Path("here"))).isdisjoint(keys(Path("there")))


def test_a_plan_is_had_and_nothing_is_made(recipe: Path) -> None:
    run = run_recipe(recipe, plan=True, topics=["tea"])
    assert run.folder == Path("runs/talk")
    assert "sample" in run.plan_table()
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"topics": ["tea"], "tokns": 3},
            r"recipe talk: got an unexpected .* 'tokns'.*did you mean tokens",
        ),
        ({}, r"recipe talk: missing a required argument: 'topics'"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_before_any_work(
    recipe: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_recipe(recipe, **arguments)
    assert not Path("runs").exists()


def test_a_registered_recipe_is_run_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = []

    def spoken(run: Run, recipe: str = "mine") -> None:
        seen.append((run.folder, run.seed, recipe))

    default_host.cache_clear()
    plugin = SimpleNamespace(register_recipes=hookimpl(lambda register: register("spoken", spoken)))
    default_host().register(plugin, "mine")
    run_recipe("spoken", seed=5, recipe="theirs")
    assert seen == [(Path("runs/spoken"), 5, "theirs")]
    with pytest.raises(PluginError, match="spokn"):
        run_recipe("spokn")
    default_host.cache_clear()


def test_versions_are_evaluated_under_their_labels_and_paired_with_the_first(tmp_path: Path) -> None:
    heldout = Groups.from_prompts(["one", "two", "three"])
    with Run(tmp_path / "run", quiet=True) as run:
        v0 = run.policy("tiny", lora=LoRA(r=2))
        other = run.policy("tiny", lora=LoRA(r=3), name="other")
        versions, scores = {"V0": v0, "The Other": other}, {"size": lambda response: float(len(response))}
        first = evaluate_versions(run, versions, heldout, scores, max_new_tokens=4)
        named = evaluate_versions(run, versions, heldout, scores, names=["a", "b"], max_new_tokens=4, reference=v0)
        with pytest.raises(ValueError, match="shorter"):
            evaluate_versions(run, versions, heldout, scores, names=["c"])
    assert len(read_run(run.folder).stages) == 6
    assert [(e.name, e.result["label"]) for e in first] == [("v0/heldout", "V0"), ("the other/heldout", "The Other")]
    assert [e.name for e in named] == ["a/heldout", "b/heldout"]
    assert "paired_to_first" in first[1].result
    assert "paired_to_first" not in first[0].result
    assert "kl" in named[0].metrics
    assert "kl" not in first[0].metrics


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import nothing_of_that_name", r"raised ModuleNotFoundError: .*nothing_of_that_name.* at theirs\.py:3"),
        ("def main(run:", r"raised SyntaxError: .* at theirs\.py:3"),
        ("import beside_theirs", r"raised ZeroDivisionError: .* at theirs\.py:3"),
        ("raise SystemExit(0)", r"called sys\.exit\(0\) at theirs\.py:3"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named_with_its_line(tmp_path, line, said):
    (tmp_path / "beside_theirs.py").write_text("1 / 0\n")
    recipe = tmp_path / "theirs.py"
    recipe.write_text(f"\n\n{line}\n")
    with pytest.raises(PluginError, match=said) as found:
        run_recipe(recipe, run_dir=tmp_path / "r")
    assert str(recipe) in found.value.where
    assert not (tmp_path / "r").exists()
