"""A run from a file: `--config`, `--print_config`, and the file that stands in the run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import cli
from alignkit.errors import PluginError
from alignkit.run.recipes import load_recipe, run_recipe

RECIPE = '''
import json


def main(
    run, policy: str = "tiny", scale: float = 1.0, sizes: list[int] | None = None, tags: dict[str, int] = {}
) -> None:
    """Note what it was given.

    Args:
        policy: a model.
        scale: a number.
        sizes: some numbers.
        tags: by name.
    """
    told = {"policy": policy, "scale": scale, "sizes": sizes, "tags": tags, "seed": run.seed, "logger": run.trainer}
    print("told " + json.dumps(told))
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noting.py").write_text(RECIPE)
    return tmp_path


def told(capsys: Any, *words: str) -> dict[str, Any]:
    assert cli.main(["run", "noting.py", *words]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("told ")]
    return json.loads(line.removeprefix("told "))


FILE = "scale: 2.5\nseed: 7\nsizes: [1, 2]\ntags: {a: 3}\nlogger: csv\nrun_dir: runs/there\n"


def test_a_file_holds_arguments_of_the_recipe_and_of_the_run(here, capsys):
    (here / "run.yaml").write_text(FILE)
    expected = {
        "policy": "tiny",
        "scale": 2.5,
        "sizes": [1, 2],
        "tags": {"a": 3},
        "seed": 7,
        "logger": {"logger": "csv"},
    }
    assert told(capsys, "--config", "run.yaml") == expected
    assert (here / "runs" / "there" / "run.json").is_file()
    (here / "run.json").write_text(json.dumps(yaml.safe_load(FILE)))
    assert told(capsys, "--config", "run.json") == expected


def test_flags_after_the_file_count_more_and_it_more_than_those_before(here, capsys):
    (here / "run.yaml").write_text(FILE)
    assert told(capsys, "--scale", "9", "--config", "run.yaml")["scale"] == 2.5
    assert told(capsys, "--config=run.yaml", "--scale", "9")["scale"] == 9


def test_the_run_keeps_a_file_that_makes_the_same_run(here, capsys):
    (here / "run.yaml").write_text(FILE)
    first = told(capsys, "--config", "run.yaml", "--scale", "4", "--trainer.log_every_n_steps", "5")
    kept = here / "runs" / "there" / "config.yaml"
    found = yaml.safe_load(kept.read_text())
    assert (found["scale"], found["seed"], found["policy"]) == (4, 7, "tiny")
    assert found["trainer"] == {"log_every_n_steps": 5}
    assert "config" not in found
    assert told(capsys, "--config", str(kept), "--run-dir", "runs/again") == first
    again = yaml.safe_load((here / "runs" / "again" / "config.yaml").read_text())
    assert again == {**found, "run_dir": "runs/again"}


def test_a_plan_keeps_nothing(here, capsys):
    told(capsys, "--plan", "--run-dir", "runs/planned")
    assert not (here / "runs").exists()


def test_print_config_prints_a_file_and_nothing_else_and_runs_nothing(here, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "noting.py", "--scale", "3", "--print_config"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    found = yaml.safe_load(printed)
    assert (found["scale"], found["policy"], found["run_dir"]) == (3.0, "tiny", "runs/noting")
    assert not (here / "runs").exists()
    (here / "run.yaml").write_text(printed)
    assert told(capsys, "--config", "run.yaml")["scale"] == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scael: 2", "scael"),
        ("scale: much", "scale"),
        ("sizes: {a: [", "config"),
        (None, "run.yaml"),
        ("- 1\n- 2\n", "config"),
    ],
)
def test_a_file_that_is_none_is_one_message(here, capsys, text, said):
    if text is not None:
        (here / "run.yaml").write_text(text)
    assert cli.main(["run", "noting.py", "--config", "run.yaml"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_a_registered_recipe_takes_a_file_too(here, capsys):
    (here / "run.yaml").write_text("policy: tiny\nrun_dir: runs/l2\nplan: true\n")
    assert cli.main(["run", "llama2", "--config", "run.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "runs llama2 as run.yaml says" in shown
    assert "v1" in shown


def test_a_recipe_cannot_have_an_argument_called_config(here):
    (here / "other.py").write_text("def main(run, config: str = ''):\n    pass\n")
    with pytest.raises(PluginError, match="config is an option of every run"):
        load_recipe("other.py")


def test_from_python_no_file_is_made(here):
    run_recipe("noting.py", scale=2.0, quiet=True)
    assert (here / "runs" / "noting" / "run.json").is_file()
    assert not (here / "runs" / "noting" / "config.yaml").exists()


def test_yaml_that_names_python_objects_makes_none(here, capsys):
    """S40."""
    (here / "run.yaml").write_text('policy: !!python/object/apply:os.system ["touch made"]\n')
    assert cli.main(["run", "noting.py", "--config", "run.yaml"]) == 2
    assert not (here / "made").exists()
    assert "told" not in capsys.readouterr().out


def test_yaml_that_refers_to_itself_is_refused_quickly(here, capsys):
    """S41: nine levels of nine references are 387 million texts."""
    lines = ["a: &a [" + ", ".join(["x"] * 9) + "]"]
    for name, last in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"{name}: &{name} [" + ", ".join([f"*{last}"] * 9) + "]")
    (here / "run.yaml").write_text("\n".join(lines) + "\n")
    assert cli.main(["run", "noting.py", "--config", "run.yaml"]) == 2
    assert "told" not in capsys.readouterr().out
