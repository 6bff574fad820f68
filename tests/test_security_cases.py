"""The table of hostile bytes in docs/security.md is whole, its tests exist; and the cases that have no other home."""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkit import Policy, RewardModel, read_groups
from alignkit.errors import AlignkitError, ConfigError
from alignkit.run.recipes import Recipe, parse_arguments

ROOT = Path(__file__).resolve().parent.parent


def table() -> dict[str, list[str]]:
    """By case the other cells of its row."""
    lines = [line for line in (ROOT / "docs/security.md").read_text().splitlines() if line.startswith("| S")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    assert all(len(row) == 4 for row in rows)
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: row[1:] for row in rows}


def test_every_case_stands_in_the_table_with_what_holds() -> None:
    rows = table()
    assert list(rows) == [f"S{number}" for number in range(1, 63)]
    assert all(fed and holds for fed, holds, _ in rows.values())


def test_every_test_of_the_table_exists() -> None:
    known: dict[str, set[str]] = {}
    for case, (_, _, tests) in table().items():
        named = re.findall(r"`([^`]+)::([^`]+)`", tests)
        assert len(named) == tests.count("::") > 0, case
        for file, test in named:
            if file not in known:
                tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
                known[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert test in known[file], f"{case}: {file} has no {test}"


# -- what no line of the library does ----------------------------------------------------------------------------------

RUNS_BYTES = {
    *(
        "pickle",
        "cPickle",
        "dill",
        "joblib",
        "cloudpickle",
        "marshal",
        "shelve",
        "zipfile",
        "tarfile",
        "yaml",
        "jsonpickle",
    ),
}
"""Modules that make objects, or files anywhere, of bytes."""
CALLS = {"eval", "exec", "system", "popen", "unpack_archive", "extractall", "load_from_checkpoint"}
WORDS = {
    ("trust_remote_code", True),
    ("weights_only", False),
    ("allow_pickle", True),
    ("shell", True),
    ("verify", False),
}


def sources() -> Iterator[Path]:
    for folder in (ROOT / "alignkit", *ROOT.glob("plugins/*/src")):
        yield from (path for path in folder.rglob("*.py") if "templates" not in path.parts)


def offences(tree: ast.AST) -> Iterator[str]:
    """What in a source runs bytes, or turns off what stands before it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in RUNS_BYTES)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in RUNS_BYTES:
            yield str(node.module)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            if (name in CALLS or (last in CALLS - {"eval"})) or name == "torch.load":
                yield name
            for word in node.keywords:
                if isinstance(word.value, ast.Constant) and (word.arg, word.value.value) in WORDS:
                    yield f"{word.arg}={word.value.value}"


HARMLESS = {
    "plugins/alignkit-rlaif/src/alignkit_rlaif/surroundings.py": ["verify=False"],
    "alignkit/run/recipes.py": ["yaml"],
}
"""A transport that is made to see whether an address can be a proxy's, and asks nobody; and the words of a YAML file,
of which nothing is made."""


def test_nothing_runs_bytes() -> None:
    found = {
        str(path.relative_to(ROOT)): [*offences(ast.parse(path.read_text(encoding="utf-8")))] for path in sources()
    }
    assert len(found) > 150
    assert {path: what for path, what in found.items() if what} == HARMLESS


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from yaml import load",
        "eval(x)",
        "torch.load(x)",
        "shutil.unpack_archive(x)",
        "f(x, trust_remote_code=True)",
        "get(x, verify=False)",
    ],
)
def test_what_runs_bytes_is_found(line: str) -> None:
    assert [*offences(ast.parse(line))] != []
    assert [*offences(ast.parse("model.eval(); re.compile(x); f(trust_remote_code=False); load_file(x)"))] == []


# -- what is fed to the doors of models --------------------------------------------------------------------------------


class Touches:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    Policy.load("tiny").export(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.mark.parametrize(
    "name", ["x.pt", "x.ckpt", "x.bin", "x.pkl", "x.safetensors", "x.jsonl", "x.parquet", "x.json"]
)
@pytest.mark.parametrize("door", [Policy.load, RewardModel.load, read_groups])
def test_no_pickle_is_opened(tmp_path: Path, name: str, door: Any) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Touches(tmp_path / "ran")))
    with pytest.raises(AlignkitError):
        door(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / name).read_bytes())
    assert (tmp_path / "ran").exists()  # so it would have


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/x.ckpt", "https://x.example/model", "file:///tmp/x", "s3://b/k"]
)
@pytest.mark.parametrize("door", [Policy.load, RewardModel.load])
def test_an_address_is_no_model(address: str, door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    with pytest.raises(ConfigError, match="no such model folder"):
        door(address)


def declaring(shape: list[int], end: int, length: int | None = None) -> bytes:
    header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + b"\0" * 64


@pytest.mark.parametrize(
    "content",
    [
        declaring([2**40], 2**42),
        declaring([2**62, 4], 64),
        declaring([16], 64, length=2**60),
        declaring([16], 64, length=2**63),
        b"",
    ],
)
def test_a_header_that_claims_too_much_is_refused(copy: Path, content: bytes) -> None:
    for file in copy.glob("*.safetensors"):
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(str(copy))):
        Policy.load(copy)


def test_what_lies_beside_a_model_is_not_run(copy: Path, tmp_path: Path) -> None:
    touch = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    for name in ("sitecustomize.py", "conftest.py", "modeling.py", "__init__.py", "autoload.pth"):
        (copy / name).write_text(touch)
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "pytorch_model.bin"):
        (copy / name).write_bytes(pickle.dumps(Touches(tmp_path / "ran")))
    Policy.load(copy)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_that_names_another_base_is_refused(tmp_path: Path) -> None:
    from alignkit.testing.given import save_states

    save_states(tmp_path)
    card = next(file for file in (tmp_path / "sft").glob("*.json") if "base_digest" in file.read_text())
    card.write_text(json.dumps({**json.loads(card.read_text()), "base_digest": "0" * 64}))
    with pytest.raises(ConfigError):
        Policy.load(tmp_path / "sft")


def test_values_on_the_command_line_are_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "Nobody-knows-8")

    def main(run: Any, rate: float = 0.1, text: str = "", flag: bool = True) -> None: ...

    words = ["--rate", "1e-5", "--text", "${oc.env:SOME_SECRET} $SOME_SECRET ${env:SOME_SECRET}", "--flag", "false"]
    found = parse_arguments(Recipe("r", main), words)
    assert (found["rate"], found["flag"]) == (1e-5, False)
    assert found["text"] == "${oc.env:SOME_SECRET} $SOME_SECRET ${env:SOME_SECRET}"
    with pytest.raises(ConfigError):
        parse_arguments(Recipe("r", main), ["--rate", "!!python/object/apply:os.getpid []"])


def test_a_pattern_that_takes_in_what_is_no_data_is_refused_at_the_first_file(tmp_path: Path) -> None:
    """S37: `/**` takes in everything; nothing of it is read as rows that is none."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "data.jsonl").write_text(json.dumps({"prompt": "p", "response": "r"}) + "\n")
    (tmp_path / "a" / "program").write_bytes(b"\x7fELF\x00\x01")
    with pytest.raises(AlignkitError) as refused:
        read_groups(str(tmp_path / "**" / "*"))
    assert "program" in str(refused.value)
