"""What must answer at once imports nothing heavy, and listing imports no plugin."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit import PluginError, cli
from alignkit.registry.host import PluginHost, default_host
from alignkit.run import recipes

PLUGINS = PluginHost().plugins()
VERBS = ("plugins", "new-plugin", "run", "runs", "compare", "report", "push", "sample", "chat", "data", "formats")
HEAVY = ("torch", "lightning", "transformers", "datasets", "peft", "matplotlib", "numpy", "jsonargparse", "pytest")

LATER = {
    "torch",
    "lightning",
    "transformers",
    "datasets",
    "peft",
    "torchmetrics",
    "scipy",
    "pandas",
    "pyarrow",
    "matplotlib",
}
"""What takes long and is needed by no help, no listing and no plan's beginning."""

PROBE = """
import io, json, sys, contextlib
with contextlib.redirect_stdout(io.StringIO()):
    try:
        {code}
    except SystemExit as exit:
        assert not exit.code, exit.code
print(json.dumps(sorted(sys.modules)))
"""


def modules_after(code: str, folder: Path | None = None) -> set[str]:
    env = {**os.environ, "PYTHONPATH": str(folder)} if folder else dict(os.environ)
    probe = [sys.executable, "-c", PROBE.format(code=code)]
    result = subprocess.run(probe, capture_output=True, text=True, check=False, env=env)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


@pytest.mark.parametrize(
    "code",
    [
        "import alignkit; alignkit.hookimpl, alignkit.use, alignkit.PluginError",
        "import alignkit.plugin; from alignkit.plugin import Register, hookimpl, parse, use",
        "import alignkit.builtin, alignkit.vocabulary, alignkit.registry.checks, alignkit.meter",
        "import alignkit.registry.host; alignkit.registry.host.default_host().plugins()",
        "from alignkit.cli import main; main(['--help'])",
        "from alignkit.cli import main; assert main(['run', '--help']) == 0",
        "from alignkit.cli import main; assert main(['plugins']) == 0",
        "from alignkit.cli import main; assert main(['plugins', '--json']) == 0",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert not modules_after(code) & set(HEAVY)


def test_runs_and_stages_are_declared_without_torch() -> None:
    """Runs are listed, and a plan is written down, before a model is there."""
    assert not modules_after("import alignkit.stages, alignkit.run") & {"torch", "transformers", "lightning", "peft"}


COMMANDS = [
    "import alignkit.groups, alignkit.selection, alignkit.suites, alignkit.rewards, alignkit.annotators, alignkit.data",
    "from alignkit.run import Run; Run('r', plan=True, quiet=True)",
    "from alignkit.cli import main; assert main(['runs']) == 0",
    "from alignkit.cli import main; assert main(['runs', '--json']) == 0",
    *(f"from alignkit.cli import main; main(['{verb}', '--help'])" for verb in VERBS if verb != "run"),
]


@pytest.mark.parametrize("code", COMMANDS)
def test_help_and_listings_of_every_command_wait_for_nothing(code: str, tmp_path: Path) -> None:
    assert not modules_after(f"import os; os.chdir({str(tmp_path)!r}); {code}") & LATER


def test_the_help_of_every_verb_is_tried() -> None:
    (choices,) = (a.choices for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert set(choices) == set(VERBS)


def test_the_help_of_a_recipe_imports_its_plugin_and_no_other() -> None:
    loaded = modules_after("from alignkit.cli import main; main(['run', 'llama2', '--help'])")
    assert "alignkit_recipes.llama2" in loaded
    assert not loaded & {*LATER, "alignkit_ppo", "alignkit_dpo", "alignkit_grpo", "alignkit_rlaif"}


def test_to_be_shown_a_recipe_needs_its_own_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    host = PluginHost()
    monkeypatch.setattr(recipes, "default_host", lambda: host)
    shown = recipes.load_recipe("llama2", to_show=True)
    assert {info.distribution for info in host.plugins() if info.loaded} == {"alignkit-recipes"}
    assert recipes.load_recipe("llama2") == shown
    assert {info.distribution for info in host.plugins() if info.loaded} > {"alignkit", "alignkit-recipes"}


@pytest.mark.parametrize("recipe", sorted({name for info in PLUGINS for name in info.recipes} - {"llama2"}))
def test_the_help_of_every_recipe_waits_for_nothing(recipe: str) -> None:
    assert not modules_after(f"from alignkit.cli import main; main(['run', '{recipe}', '--help'])") & LATER


def test_the_help_of_a_file_imports_no_plugin(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text("from alignkit import Groups, Run\n\ndef main(run: Run, k: int = 3): ...\n")
    loaded = modules_after(f"from alignkit.cli import main; main(['run', {str(tmp_path / 'talk.py')!r}, '--help'])")
    assert not loaded & {*LATER, "alignkit_recipes"}


def test_recipes_are_named_in_the_metadata_of_who_registers_them() -> None:
    registered = {(r.distribution, r.name) for r in default_host().components("recipe") if r.distribution != "alignkit"}
    assert {(info.distribution, name) for info in PLUGINS for name in info.recipes} == registered


def test_a_recipe_that_several_plugins_name_is_not_shown_as_one_of_them(tmp_path: Path) -> None:
    """And one that is named and not registered is not there."""
    for name, registered in (("one", "greet"), ("two", "greet"), ("three", "other")):
        (tmp_path / f"{name}_plugin.py").write_text(
            "from alignkit import hookimpl\ndef main(run): ...\n@hookimpl\ndef register_recipes(register):\n"
            f"    register({registered!r}, main)\n"
        )
        info = tmp_path / f"{name}_plugin-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.0\n")
        named = "lost" if name == "three" else "greet"
        (info / "entry_points.txt").write_text(
            f"[alignkit]\n{name} = {name}_plugin\n[alignkit.recipes]\n{named} = {name}_plugin:main\n"
        )
    sys.path.insert(0, str(tmp_path))
    try:
        host = PluginHost(path=[str(tmp_path)])
        assert host.named_recipe("greet") is host.named_recipe("lost") is None
        with pytest.raises(PluginError, match="ambiguous"):
            host.resolve("recipe", "greet")
        assert host.named_recipe("greet") is None  # nor when all are loaded
        alone = PluginHost(path=[str(tmp_path)], block=["two-plugin"])
        found = alone.named_recipe("greet")
        assert found is not None
        assert (found.distribution, alone.resolve("recipe", "greet")) == ("one-plugin", found)
    finally:
        sys.path.remove(str(tmp_path))


def test_a_run_says_what_it_begins_before_it_imports_anything(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text("def main(run, k: int = 3): ...\n")
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "alignkit.cli",
        "run",
        "talk.py",
        "--run-dir",
        "out/first",
        "--k",
        "4",
    ]
    ended = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, cwd=tmp_path
    )
    before, found, _ = ended.stdout.partition("talk.py in out/first")
    assert found
    assert not {line.rpartition("|")[2].strip() for line in before.splitlines()} & LATER


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_listing_imports_no_plugin(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "watched_plugin.py").write_text("raise SystemExit(7)")
    info = tmp_path / "watched_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: watched-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[alignkit]\nwatched = watched_plugin\n")
    code = f"from alignkit.cli import main; assert main(['plugins', *{flags}]) == 0"
    assert "watched_plugin" not in modules_after(code, tmp_path)
    seen = subprocess.run(
        [sys.executable, "-m", "alignkit.cli", "plugins", *flags],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "watched-plugin" in seen.stdout
