"""The command line: arguments arrive typed, errors are one message, and what others wrote cannot harm a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from alignkit import cli
from alignkit.errors import DataError
from alignkit.run import recipes
from alignkit.run.console import Console

RECIPE = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING
from alignkit import hookimpl, use
from alignkit.errors import ConfigError, DataError, PluginError
from alignkit.run import recipes
import beside

if TYPE_CHECKING:
    from alignkit import Run

@dataclass(frozen=True)
class Preferences:
    """Human comparisons.

    Args:
        helpfulness: a file of comparisons by helpfulness.
        safety: another, by safety.
    """

    helpfulness: str | None = None
    safety: str | None = None

def main(run: Run, policy: str = "tiny", k: int = 8, top_rate: float = 0.1, fast: bool = False,
         algorithms: str = "first", preferences: Preferences = Preferences()) -> None:
    """Align a toy.

    Args:
        policy: a folder or a hub name.
        k: samples per prompt.
    """
    run.seen.update(policy=policy, k=k, top_rate=top_rate, fast=fast, algorithms=algorithms, preferences=preferences)
    if policy == "interrupt":
        raise KeyboardInterrupt
    if policy == "bad":
        raise DataError("the row is empty", where="file.jsonl:3", remedy="remove it")

def own_loss(logprobs, *, beta=0.1):
    return -logprobs

@hookimpl
def register_losses(register):
    register("own_loss", own_loss)
'''


class FakeRun:
    """Stands for alignkit.run.Run, to see what the command line hands it."""

    made: list[FakeRun] = []  # noqa: RUF012
    console, world = Console(live=False), 1

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.options, self.seen, self.ended = folder, options, {}, ""  # type: ignore[var-annotated]
        FakeRun.made.append(self)

    def keep_config(self, text: str) -> None:
        self.config = text

    def plan_table(self) -> str:
        return "the plan"

    def __enter__(self) -> FakeRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        self.ended = kind.__name__ if kind else "well"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from alignkit.registry import host

    monkeypatch.setattr(recipes, "Run", FakeRun)
    monkeypatch.setattr(FakeRun, "made", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    fresh = host.PluginHost(path=[str(tmp_path / "none")])
    monkeypatch.setattr(host, "default_host", lambda: fresh)
    monkeypatch.setattr(recipes, "default_host", lambda: fresh)
    monkeypatch.delenv("ALIGNKIT_TRACE", raising=False)
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "toy.py").write_text(RECIPE)
    yield str(tmp_path / "toy.py")
    for name in ("beside", "alignkit_recipe_toy"):
        sys.modules.pop(name, None)


def run_made() -> FakeRun:
    (run,) = FakeRun.made
    return run


@pytest.mark.parametrize("rate", [["--top_rate=2"], ["--top-rate=2"], ["--top-rate", "2"]])
def test_arguments_arrive_typed(recipe: str, rate: list[str]) -> None:
    flags = ["--k", "3", *rate, "--fast", "true", "--policy", "123", "--preferences.helpfulness", "FILE"]
    code = cli.main(["run", recipe, *flags, "--algorithms", "first,second(beta=0.05, tags=['a'])"])
    run = run_made()
    assert code == 0
    assert run.ended == "well"
    preferences = run.seen.pop("preferences")
    assert (preferences.helpfulness, preferences.safety) == ("FILE", None)
    assert run.seen == {
        "policy": "123", "k": 3, "top_rate": 2.0, "fast": True, "algorithms": "first,second(beta=0.05, tags=['a'])",
    }  # fmt: skip


def test_options_of_a_run_have_defaults(recipe: str) -> None:
    assert cli.main(["run", recipe]) == 0
    run = run_made()
    assert run.folder == Path("runs/toy")
    assert run.options == {"seed": 0, "plan": False, "precision": "auto", "trainer": None, "quiet": False}
    assert run.seen["k"] == 8


def test_options_of_a_run_are_passed(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.deterministic", "true"]
    flags = [
        "--run-dir",
        str(tmp_path / "r"),
        "--seed",
        "7",
        "--plan",
        "--precision",
        "bf16-mixed",
        "--quiet",
        *trainer,
    ]
    assert cli.main(["run", recipe, *flags]) == 0
    run = run_made()
    assert run.folder == tmp_path / "r"
    assert run.options == {
        "seed": 7, "plan": True, "precision": "bf16-mixed", "quiet": True,
        "trainer": {"accelerator": "cpu", "devices": 2, "deterministic": True},
    }  # fmt: skip
    assert capsys.readouterr().out == "the plan\n"  # a plan is asked for; nothing else is said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "runs {} in runs/toy;"),
        (["--run-dir", "else\x1b[2Jwhere", "--plan"], "plans {} in elsewhere;"),
        (["--run-dir=there", "--k", "4"], "runs {} in there;"),
    ],
)
def test_a_run_says_first_what_it_begins_and_where(
    recipe: str, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert cli.main(["run", recipe, *flags]) == 0
    assert said.format(recipe) in capsys.readouterr().out.splitlines()[0]


def test_only_the_first_process_says_it(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["run", recipe]) == 0
    assert "loading" not in capsys.readouterr().out


def test_help_shows_the_arguments_of_main(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", recipe, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for part in ("Align a toy", "samples per prompt", "default: 8", "--preferences.helpfulness", "by helpfulness",
                 "--run-dir", "--trainer.KEY"):  # fmt: skip
        assert part in text
    assert not FakeRun.made


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--kk", "3"], ["unrecognized arguments: --kk 3"]),
        (["--polcy", "x"], ["did you mean --policy?"]),
        (["--rundir", "x"], ["did you mean --run-dir?"]),
        (["--k", "many"], ["k", "many"]),
    ],
)
def test_a_wrong_argument_is_one_message(
    recipe: str, capsys: pytest.CaptureFixture[str], flags: list[str], parts: list[str]
) -> None:
    assert cli.main(["run", recipe, *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "alignkit run toy --help" in error
    for part in parts:
        assert part in error
    assert not FakeRun.made


def test_a_file_may_carry_plugins_of_its_own(recipe: str) -> None:
    from alignkit.registry import host

    assert cli.main(["run", recipe]) == 0
    assert host.default_host().build("loss", "own_loss(beta=1)").hyperparameters == {"beta": 1}


def test_a_registered_recipe_runs_by_name(recipe: str) -> None:
    from alignkit import hookimpl
    from alignkit.registry import host

    def named(run: Any, k: int = 1) -> None:
        run.seen["k"] = k

    def register_recipes(register: Any) -> None:
        register("my_recipe", named)

    host.default_host().register(SimpleNamespace(register_recipes=hookimpl(register_recipes)), "mine")
    assert cli.main(["run", "my_recipe", "--k", "4"]) == 0
    run = run_made()
    assert (run.folder, run.seen) == (Path("runs/my_recipe"), {"k": 4})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["no_such"], "there is no recipe called 'no_such'"),
        (["no_such.py"], "there is no file no_such.py"),
        (["--plan", "toy"], "the recipe comes before --plan"),
    ],
)
def test_a_recipe_that_is_not_there(
    recipe: str, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert cli.main(["run", *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_a_recipe_cannot_take_the_options_of_a_run(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "greedy.py"
    path.write_text("def main(run, seed: int = 3): ...")
    assert cli.main(["run", str(path)]) == 2
    assert "seed is an option of every run" in capsys.readouterr().err
    path.write_text("def start(run): ...")
    assert cli.main(["run", str(path)]) == 2
    assert "it defines no main(run, …)" in capsys.readouterr().err
    path.write_text("def main(policy): ...")
    assert cli.main(["run", str(path)]) == 2
    assert "first parameter of a recipe is `run`" in capsys.readouterr().err


def test_an_error_is_one_message_and_code_2(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["run", recipe, "--policy", "bad"]) == 2
    assert capsys.readouterr().err == "alignkit: file.jsonl:3: the row is empty. Remedy: remove it.\n".replace(
        "it.", "it"
    )
    assert run_made().ended == "DataError"
    monkeypatch.setenv("ALIGNKIT_TRACE", "1")
    with pytest.raises(DataError):
        cli.main(["run", recipe, "--policy", "bad"])


def test_an_interrupt_says_how_to_go_on(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", recipe, "--policy", "interrupt"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted; run the same command again to continue"
    assert run_made().ended == "KeyboardInterrupt"


# plugins


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("ALIGNKIT_BLOCK_PLUGINS", "ALIGNKIT_LOAD_PLUGINS", "ALIGNKIT_STRICT_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "listed_plugin.py").write_text(
        "from alignkit import hookimpl\nprint('noise')\n"
        "def listed_loss(logprobs, *, beta=0.25): return logprobs\n"
        "@hookimpl\ndef register_losses(register): register('listed_loss', listed_loss)\n"
    )
    (tmp_path / "faulty_plugin.py").write_text(f"raise ValueError({'word ' * 60 + '[red]the end'!r})")
    for name in ("listed", "faulty"):
        info = tmp_path / f"{name}_plugin-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[alignkit]\n{name} = {name}_plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "listed_plugin", raising=False)
    return tmp_path


def test_plugins_as_json(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "--json"]) == 0
    plugins = {plugin["distribution"]: plugin for plugin in json.loads(capsys.readouterr().out)}
    assert plugins["listed-plugin"]["state"] == "enabled"
    assert (plugins["listed-plugin"]["loaded"], plugins["listed-plugin"]["components"]) == (False, [])
    assert plugins["alignkit"]["state"] == "enabled"
    assert sorted(plugins["listed-plugin"]["key"]) == ["files", "listed-plugin"]
    assert plugins["listed-plugin"]["hides"] == []
    assert "listed_plugin" not in sys.modules


def test_plugins_with_components_as_json(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plugins", "--json", "--components"]) == 0
    plugins = {plugin["distribution"]: plugin for plugin in json.loads(capsys.readouterr().out)}
    (loss,) = plugins["listed-plugin"]["components"]
    assert (loss["kind"], loss["qualified"]) == ("loss", "listed-plugin/listed_loss")
    assert (loss["tensors"], loss["hyperparameters"]) == (["logprobs"], {"beta": "0.25"})
    assert loss["signature"] == "listed_loss(logprobs, *, beta=0.25)"
    assert plugins["faulty-plugin"]["state"] == "failed"
    assert plugins["faulty-plugin"]["reason"].endswith("the end")


def test_plugins_as_a_table_cut_nothing(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert cli.main(["plugins", "--components"]) == 0
    table = capsys.readouterr().out
    assert "…" not in table.replace("(…)", "")
    assert table.count("word") == 60
    assert "[red]the end" in " ".join(table.replace("│", " ").split())
    assert "listed_loss(logprobs, *, beta=0.25)" in table


def test_the_list_can_be_had_even_when_strict(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_STRICT_PLUGINS", "1")
    assert cli.main(["plugins", "--components"]) == 2
    printed = capsys.readouterr()
    assert "listed_loss" in printed.out
    assert "faulty-plugin" in printed.err


# The other verbs

PHASES = {"load": 1.2, "write": 0.1, "train": 7.0}
TWO = {"run": "two", "seed": 1, "phases": PHASES, "reward_calls": 1234, "judge_calls": 0}


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    calls: dict[str, Any] = {}

    def note(verb: str, result: Any) -> Any:
        def called(*args: Any, **keywords: Any) -> Any:
            calls[verb] = (args, keywords)
            return result

        return called

    run, report = ModuleType("alignkit.run"), ModuleType("alignkit.report")
    run.list_runs = note("list", [{"run": "one", "stages": 3}, TWO])  # type: ignore[attr-defined]
    run.compare_runs = note("compare", "they differ")  # type: ignore[attr-defined]
    run.free_run = note("free", 2_500_000)  # type: ignore[attr-defined]
    run.open_policy = note("open", "the policy")  # type: ignore[attr-defined]
    run.talk = talk = ModuleType("alignkit.run.talk")  # type: ignore[attr-defined]
    answers = [{"responses": ["\x1b[31mred\x1b[0m", "so\x07und\r"]}]
    talk.answers_of = note("answers", answers)  # type: ignore[attr-defined]
    report.write_report = note("report", tmp_path / "report.html")  # type: ignore[attr-defined]
    for module in (run, report):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    return calls


def test_runs_are_listed_compared_and_freed(rooms: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs"]) == 0
    assert rooms["list"][0] == (Path("runs"),)
    table = capsys.readouterr().out
    assert all(word in table for word in ("run", "stages", "seed", "one", "two"))
    assert all(word in table for word in ("reward_calls", "1.23 k", "train 7 s, load 1 s"))
    assert "judge_calls" not in table
    assert "write" not in table
    assert cli.main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1] == TWO
    assert cli.main(["runs", "--compare", "one", "runs/two"]) == 0
    assert rooms["compare"][0] == (Path("runs/one"), Path("runs/two"))
    assert cli.main(["runs", "--free", "two"]) == 0
    assert rooms["free"][0] == (Path("runs/two"),)
    assert "they differ\nfreed 2.5 MB" in capsys.readouterr().out
    assert cli.main(["runs", "--free", "three"]) == 2
    assert "there is no run 'three'" in capsys.readouterr().err


def test_a_report_is_written(rooms: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "one"]) == 0
    assert rooms["report"][0] == (Path("runs/one"),)
    assert capsys.readouterr().out.strip().endswith("report.html")


def test_samples_are_printed_without_control_characters(
    rooms: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--prompt", "hello", "--n", "2", "--temperature", "0.7", "--max-new-tokens", "9", "--seed", "3"]
    assert cli.main(["sample", "one", *flags]) == 0
    assert rooms["open"][0] == ("one", None)
    Path("runs/one/run.json").touch()
    assert cli.main(["sample", "one", *flags]) == 0
    assert rooms["open"][0] == ("runs/one", None)
    (policy, prompts, n, seed), sampler = rooms["answers"]
    assert (policy, [row["prompt"][0]["content"] for row in prompts], n, seed) == ("the policy", ["hello"], 2, 3)
    assert sampler == {"temperature": 0.7, "max_new_tokens": 9, "greedy": False}
    assert capsys.readouterr().out == "--- 1 of 2\nred\n--- 2 of 2\nsound\n" * 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode 👩‍🔬\n\tindented", "plain ünïcode 👩‍🔬\n\tindented"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31mc1", "31mc1"),
        ("a\x00b\rc\x08d\x7fe", "abcde"),
        ("left\u202eright\u2066", "leftright"),
        ("half\ud800", "half"),
        ("end\x1b", "end"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert cli.printable(text) == shown
    shown.encode("utf-8")


def test_the_command_is_installed() -> None:
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="alignkit")
    assert script.load() is cli.main
    assert os.access(Path(sys.executable).parent / "alignkit", os.X_OK)


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    """`alignkit plugins --json | head -1`."""
    end, start = os.pipe()
    os.close(end)
    command = [sys.executable, "-m", "alignkit.cli", "plugins", "--json"]
    done = subprocess.run(command, stdout=start, stderr=subprocess.PIPE, text=True, check=False)
    os.close(start)
    assert (done.returncode, done.stderr) == (141, "")
