"""Bytes from elsewhere never leave their folder and never forge structure: runs of others, names, cards, tables."""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignkit import Annotator, Groups, Run
from alignkit.annotators import annotated
from alignkit.cli import main
from alignkit.comparison import writing
from alignkit.errors import AlignkitError, ConfigError, PluginError
from alignkit.files import is_folder_name, write_json
from alignkit.run import compare_runs, free_run
from alignkit.run.console import Console
from alignkit.run.recipes import load_recipe
from alignkit.run.store import Store, slug
from alignkit.run_folder import FORMAT, StageRecord
from alignkit.stages.card import model_card

LEADING_OUT = ("../x", "..", ".", "", "/etc/x", "a/b", "a\\b", "c:x", "a\0b", "a\nb", "x" * 300, "\u202ex")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A run that somebody else made: complete, with no stage in use."""
    folder = tmp_path / "theirs"
    (folder / "stages").mkdir(parents=True)
    write_json(folder / "run.json", {"format": FORMAT, "name": "theirs", "status": "complete", "stages": []})
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """What is no part of any run."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    return folder


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEADING_OUT)
def test_a_dimension_cannot_lead_out_of_its_stage(name: str) -> None:
    class Odd(Annotator):
        dimensions = (name,)

        def annotate(self, groups: Groups, seed: int = 0) -> Mapping[str, Groups]:
            return {name: groups}

    rows = [{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}]
    with pytest.raises(PluginError, match="dimension"):
        annotated(Groups.from_rows(rows), Odd(), 0)


def test_words_name_a_dimension() -> None:
    assert all(map(is_folder_name, ("preference", "help-fulness", "overall quality", "v1.2", "Güte", ".a")))


@pytest.mark.parametrize("name", [*LEADING_OUT, "-rf", "CON.", "Ünï", "a b"])
def test_a_stage_is_kept_in_the_run_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,47}", slug(name))
    store = Store(tmp_path / "run")
    work = store.begin(name)
    assert work.parent == tmp_path / "run" / "stages"
    kept = store.commit(work, {"name": name, "key": "0123456789abcdef", "verb": "v"}).folder
    assert (kept.parent, [path.name for path in tmp_path.iterdir()]) == (tmp_path / "run" / "stages", ["run"])


def test_a_recipe_whose_file_names_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "...py").write_text("def main(run): pass\n")
    with pytest.raises(ConfigError, match="no name for a run's folder"):
        load_recipe(tmp_path / "...py")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder.write_text("a file"), "File exists"),
        (lambda folder: (folder / ".lock").mkdir(parents=True), "Is a directory"),
        (lambda folder: None, "File name too long"),
    ],
)
def test_a_folder_that_can_be_none_is_refused_in_one_line(make: Any, says: str, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 300 if "long" in says else "run")
    make(folder)
    with pytest.raises(AlignkitError, match=f"no run can be kept here: .*{says}"):
        Run(folder, quiet=True)


def test_a_nul_in_a_runs_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises((AlignkitError, ValueError), match="null"):
        Store(tmp_path / "a\0b").lock()


# -- links in a folder that somebody else made -------------------------------------------------------------------------


def test_a_lock_that_is_a_link_is_not_written_through(theirs: Path, mine: Path) -> None:
    (theirs / ".lock").symlink_to(mine / "letter.txt")
    with pytest.raises(AlignkitError, match="no run can be kept here"):
        Run(theirs, quiet=True)
    assert (mine / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("name", ["run.json", ".run.json.{pid}.tmp"])
def test_a_record_that_is_a_link_is_not_written_through(theirs: Path, mine: Path, name: str) -> None:
    path = theirs / name.format(pid=os.getpid())
    path.unlink(missing_ok=True)
    path.symlink_to(mine / "letter.txt")
    write_json(theirs / "run.json", {"a": 1})
    assert (mine / "letter.txt").read_text() == "dear"
    assert json.loads((theirs / "run.json").read_text()) == {"a": 1}
    assert not (theirs / "run.json").is_symlink()


def test_what_is_freed_lies_in_the_run(theirs: Path, mine: Path) -> None:
    (theirs / "stages" / "0001-linked").symlink_to(mine, target_is_directory=True)
    (theirs / "stages" / "stray").write_text("12345")
    (theirs / "stages" / "0002-own").mkdir()
    assert free_run(theirs) == 5
    assert list((theirs / "stages").iterdir()) == []
    assert (mine / "letter.txt").read_text() == "dear"


def test_stages_that_are_a_link_are_neither_freed_nor_written(theirs: Path, mine: Path) -> None:
    (theirs / "stages").rmdir()
    (theirs / "stages").symlink_to(mine, target_is_directory=True)
    with pytest.raises(AlignkitError, match="stages is a link to"):
        free_run(theirs)
    with pytest.raises(AlignkitError, match="stages is a link to"):
        Run(theirs, quiet=True)
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]


def test_a_work_folder_that_is_a_link_is_cleared_and_what_it_leads_to_is_not(theirs: Path, mine: Path) -> None:
    (theirs / "stages" / ".work-1-x").symlink_to(mine, target_is_directory=True)
    Store(theirs).begin("next")
    assert [path.name for path in (theirs / "stages").iterdir()] == [f".work-{os.getpid()}-next"]
    assert (mine / "letter.txt").is_file()


@pytest.mark.parametrize("name", ["../../../mine/letter.txt", "{mine}/letter.txt"])
def test_a_manifest_that_leads_out_of_its_stage_is_refused(theirs: Path, mine: Path, name: str) -> None:
    stage = theirs / "stages" / "0001-x-01234567"
    stage.mkdir()
    write_json(stage / "stage.json", {"format": FORMAT, "name": "x", "verb": "v", "key": "k"})
    entry = {"size": 4, "sha256": hashlib.sha256(b"dear").hexdigest()}
    write_json(stage / "manifest.json", {name.format(mine=mine): entry})
    with pytest.raises(AlignkitError, match="is missing or is not what was written"):
        Store(theirs).find("k")


def test_a_run_folder_that_anybody_may_write_into_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    Run(tmp_path / "run", quiet=True).close()
    assert "anybody on this machine may write into" in caplog.text
    assert f"chmod o-w {tmp_path / 'run'}" in caplog.text
    caplog.clear()
    (tmp_path / "run").chmod(0o755)
    Run(tmp_path / "run", quiet=True).close()
    assert caplog.text == ""


# -- structure ---------------------------------------------------------------------------------------------------------

ESCAPES = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x9b1m\u202e\r"


def test_a_terminal_is_told_no_escape_sequence(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Console().say(f"x {ESCAPES} y")
    Console(every=0).tick(f"x {ESCAPES} y")
    stage = theirs / "stages" / "0001-x-01234567"
    stage.mkdir()
    write_json(
        stage / "stage.json", {"format": FORMAT, "name": ESCAPES, "verb": "v", "key": "k", "config": {"a": ESCAPES}}
    )
    record = {"format": FORMAT, "name": ESCAPES, "status": ESCAPES, "created": ESCAPES, "stages": [stage.name]}
    write_json(theirs / "run.json", record)
    other = tmp_path / "other"
    other.mkdir()
    write_json(other / "run.json", {"format": FORMAT, "stages": []})
    assert ESCAPES in compare_runs(theirs, other)
    assert main(["runs", str(tmp_path)]) == 0
    assert main(["runs", str(tmp_path), "--compare", "theirs", "other"]) == 0
    main(["report", str(theirs)])
    said = "".join(capsys.readouterr())
    assert said.count("red") >= 4
    assert not set(said) & set("\x1b\x9b\u202e\r\x07")


HOSTILE = (
    "`` ` `![](http://evil.example/x.png)",
    "<img src=http://evil.example/x.png><script>alert(1)</script>",
    "x\n\n# Forged\n---\nlicense: mit\n---\n",
    "[click](javascript:alert(1)) **b** | a | b |",
    "http://evil.example",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_model_card_is_text_whatever_stages_are_called(text: str) -> None:
    """Read by the rules of CommonMark: code spans first, then what a backslash does not stand before."""
    stage = StageRecord(Path("x"), text, verb=text, key=text, config={text: text})
    benign = model_card("a", [StageRecord(Path("x"), "b", verb="c", key="d", config={"e": "f"})], 0, "32-true")
    card = model_card(text, [stage], 0, "32-true")
    assert len(card.splitlines()) == len(benign.splitlines())
    assert card.startswith("---\nlibrary_name: transformers\ntags: [alignkit]\n---\n# ")
    spans = re.compile(r"(?<![\\`])(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
    held = [json.loads(found[2].strip()) for found in spans.finditer(card)]
    assert [list(one) for one in held] == [[text]]
    outside = re.sub(r"\\[!-/:-@\[-`{-~]", "", spans.sub("", card))
    assert re.findall(r"!\[|\]\(|<|`|\||://", outside) == []
    assert outside.count("**") == 2 * 1
    assert html.unescape(outside) == outside


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1"])
def test_no_cell_of_a_table_is_a_formula(text: str) -> None:
    standing = SimpleNamespace(
        method=text, rank=None, seeds=[0], failed={}, mean=None, iqm=None, gap=None, better_than_start=None
    )
    standing.besides, standing.spent, standing.trials = {text: -1.5}, {}, 0
    rows = list(csv.reader(io.StringIO(writing._csv(SimpleNamespace(standings=[standing])))))  # type: ignore[arg-type]
    assert rows[1][0] == f"'{text}"
    assert f"'{text}" in rows[0]
    assert "-1.5" in rows[1]  # a number stays one
