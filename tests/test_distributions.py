"""The distributions: one version, their extras, their licence and types, and that their files install and work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from alignkit import __version__
from alignkit.new_plugin import core_range

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
EVERY_PLUGIN = pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
RANGE = core_range(__version__)


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def python(*arguments: str, executable: str = sys.executable, **options: Any) -> str:
    """Run Python in a process of its own; what it printed."""
    command = [executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


# -- what they say of themselves ---------------------------------------------------------------------------------------


def test_all_are_of_one_version_and_the_extras_are_the_plugins() -> None:
    python("tools/version.py", "--check", cwd=ROOT)


def test_every_plugin_is_an_extra_and_all_of_them_are_in_one() -> None:
    """Not by the tool, which could leave one out."""
    extras = project(ROOT)["optional-dependencies"]
    wanted = {folder.name.removeprefix("alignkit-"): f"{folder.name}{RANGE}" for folder in PLUGINS}
    assert len(wanted) >= 12
    assert {name: extras[name] for name in wanted} == {name: [each] for name, each in wanted.items()}
    assert sorted(extras["all"]) == sorted(wanted.values())
    assert set(extras) >= {*wanted, "all", "dev"}


@EVERY_PLUGIN
def test_a_plugin_asks_for_the_versions_that_move_with_it(folder: Path) -> None:
    found = project(folder)
    assert (found["name"], found["version"]) == (folder.name, __version__)
    asked = [each for each in found["dependencies"] if each.startswith("alignkit")]
    assert f"alignkit{RANGE}" in asked
    assert all(each.endswith(RANGE) for each in asked)


@EVERY_PLUGIN
def test_a_plugin_carries_its_page_the_licence_and_its_types(folder: Path) -> None:
    found = project(folder)
    assert (found["license"], found["license-files"], found["readme"]) == ("Apache-2.0", ["LICENSE"], "README.md")
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    (package,) = (path for path in (folder / "src").iterdir() if path.suffix != ".egg-info")
    assert (package / "py.typed").is_file()  # which a single module cannot have (PEP 561)


def test_one_command_moves_every_version(tmp_path: Path) -> None:
    for path in [ROOT / "alignkit/_version.py", ROOT / "tools/version.py", *ROOT.glob("**/pyproject.toml")]:
        place = path.relative_to(ROOT)
        if not {".venv", "templates"} & set(place.parts):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / place)
    python("tools/version.py", "2.13.4", cwd=tmp_path)
    core, *plugins = [
        project(path.parent) for path in sorted(tmp_path.glob("**/pyproject.toml"), key=lambda p: len(p.parts))
    ]
    assert {each["version"] for each in (core, *plugins)} == {"2.13.4"}
    assert (tmp_path / "alignkit/_version.py").read_text().endswith('__version__ = "2.13.4"\n')
    assert core["optional-dependencies"]["tasks"] == ["alignkit-tasks>=2.13,<2.14"]
    asked = {each for plugin in plugins for each in plugin["dependencies"] if each.startswith("alignkit")}
    assert {"alignkit>=2.13,<2.14", "alignkit-recipes>=2.13,<2.14"} <= asked
    assert not [each for each in asked if not each.endswith(">=2.13,<2.14")]
    assert "httpx>=0.27" in [each for plugin in plugins for each in plugin["dependencies"]]

    python("tools/version.py", "--check", cwd=tmp_path)
    late = tmp_path / "plugins/alignkit-tasks/pyproject.toml"
    late.write_text(late.read_text().replace('version = "2.13.4"', 'version = "2.13.3"'))
    command = [sys.executable, "tools/version.py", "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "plugins/alignkit-tasks/pyproject.toml" in done.stderr) == (1, True)


# -- what is built of them ---------------------------------------------------------------------------------------------


def built(folders: list[Path], out: Path) -> Path:
    """The wheels and sdists of some distributions, in a folder, as `make wheels` makes and checks them.

    They are built of copies: what is built in the tree leaves files there.
    """
    for folder in folders:
        copy = out.parent / "tree" / folder.name
        kept = shutil.ignore_patterns(".*", "plugins", "*.egg-info", "__pycache__", "runs", "build", "dist", "shared")
        shutil.copytree(folder, copy, ignore=kept)
        python("-m", "build", "--no-isolation", "--outdir", str(out), str(copy))
    python("-m", "twine", "check", "--strict", *(str(path) for path in sorted(out.iterdir())))
    return out


def held(path: Path) -> set[str]:
    """The files in a wheel, or in an sdist, where the folder that holds all is left out."""
    if path.suffix == ".whl":
        return set(zipfile.ZipFile(path).namelist())
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}


def complete(dist: Path, folder: Path) -> None:
    """Assert that the wheel and the sdist of a distribution hold what its tree does."""
    name = project(folder)["name"].replace("-", "_")
    source = folder / "src" if (folder / "src").is_dir() else folder
    files = [path for path in (source / name).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    wanted = {path.relative_to(source).as_posix() for path in files if not any(p.startswith(".") for p in path.parts)}
    assert f"{name}/py.typed" in wanted
    (wheel,), (sdist,) = dist.glob(f"{name}-*.whl"), dist.glob(f"{name}-*.tar.gz")
    assert wheel.name == f"{name}-{__version__}-py3-none-any.whl"
    in_wheel = held(wheel)
    assert {file for file in in_wheel if ".dist-info/" not in file} == wanted
    assert f"{name}-{__version__}.dist-info/licenses/LICENSE" in in_wheel
    inside = {path.relative_to(folder).as_posix() for path in files if path.relative_to(source).as_posix() in wanted}
    assert held(sdist) >= inside | {"pyproject.toml", "README.md", "LICENSE"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_built_of_the_core_and_a_plugin_installs_and_works(tmp_path: Path) -> None:
    """Fifteen seconds: two distributions are built and installed, the plugin from its sdist, in a folder of their own.
    All of them, in an environment of their own: `make test-full`."""
    plugin = ROOT / "plugins/alignkit-margin-rm"
    dist = built([ROOT, plugin], tmp_path / "dist")
    for folder in (ROOT, plugin):
        complete(dist, folder)
    files = [str(*dist.glob("alignkit-*.whl")), str(*dist.glob("alignkit_margin_rm-*.tar.gz"))]
    flags = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    python("-m", "pip", "install", "-q", *flags, "--target", str(tmp_path / "site"), *files)

    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "ALIGNKIT_LOAD_PLUGINS": "alignkit-margin-rm"}
    there = python("-c", "import alignkit; print(alignkit.__file__)", cwd=tmp_path, env=env)
    assert there.startswith(str(tmp_path / "site"))
    components = python("-m", "alignkit.cli", "plugins", "--components", cwd=tmp_path, env=env)
    assert "margin_ranking" in components
    python("-m", "alignkit.cli", "new-plugin", "strangers-own", "--kind", "suite", cwd=tmp_path, env=env)
    assert (tmp_path / "strangers-own/.github/workflows/test.yml").is_file()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels and sdists of all distributions."""
    return built([ROOT, *PLUGINS], tmp_path_factory.mktemp("built") / "dist")


def third_party(site: Path) -> None:
    """Make what is installed here, but for alignkit, be installed there too."""
    for folder in [Path(path) for path in sys.path if path.endswith("site-packages")]:
        for path in folder.iterdir():
            ours = "alignkit" in path.name or path.suffix == ".pth"
            if not ours and not (site / path.name).exists():
                (site / path.name).symlink_to(path)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_distribution_installs_from_its_files_in_an_environment_of_its_own(files: Path, tmp_path: Path) -> None:
    """Minutes: thirteen distributions are built, and a recipe runs with what was installed."""
    for folder in (ROOT, *PLUGINS):
        complete(files, folder)
    python("-m", "venv", "--without-pip", str(tmp_path / "env"))
    here = tmp_path / "env" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    third_party(here)
    own = str(tmp_path / "env/bin/python")
    flags = ["--no-index", "--find-links", str(files), "--disable-pip-version-check"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment["PIP_CONFIG_FILE"] = os.devnull
    python("-m", "pip", "install", "-q", *flags, "alignkit[all]", executable=own, env=environment)
    listed = python("-m", "alignkit.cli", "plugins", executable=own, cwd=tmp_path)
    assert [folder.name for folder in PLUGINS if f" {folder.name} " not in listed] == []
    assert listed.count("enabled") == 1 + len(PLUGINS)
    small = ["--policy", "tiny", "--optimizer", "ppo(rounds=1)", "--suite", "embedded(prompts=4, heldout=4)"]
    python("-m", "alignkit.cli", "run", "method", *small, "--run-dir", "out", executable=own, cwd=tmp_path)
    assert (tmp_path / "out/report.html").is_file()
