"""`alignkit new-plugin`: a distribution of any kind installs, is listed, and its tests and its page hold, at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from alignkit import cli
from alignkit.errors import AlignkitError, ConfigError, PluginError
from alignkit.new_plugin import TEMPLATES, Names, core_range, new_plugin
from alignkit.registry.hookspecs import KINDS

ROOT = Path(__file__).resolve().parent.parent
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)

PAGES = """
import re, pathlib, pytest, runpy

PAGES = sorted(pathlib.Path({folder!r}).glob("*/README.md"))

@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    (tmp_path / "page.py").write_text(blocks[0])
    runpy.run_path(str(tmp_path / "page.py"))
"""


def python(folder: Path, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that finds what is installed in `site`."""
    env = {**os.environ, "PYTHONPATH": str(site), "ALIGNKIT_STRICT_PLUGINS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a distribution of each kind."""
    folder = tmp_path_factory.mktemp("written")
    for kind in KINDS:
        assert new_plugin(f"strangers-{kind}", kind, folder) == folder / f"strangers-{kind}"
    return folder


@pytest.fixture(scope="module")
def site(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed them."""
    target = tmp_path_factory.mktemp("site")
    flags = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--target", str(target)]
    folders = [str(path) for path in sorted(written.iterdir())]
    done = python(written, target, "-m", "pip", "install", "-q", *flags, *folders)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def listed(site: Path, written: Path) -> dict[str, dict[str, object]]:
    """What `alignkit plugins --components --json` says of each distribution."""
    done = python(written, site, "-m", "alignkit.cli", "plugins", "--components", "--json")
    assert done.returncode == 0, done.stderr
    return {entry["distribution"]: entry for entry in json.loads(done.stdout)}


@EVERY_KIND
@pytest.mark.timeout(900)  # of the first, which waits for ten builds
def test_it_is_listed_with_its_component(kind: str, listed: dict[str, dict[str, object]]) -> None:
    entry = listed[f"strangers-{kind}"]
    assert (entry["state"], entry["requires"]) == ("enabled", "<0.2,>=0.1")
    assert (kind, f"strangers_{kind}") in [(c["kind"], c["name"]) for c in entry["components"]]  # type: ignore[attr-defined]
    assert all(c["doc"] for c in entry["components"] if c["kind"] == kind)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def ran(site: Path, written: Path) -> dict[str, list[str]]:
    """What became of the tests of each distribution and of the code of its page: the names of those that passed."""
    (site / "test_pages.py").write_text(PAGES.format(folder=str(written)), encoding="utf-8")
    tests = [*(str(path) for path in sorted(written.glob("*/tests"))), str(site / "test_pages.py")]
    flags = ["-p", "no:cacheprovider", "--import-mode=importlib", "--tb=short", f"--junitxml={site}/said.xml"]
    done = python(written, site, "-m", "pytest", "-q", *flags, "-k", "not test_conformance", *tests)
    assert done.returncode == 0, done.stdout + done.stderr
    passed: dict[str, list[str]] = {f"strangers-{kind}": [] for kind in KINDS}
    for case in ElementTree.parse(site / "said.xml").iter("testcase"):
        page = re.fullmatch(r"test_page\[(.*)\]", case.get("name", ""))
        owner = page[1] if page else case.get("classname", "").rpartition("test_")[2].replace("_", "-")
        passed[owner].append("page" if page else case.get("name", ""))
    return passed


@EVERY_KIND
@pytest.mark.timeout(900)
def test_its_own_tests_and_its_page_hold(kind: str, ran: dict[str, list[str]]) -> None:
    """Ten seconds for all kinds: runs on the tiny model, in one process."""
    names = ran[f"strangers-{kind}"]
    assert names.count("page") == 1
    assert len(names) >= 3


@pytest.mark.full
@pytest.mark.timeout(900)
@EVERY_KIND
def test_the_conformance_kit_has_nothing_to_say_of_it(kind: str, site: Path, written: Path) -> None:
    """A few seconds to fifteen: what was written is whole from its first hour on."""
    own = [str(written / f"strangers-{kind}/tests/test_conformance.py"), "-p", "no:cacheprovider"]
    done = python(written, site, "-m", "pytest", "-q", "--import-mode=importlib", *own)
    assert done.returncode == 0, done.stdout
    assert re.search(r"[3-9] passed|\d\d passed", done.stdout), done.stdout


@EVERY_KIND
def test_it_is_complete_and_says_whose_it_is(kind: str, written: Path) -> None:
    folder = written / f"strangers-{kind}"
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    module = f"strangers_{kind}"
    assert paths >= {
        "pyproject.toml", "README.md", "LICENSE", ".gitignore", ".github/workflows/test.yml",
        f"src/{module}/__init__.py", f"src/{module}/py.typed", f"tests/test_{module}.py", "tests/test_conformance.py",
    }  # fmt: skip
    texts = {path: (folder / path).read_text(encoding="utf-8") for path in paths if not path.startswith("build/")}
    assert not [path for path, text in texts.items() if re.search("example[-_]|ExampleC|<!--", path + text)]
    project = tomllib.loads(texts["pyproject.toml"])["project"]
    assert project["dependencies"] == ["alignkit>=0.1,<0.2"]
    assert project["entry-points"]["alignkit"] == {module: module}


def test_names_of_every_form_are_derived() -> None:
    names = Names("alignkit-My.new--thing", "loss")
    assert (names.module, names.component, names.class_name) == ("alignkit_my_new_thing", "my_new_thing", "MyNewThing")
    assert core_range("1.12.3") == ">=1.12,<1.13"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "no name of a distribution"),
        ("-mine", "no name of a distribution"),
        ("mine-", "no name of a distribution"),
        ("my plugin", "no name of a distribution"),
        ("../mine", "no name of a distribution"),
        ("a/b", "no name of a distribution"),
        ("mäine", "no name of a distribution"),
        ("2fast", "module '2fast'"),
        ("alignkit-2", "component '2'"),
        ("class", "module 'class'"),
        ("alignkit-none", "component 'none'"),
    ],
)
def test_a_name_that_will_not_do_is_refused(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        new_plugin(name, "loss", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("json", "a module of Python's"),
        ("AlignKit", "the library itself"),
        ("alignkit_ppo", "installed already"),
        ("NumPy", "installed already"),
        ("_pytest.x", "no name"),
        ("yaml", "would hide the module yaml"),
        ("nll", "'nll': the loss of alignkit has it"),
        ("margin_ranking", "the loss of alignkit-margin-rm has it"),
        ("alignkit-width", "'width': its text uses it"),
        ("tensor", "'Tensor': its text uses it"),
    ],
)
def test_a_name_that_is_taken_is_refused(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(AlignkitError, match=re.escape(says)):
        new_plugin(name, "loss", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_component_of_another_kind_may_have_the_name(tmp_path: Path) -> None:
    assert new_plugin("nll", "metric", tmp_path).is_dir()


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "strangers-own").mkdir()
    with pytest.raises(PluginError, match="exists"):
        new_plugin("strangers-own", "loss", tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["strangers-own"]


def test_what_could_not_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="no space"):
            new_plugin("strangers-own", "loss", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_misspelled_kind_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="optimizer"):
        new_plugin("strangers-own", "optimiser", tmp_path)


def test_the_command_says_what_to_type_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new-plugin", "strangers-own", "--kind", "reward", "--into", str(tmp_path / "my work")]) == 0
    said = capsys.readouterr().out
    folder = f"'{tmp_path}/my work/strangers-own'"
    lines = [line.strip() for line in said.splitlines() if line.startswith("  ")]
    assert lines == [f"pip install -e {folder}", "alignkit plugins --components", f"pytest {folder}"]
    assert "src/strangers_own/__init__.py" in said
    assert cli.main(["new-plugin", "strangers-own", "--kind", "reward", "--into", str(tmp_path / "my work")]) == 2
    assert "Nothing was written" in capsys.readouterr().err


def test_there_is_a_template_of_each_kind_and_the_licence_is_that_of_the_library() -> None:
    assert {path.name for path in TEMPLATES.iterdir()} == {*KINDS, "common"}
    assert (TEMPLATES / "common/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
