"""The docs are true: their code runs, their tables are the code's, and what ARCHITECTURE.md lists exists.

Each page is run in a folder of its own, from top to bottom: `python` blocks as scripts, `alignkit` and `pip install`
lines of `console` blocks as typed; a block after `<!-- file: PATH -->` is written to that file, for later lines to
use. What cannot be run in a test (make, virtual environments, a large model, the reader's files) is listed below,
so that nothing is left out by accident.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from alignkit import cli
from alignkit.registry.hookspecs import KINDS
from alignkit.registry.host import default_host
from alignkit.vocabulary import PREPARE, VOCABULARY

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/quickstart.md",
    "docs/concepts.md",
    "docs/models.md",
    "docs/budgets.md",
    "docs/write-a-plugin.md",
    "docs/cli.md",
    "docs/data.md",
    "docs/methods.md",
    "docs/choosing.md",
    "docs/compare.md",
    "docs/from-trl.md",
    "docs/from-axolotl.md",
    "docs/from-llama-factory.md",
    "CONTRIBUTING.md",
    "plugins/alignkit-recipes/README.md",
)
NOT_TYPED = (
    "make ",  # what it names is checked to be a target of the Makefile
    ". .venv/bin/activate",
    "alignkit run llama2 --plan",  # needs the large model
    "alignkit run llama2 --preferences.helpfulness",  # needs the reader's files
    'alignkit run llama2 --algorithms "rejection_sampling(samples_per_prompt=16)',  # needs the large model
    "alignkit run method --policy package:",  # likewise
    "alignkit run instructgpt --policy package:",  # likewise
    "alignkit run instructgpt --demonstrations",  # needs the reader's files
)
SHORTER = {
    "alignkit compare enumerable": {"rounds=30": "rounds=2", " rloo --seeds": " 'rloo(rounds=2)' --seeds"},
    # `alignkit plugins --check` on the same page runs the kit, and `make test-full` on what was just written
    "pytest alignkit-awr": {"alignkit-awr": "alignkit-awr --deselect alignkit-awr/tests/test_conformance.py"},
}
"""What is typed with fewer rounds, or without a part, since the whole takes longer than a test should: by how the line
begins, what is replaced."""
BLOCK = re.compile(r"(?:^<!-- file: (\S+) -->\n)?^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ROOMS = re.compile(r"\*\*`(\w+)(/?)`\*\*")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        line: where it begins.
        file: where it is written, if it is a file.
        language: after the fence.
        text: its content.
    """

    line: int
    file: str
    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        yield Block(text.count("\n", 0, found.start()) + 1, found[1] or "", found[2], found[3])


def commands(block: Block) -> Iterator[str]:
    for line in block.text.splitlines():
        if line.startswith("$ "):
            yield line.removeprefix("$ ")


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A reader's folder: plugins that are installed here are gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    monkeypatch.syspath_prepend(str(tmp_path))
    default_host.cache_clear()
    yield tmp_path
    forget(tmp_path)


def forget(folder: Path) -> None:
    """Import anew, when it is next asked for, what the reader wrote or installed."""
    default_host.cache_clear()
    importlib.invalidate_caches()
    for name, module in list(sys.modules.items()):
        if str(folder) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


def typed(line: str, folder: Path) -> None:
    """What happens when the reader types the line."""
    if line.startswith(NOT_TYPED):
        return
    for beginning, shorter in SHORTER.items():
        for long, short in shorter.items() if line.startswith(beginning) else ():
            assert long in line, f"`{line}` no longer says {long}"
            line = line.replace(long, short)
    program, *arguments = shlex.split(line)
    if program == "alignkit":
        try:
            code: object = cli.main(arguments)
        except SystemExit as end:
            code = end.code
        assert code in (0, None), f"`{line}` ended with {code}"
    elif (program, arguments[0]) == ("pip", "install"):
        installed(arguments[1:], folder)
    elif program == "pytest":
        paths = [*map(str, folder.glob("*/src")), str(folder / "site-packages")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        pytest.fail(f"do not know how to type `{line}`: teach the test, or list it in NOT_TYPED")


def installed(arguments: list[str], folder: Path) -> None:
    """What `pip install` does for the reader, in the reader's own folder, from what is here. An editable install is one
    whose sources are found first."""
    sources = [folder / path / "src" for path in arguments if "-e" in arguments and (folder / path / "src").is_dir()]
    sys.path[:0] = map(str, sources)  # the fixture puts it back
    flags = ["--no-index", "--no-deps", "--no-build-isolation", "-q", "--disable-pip-version-check"]
    wanted = [str(path.parent) for path in sources] or arguments
    command = [sys.executable, "-m", "pip", "install", *wanted, *flags, "--target", str(folder / "site-packages")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    forget(folder)


def run_block(block: Block, page: str, folder: Path) -> None:
    if block.file:
        path = folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        forget(folder)
    elif block.language == "python":
        script = folder / f"{Path(page).stem.replace('-', '_')}_line_{block.line}.py"
        script.write_text(block.text, encoding="utf-8")
        runpy.run_path(str(script), run_name="__main__")
    elif block.language == "console":
        for line in commands(block):
            typed(line, folder)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page: str, reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Takes some ten seconds for a page, since whole pipelines run, on the tiny model."""
    for block in blocks(page):
        try:
            run_block(block, page, reader)
        except Exception as error:
            raise AssertionError(f"{page}, block at line {block.line}: {type(error).__name__}: {error}") from error
    if page == "docs/write-a-plugin.md":
        assert re.search(r"alignkit-awr.*enabled", capsys.readouterr().out)
    if page == "README.md":
        with_its_plugin_in_ten_lines(reader)


def lines_of_code(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def with_its_plugin_in_ten_lines(folder: Path) -> None:
    """The README's plugin, packaged and installed as its text says, trains a reward model."""
    from alignkit import Groups, LoRA, Run, use

    [block] = [block for block in blocks("README.md") if block.file]
    assert lines_of_code(block.text) <= 10
    (folder / block.file).unlink()
    typed("alignkit new-plugin alignkit-hinge-ranking --kind loss", folder)
    (folder / "alignkit-hinge-ranking/src/alignkit_hinge_ranking/__init__.py").write_text(block.text, encoding="utf-8")
    typed("pip install -e alignkit-hinge-ranking", folder)

    rows = [{"prompt": f"Name {n}.", "responses": [f"{n}", "no"], "ranks": [1, 2]} for n in range(4)]
    with Run(folder / "runs/hinge", quiet=True) as run:
        loss = use("hinge_ranking", width=0.5)
        policy = run.policy("tiny", lora=LoRA(r=4))
        reward = run.train_reward(policy, Groups.from_rows(rows), loss=loss, heldout_fraction=0.5)
    assert reward.handle.result["pairs"] + reward.handle.result.get("eval_pairs", 0) == 4
    assert reward.handle.result["steps"] == 1


def test_the_pipeline_of_the_readme_takes_twenty_lines() -> None:
    [pipeline] = [b for b in blocks("README.md") if b.language == "python" and not b.file]
    assert lines_of_code(pipeline.text) <= 20


def test_make_targets_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"setup", "demo", "test", "test-full", "lint", "docs", "bench", "wheels"} <= targets
    named = [
        line.split()[1] for page in PAGES for b in blocks(page) for line in commands(b) if line.startswith("make ")
    ]
    assert named
    assert set(named) <= targets


def test_links_between_pages_lead_somewhere() -> None:
    others = ("ARCHITECTURE.md", "SECURITY.md", "docs/security.md", "docs/metrics.md", "docs/verbs.md", "CHANGELOG.md")
    for page in (*PAGES, *others):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if not target.startswith("http"):
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_generated_tables_and_help_texts_are_those_of_the_code() -> None:
    done = subprocess.run(
        [sys.executable, "tools/generated_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_tensor_and_every_hook_is_documented() -> None:
    """Not by the generator, which could leave one out."""
    page = (ROOT / "docs/write-a-plugin.md").read_text(encoding="utf-8")
    for name, spec in VOCABULARY.items():
        assert f"| `{name}` | {spec.level} | {spec.source} | `{spec.shape}` | {spec.doc} |" in page
    for name, offer in PREPARE.items():
        assert f"| `{offer.what}` | {offer.doc} |" in page.split(f"\n| `{name}` | prepare")[1]
    for kind, hook in KINDS.items():
        assert f"| {kind} | `{hook}(register: Register) -> None` |" in page


def test_every_column_of_groups_is_documented() -> None:
    from alignkit.groups import FEATURES

    page = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(FEATURES)


def rooms() -> list[str]:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = text.split("<!-- rooms -->")[1].split("<!-- /rooms -->")[0]
    return [name + (slash or ".py") for name, slash in ROOMS.findall(listed)]


def test_the_rooms_of_the_architecture_are_those_of_the_tree() -> None:
    core = ROOT / "alignkit"
    modules = {path.name for path in core.glob("*.py") if path.name != "__init__.py"}
    packages = {f"{path.parent.name}/" for path in core.glob("*/__init__.py")}
    assert set(rooms()) == modules | packages


def imports(path: Path) -> Iterator[str]:
    """The rooms a module imports from, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "alignkit":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alignkit."):
            yield (node.module or "").split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (n.name.split(".")[1] for n in node.names if n.name.startswith("alignkit."))


def test_a_room_imports_only_rooms_above_it() -> None:
    order = [name.removesuffix("/").removesuffix(".py") for name in rooms()]
    upward = set()
    for path in sorted((ROOT / "alignkit").rglob("*.py")):
        place = path.relative_to(ROOT / "alignkit")
        room = place.parts[0].removesuffix(".py")
        if room in order:
            below = order[order.index(room) + 1 :]
            upward |= {(place.as_posix(), name) for name in imports(path) if name in below}
    assert not upward
