"""A run on disk: read whole where a stage is built on it, shown as far as it can be read, and never taken for ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit import Groups, LoRA, Run
from alignkit.budget import NAMES
from alignkit.errors import ConfigError, DataError
from alignkit.files import read_json_lines, write_json, write_text
from alignkit.report import write_report
from alignkit.report.collect import collect
from alignkit.run import compare_runs, free_run, list_runs, open_policy
from alignkit.run.store import Store
from alignkit.run_folder import FORMAT, finished_stages, read_run, read_stage

ROWS = Groups.from_prompts(["one", "two"])


def compared(folder: Path) -> str:
    return compare_runs(folder, folder)


READERS: list[Callable[[Path], Any]] = [write_report, free_run, open_policy, compared]


def made(folder: Path, *names: str) -> Path:
    """A finished run with a stage of groups for each name."""
    with Run(folder, quiet=True) as run:
        for name in names:
            run.groups(ROWS, name=name)
    return folder


def change(path: Path, **fields: Any) -> None:
    """Rewrite a record with other fields; None takes one out."""
    record = json.loads(path.read_text()) | fields
    write_json(path, {name: value for name, value in record.items() if value is not None})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made(tmp_path / "run", "first", "second")


def test_a_record_says_what_the_stage_is_and_what_it_made(run: Path) -> None:
    first, second = read_run(run).stages
    assert (first.name, first.verb, first.status, first.made) == ("first", "groups", "complete", ("groups",))
    assert first.inputs == {"groups": {"groups": ROWS.digest()}}
    assert first.result == {"rows": 2, "responses": 0}
    assert first.identity["seed"] == 0
    assert first.format == FORMAT == json.loads((run / "run.json").read_text())["format"]
    assert second.folder.name == f"0002-second-{second.key[:8]}"
    assert read_run(run).status == "complete"


def test_a_torn_record_stops_who_builds_on_it_and_not_who_looks(run: Path) -> None:
    first, second = (stage.folder for stage in read_run(run).stages)
    (first / "stage.json").write_text('{"name": "fir')
    shown = read_run(run)
    assert [stage.status for stage in shown.stages] == ["unreadable", "complete"]
    assert "stage.json cannot be read" in shown.problems[0]
    assert [row["stages"] for row in list_runs(run.parent)] == [2]
    with pytest.raises(DataError, match=f"stage.json: cannot be read.*delete the folder {first.name}"):
        made(run, "first", "second")
    shutil.rmtree(first)
    made(run, "first", "second")
    assert [stage.folder.name[:4] for stage in read_run(run).stages] == ["0003", "0002"]
    assert read_run(run).stages[1].folder == second


def test_a_record_of_another_kind_is_unreadable(run: Path) -> None:
    (read_run(run).stages[0].folder / "stage.json").write_text("[]")
    assert [stage.status for stage in read_run(run).stages] == ["unreadable", "complete"]
    odd = {"seconds": "long", "made": 3, "config": [1], "result": None, "format": float("nan")}
    path = read_run(run).stages[1].folder / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | odd))
    found = read_stage(path.parent)
    assert (found.seconds, found.made, found.config, found.result, found.format) == (None, (), {}, {}, 0)


@pytest.mark.parametrize("content", [None, "{"])
def test_a_stage_without_its_manifest_is_refused(run: Path, content: str | None) -> None:
    stage = read_run(run).stages[0]
    (stage.folder / "manifest.json").unlink()
    if content:
        (stage.folder / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=f"manifest.json: cannot be read.*delete the folder {stage.folder.name}"):
        Store(run).find(stage.key)


def test_what_was_not_committed_is_no_stage(run: Path) -> None:
    """A process that ended between the record and the rename leaves both; the next one clears them."""
    folder = read_run(run).stages[0].folder
    left = folder.with_name(".work-1-first")
    folder.rename(left)
    assert [stage.name for stage in finished_stages(run)] == ["second"]
    made(run, "first", "second")
    assert not left.exists()
    assert [stage.folder.name[:4] for stage in read_run(run).stages] == ["0003", "0002"]


def older(folder: Path) -> None:
    """The run as the format before this one kept it."""
    change(folder / "run.json", format=1)
    for stage in read_run(folder, any_format=True).stages:
        change(stage.folder / "stage.json", format=None, made=None)


@pytest.mark.parametrize("read", READERS)
def test_a_run_of_another_format_is_refused_with_the_remedy(run: Path, read: Callable[[Path], Any]) -> None:
    older(run)
    with pytest.raises(DataError, match=r"run\.json: it is of format 1.* reads format 2.*run the script again"):
        read(run)


def test_a_run_of_another_format_is_listed_and_made_anew(run: Path) -> None:
    older(run)
    assert [(row["name"], row["status"], row["stages"]) for row in list_runs(run.parent)] == [("run", "complete", 2)]
    made(run, "first", "second")
    assert [stage.folder.name[:4] for stage in read_run(run).stages] == ["0003", "0004"]
    assert free_run(run) > 0
    assert len(list((run / "stages").iterdir())) == 2


def test_what_a_stage_spent_is_read_and_summed(run: Path) -> None:
    first, second = (stage.folder for stage in read_run(run).stages)
    meter: dict[str, Any] = {
        "counts": {"generated_tokens": 5, "trained_tokens": "x"},
        "flops": {"forward": 3, "backward": 4},
    }
    meter["seconds"] = {"train": 1.5, "load": "x", "napping": 3.0}
    change(first / "stage.json", meter={**meter, "peak_memory": {"cpu": 9, "cuda": 11}})
    change(second / "stage.json", meter={**meter, "peak_memory": {"cpu": 10}})
    stage = read_run(run).stages[0]
    assert [stage.spent(name) for name in ("generated_tokens", "trained_tokens", "judge_calls", "flops")] == [
        5,
        0,
        0,
        7,
    ]
    assert stage.peak_memory == 11
    [row] = list_runs(run.parent)
    assert [row[name] for name in ("generated_tokens", "trained_tokens", "flops", "peak_memory")] == [10, 0, 14, 11]
    assert set(NAMES) <= set(row)
    assert {name: seconds for name, seconds in row["phases"].items() if seconds} == {"train": 3.0}
    change(first / "stage.json", meter=None)
    stage = read_run(run).stages[0]
    assert (stage.spent("flops"), stage.peak_memory) == (0, 0)


def test_a_run_whose_record_is_torn_is_listed_beside_the_others(run: Path) -> None:
    made(run.parent / "other", "first")
    (run / "run.json").write_text('{"form')
    rows = {row["name"]: row for row in list_runs(run.parent)}
    assert (rows["run"]["status"], rows["run"]["stages"]) == ("unreadable", 0)
    assert rows["run"]["bytes"] > 0
    assert (rows["other"]["status"], rows["other"]["stages"]) == ("complete", 1)
    for read in READERS:
        with pytest.raises(DataError, match=r"run\.json: cannot be read"):
            read(run)


def test_no_run_folder_is_said_to_be_none(tmp_path: Path) -> None:
    for read in (free_run, compared):
        with pytest.raises(ConfigError, match="not a run folder"):
            read(tmp_path)


def test_the_policy_of_a_run_is_the_last_that_a_stage_made_whatever_its_verb(run: Path) -> None:
    with pytest.raises(ConfigError, match="no policy yet"):
        open_policy(run)
    with Run(run, quiet=True) as again:
        again.policy("tiny", lora=LoRA(r=2), name="theirs")
        again.groups(ROWS, name="last")
    change(read_run(run).stages[0].folder / "stage.json", verb="grown")
    assert open_policy(run).chat.vocab_size > 256
    theirs, last = read_run(run).stages
    change(last.folder / "stage.json", made=["policy"], result={"model": str(theirs.model)})
    change(theirs.folder / "stage.json", made=[])
    assert open_policy(run).chat.vocab_size > 256


def test_the_report_asks_what_a_stage_made_and_not_which_verb_made_it(run: Path) -> None:
    answers = [{"prompt_id": f"{i}", "prompt": "?", "response": "!", "sample": 0, "scores": {"s": i}} for i in range(3)]
    level = {"mean": 0.5, "low": 0.1, "high": 0.9, "n": 9}
    points = {"1": {"max": 0.0, "median": 0.0}, "2": {"max": 1.0, "median": 0.5}}
    first, second = (stage.folder for stage in read_run(run).stages)
    (first / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    result = {"label": "V0", "accuracy": {"overall": level}, "best_of_n": points}
    change(first / "stage.json", verb="judge", made=["evaluation"], result=result)
    change(second / "stage.json", verb="learn", made=["reward", "groups"], result=result)
    assert [version.label for version in collect(run).versions] == ["V0"]
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count("Accuracy by rating") == 1
    assert page.count("<b>V0: score</b>") == page.count("<b>second: score</b>") == 1
    change(first / "stage.json", verb="evaluate", made=[])
    change(second / "stage.json", verb="train_reward", made=[])
    assert not collect(run).versions
    bare = write_report(run).read_text(encoding="utf-8")
    assert "Accuracy by rating" not in bare
    assert "Best of N" not in bare


def test_json_lines_are_read_whole_or_told(tmp_path: Path) -> None:
    path = tmp_path / "stage" / "rows.jsonl"
    path.parent.mkdir()
    path.write_bytes(b'{"a": "x\xe2\x80\xa8y"}\n\n[1]\n{"a": "\xff"}\n{"a": 2}\n{"a": ')
    problems: list[str] = []
    assert read_json_lines(path, problems) == [{"a": "x\u2028y"}, {"a": 2}]
    assert problems == ["stage/rows.jsonl: 3 line(s) cannot be read and are left out"]
    with pytest.raises(DataError, match=r"rows\.jsonl:3: holds no JSON object"):
        read_json_lines(path)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_text(path, "old ü")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert [(p.name, p.read_text(encoding="utf-8")) for p in tmp_path.iterdir()] == [("page.html", "old ü")]
