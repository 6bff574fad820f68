"""Comparisons: the same for all, whoever makes the cells and however often they are stopped; only what may be said."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import pytest

from alignkit import cli, compare, merge_comparisons
from alignkit.comparison import cell as cells
from alignkit.comparison import charts, tuning, workers
from alignkit.comparison.cell import BudgetSpent, Cell, CellRun
from alignkit.comparison.declared import Conditions, Method, budget_of, open_suite, read_method, suite_digest
from alignkit.comparison.naming import called
from alignkit.comparison.page import command
from alignkit.comparison.progress import Progress
from alignkit.comparison.results import Done, _notes, conclude, read_cell
from alignkit.comparison.table import leaderboard
from alignkit.comparison.writing import _named_apart
from alignkit.data import check_given, refuse_or_drop
from alignkit.data.problems import said_once
from alignkit.errors import ConfigError, DataError, PluginError
from alignkit.evaluation.statistics import Interval
from alignkit.groups import Groups
from alignkit.registry.host import default_host
from alignkit.run_folder import STAGES
from alignkit.stages import Improve, Stage
from alignkit.suites import Suite

SUITE = "embedded(kind='tiny', prompts=8, heldout=8)"
IMITATES = "rejection_sampling(samples_per_prompt=8, learning_rate=5e-3, batch_size=4)"
PAIRS = "dpo(learning_rate=4e-3, batch_size=4)"
ARGUMENTS: dict[str, Any] = {"policy": "tiny", "seeds": 2, "samples": 2, "quiet": True}
WRITTEN = ("comparison.json", "comparison.csv", "scores.jsonl")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods and the start in two seeds, on the tiny model."""
    folder = tmp_path_factory.mktemp("compare") / "run"
    compare(SUITE, [IMITATES, PAIRS], run_dir=folder, **ARGUMENTS)
    return folder


def written(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in WRITTEN]


def stages(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.glob(f"cells/*/*/{STAGES}/[0-9]*")}


def test_everything_is_written(done: Path) -> None:
    found = json.loads((done / "comparison.json").read_text())
    assert {each["method"] for each in found["methods"]} == {"start", IMITATES, PAIRS}
    assert found["score"] == "gold"
    assert not found["prompts_are_all"]
    assert len(found["differences"]) == 3
    rows = [json.loads(line) for line in (done / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 2 * 8
    assert {row["seed"] for row in rows} == {0, 1}
    with (done / "comparison.csv").open() as lines:
        table = {row["method"]: row for row in csv.DictReader(lines)}
    own = [row["scores"]["gold"] for row in rows if row["method"] == IMITATES]
    assert float(table[IMITATES]["mean"]) == pytest.approx(sum(own) / 16)
    assert float(table["start"]["generated_tokens"]) == 0.0
    assert float(table[PAIRS]["generated_tokens"]) > 100.0  # its comparisons were sampled, which is its cost


def test_a_method_and_the_start_answer_with_the_same_random_numbers(done: Path) -> None:
    """A method that learns next to nothing gives the start's answers, seed by seed."""
    found = conclude(done, [read_cell(path.parent) for path in sorted(done.glob("cells/*/*/cell.json"))])
    start = {cell.seed: [row["response"] for row in cell.rows] for cell in found.cells if cell.method == "start"}
    still = compare(SUITE, ["dpo(learning_rate=1e-12)"], run_dir=done.parent / "still", **ARGUMENTS)
    for each in still.cells:
        assert [row["response"] for row in each.rows] == start[each.seed]
    assert start[0] != start[1]
    (difference,) = still.differences
    assert difference.difference.mean == 0.0
    assert not difference.sure


def test_a_second_call_makes_nothing_and_a_third_seed_only_its_own(done: Path, tmp_path: Path) -> None:
    before, text = stages(done), written(done)
    compare(SUITE, [IMITATES, PAIRS], run_dir=done, **ARGUMENTS)
    assert stages(done) == before
    assert written(done) == text
    more = shutil.copytree(done, tmp_path / "more")
    kept = set(stages(more))
    found = compare(SUITE, [PAIRS], run_dir=more, **{**ARGUMENTS, "seeds": 3})
    assert {Path(path).parents[1].name for path in set(stages(more)) - kept} == {"s2"}
    assert [each.seeds for each in found.standings] == [(0, 1, 2), (0, 1, 2)]


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(done: Path, tmp_path: Path) -> None:
    """Starts two interpreters, each with torch."""
    compare(SUITE, [IMITATES, PAIRS], run_dir=tmp_path / "two", processes=2, **ARGUMENTS)
    assert written(tmp_path / "two") == written(done)


def test_what_was_interrupted_goes_on_to_the_same_bytes(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, work = [], Improve.work

    def interrupted(self: Improve, place: Any) -> Any:
        made.append(place.name)
        if len(made) == 2:
            raise KeyboardInterrupt
        return work(self, place)

    monkeypatch.setattr(Improve, "work", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(SUITE, [IMITATES, PAIRS], run_dir=tmp_path / "run", **ARGUMENTS)
    compare(SUITE, [IMITATES, PAIRS], run_dir=tmp_path / "run", **ARGUMENTS)
    assert len(made) == 2 + 3
    assert written(tmp_path / "run") == written(done)


def test_a_failed_cell_says_why_and_stops_nothing(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, improve = shutil.copytree(done, tmp_path / "run"), cells._improve

    def failing(run: Any, suite: Any, current: Any, v0: Any, step: Any, *rest: Any) -> Any:
        if step.name == "kto" and run.seed == 1:
            raise DataError("it has no labels", where="row 3")
        return improve(run, suite, current, v0, step, *rest)

    monkeypatch.setattr(cells, "_improve", failing)
    found = compare(SUITE, [PAIRS, "kto(batch_size=4)"], run_dir=folder, **ARGUMENTS)
    by_name = {each.method: each for each in found.standings}
    assert by_name["kto(batch_size=4)"].seeds == (0,)
    assert "row 3: it has no labels" in by_name["kto(batch_size=4)"].failed[1]
    assert by_name[PAIRS].seeds == (0, 1)
    assert not found.nothing
    assert conclude(folder, [cell for cell in found.cells if cell.failed]).nothing
    assert "kto failed under seed 1: DataError: row 3: it has no labels" in found.table()
    assert "it has no labels" in found.page.read_text()
    monkeypatch.undo()
    again = compare(SUITE, [PAIRS, "kto(batch_size=4)"], run_dir=folder, **ARGUMENTS)
    assert not any(each.failed for each in again.standings)


def test_folders_of_two_machines_are_one_comparison(done: Path, tmp_path: Path) -> None:
    parts = []
    for seed in (0, 1):
        parts.append(shutil.copytree(done, tmp_path / f"machine{seed}"))
        compare(SUITE, [IMITATES, PAIRS], run_dir=parts[-1], **{**ARGUMENTS, "seeds": [seed]})
    merged = merge_comparisons(parts, tmp_path / "merged")
    assert merged.table() == compare(SUITE, [IMITATES, PAIRS], run_dir=done, **ARGUMENTS).table()
    assert merged.page.is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"suite": "0123456789abcdef"}, r"suite .*01234567.* and not"),
        ({"policy": "fedcba98"}, r"policy tiny \(fedcba98\) and not"),
        ({"versions": {"alignkit-dpo": "9.9"}}, r"alignkit-dpo 9\.9 and not"),
        ({"conditions": {"budget": {"flops": 5.0}}}, r"budget flops=5 and not generated_tokens=200000"),
        ({"conditions": {"temperature": 0.5}}, r"temperature 0\.5 and not 1\.0"),
    ],
)
def test_cells_that_are_not_comparable_are_refused_with_the_reason(
    done: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    other = shutil.copytree(done, tmp_path / "other")
    for path in other.glob("cells/*/*/cell.json"):
        record = json.loads(path.read_text())
        for name, value in change.items():
            record[name] = {**record[name], **value} if isinstance(value, dict) else value
        path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=said):
        merge_comparisons([done, other], tmp_path / "merged")


def test_what_was_merged_may_be_merged_again(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1, 2):
        shutil.copytree(done, f"machine{seed}")
        compare(SUITE, [PAIRS], run_dir=f"machine{seed}", **{**ARGUMENTS, "seeds": [seed]})
    merge_comparisons(["machine0", "machine1"], "few")
    found = merge_comparisons([tmp_path / "few", "machine2"], "all")
    assert [each.seeds for each in found.standings] == [(0, 1, 2)] * 2
    assert json.loads(Path("all/comparison.json").read_text())["cells"][0]["folder"].startswith("../machine0/cells/")


def test_trials_are_merged_and_methods_are_tuned_alike(done: Path, tmp_path: Path) -> None:
    parts = []
    for seed, rows in ((0, 2), (1, 2), (1, 0)):
        parts.append(shutil.copytree(done, tmp_path / f"{len(parts)}"))
        compare(SUITE, [PAIRS], run_dir=parts[-1], **{**ARGUMENTS, "seeds": [seed]})
        written = json.loads((parts[-1] / "comparison.json").read_text())
        trial = {"suite": "another", "settings": ["dpo"], "score": 0.5, "reason": "", "spent": {}}
        written["tuning"] = {PAIRS: [trial] * rows} if rows else {}
        (parts[-1] / "comparison.json").write_text(json.dumps(written))
    found = merge_comparisons(parts[:2], tmp_path / "merged")
    assert {each.method: each.trials for each in found.standings} == {"start": 0, PAIRS: 2}
    assert command(found).endswith("--tune 2 --tune-on another")
    with pytest.raises(ConfigError, match=r"tuned in 0 trials, and those of .* in 2"):
        merge_comparisons([parts[0], parts[2]], tmp_path / "merged")


def test_a_plugin_of_one_machine_alone_hinders_no_merge(done: Path, tmp_path: Path) -> None:
    parts = [shutil.copytree(done, tmp_path / f"machine{k}") for k in range(2)]
    for path in parts[1].glob("cells/*/*/cell.json"):
        record = json.loads(path.read_text())
        record["versions"]["alignkit-strangers"] = "0.1"
        path.write_text(json.dumps(record))
    assert len(merge_comparisons(parts, tmp_path / "merged").standings) == 3


def test_scores_that_are_missing_are_told_and_take_no_other_method_with_them(done: Path) -> None:
    every = [read_cell(path.parent) for path in sorted(done.glob("cells/*/*/cell.json"))]
    silent, gap = (next(cell for cell in every if cell.method == method) for method in (PAIRS, IMITATES))
    for row in silent.rows:
        row["scores"]["gold"] = None
    gap.rows[0]["scores"]["gold"] = None
    found = conclude(done, every)
    by_name = {each.method: each for each in found.standings}
    assert by_name[PAIRS].failed == {silent.seed: "none of its answers has the score gold"}
    assert [by_name[name].seeds for name in (IMITATES, "start")] == [(0, 1), (0, 1)]
    assert found.left_out == 1
    assert "Prompts without gold in some cell, left out of all: 1." in leaderboard(found)


def test_suites_that_score_otherwise_are_told_apart() -> None:
    half, third = (open_suite(default_host(), f"enumerable(beta={beta})") for beta in (0.5, 0.3))
    assert half.prompts.key() == third.prompts.key()
    assert suite_digest(half) != suite_digest(third)


def test_the_gap_of_a_whole_problem_is_of_each_seeds_mean(done: Path) -> None:
    """What one prompt adds may be above 1, where the mean of all is not."""
    cells_ = [read_cell(path.parent) for path in sorted(done.glob("cells/*/*/cell.json"))]
    for cell in cells_:
        cell.record["whole"] = True
        for k, row in enumerate(cell.rows):
            row["scores"]["gold"] = 1.5 if k == 0 else 0.25
    found = conclude(done, cells_)
    for each in found.standings:
        assert each.gap is not None
        assert each.mean is not None
        assert each.gap.mean == pytest.approx(1 - each.mean.mean)
    assert "gap to 1" not in leaderboard(found)


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", 3), ("5,7", [5, 7]), ("5-8", [5, 6, 7, 8]), ("7,", [7]), ("0,4-5", [0, 4, 5])]
)
def test_seeds_are_a_number_or_named(text: str, seeds: Any) -> None:
    assert cli._parser().parse_args(["compare", "toy", "a", "--seeds", text]).seeds == seeds


@pytest.mark.parametrize("text", ["-3", "five", "1-2-3", ","])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(SystemExit):
        cli._parser().parse_args(["compare", "toy", "a", f"--seeds={text}"])


def test_the_command_that_is_shown_makes_the_same_cells(done: Path) -> None:
    every = [read_cell(path.parent) for path in sorted(done.glob("cells/*/*/cell.json"))]
    for seeds, words in (((0, 1), "--seeds 2"), ((1,), "--seeds 1, --policy")):
        assert words in command(conclude(done, [cell for cell in every if cell.seed in seeds]))


def test_a_merge_needs_comparisons_and_of_one_writes_it_anew(done: Path, tmp_path: Path) -> None:
    merge_comparisons([done], tmp_path / "again")
    assert [(tmp_path / "again" / name).read_bytes() for name in WRITTEN[1:]] == written(done)[1:]
    with pytest.raises(ConfigError, match="no folder"):
        merge_comparisons([], tmp_path / "merged")
    with pytest.raises(DataError, match="no comparison"):
        merge_comparisons([done, tmp_path], tmp_path / "merged")


def test_the_page_is_one_file_with_everything(done: Path) -> None:
    page = (done / "comparison.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    allowed = re.search(r"script-src 'sha256-([^']+)'", page)
    assert script
    assert allowed
    assert base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() == allowed[1]
    for part in ("board", "differences", "kl", "curves", "costs", "answers", "made"):
        assert f'<section id="{part}"' in page
    assert page.count("data-method=") >= 3 * 8
    assert "tokens generated" in page


def test_charts_of_rows_can_be_read_on_a_telephone_and_hold_their_labels(done: Path) -> None:
    """A chart 560 units wide is shown at three fifths on a page of 400 points: its labels once were 7 points high, and
    the longest began left of the chart."""
    rows = [("m" * 80, 0, Interval(0.5, 0.4, 0.6, 2)), ("start", 1, Interval(0.2, 0.1, 0.3, 2))]
    drawn = {
        narrow: (charts.intervals(rows, 0.2, narrow), charts.shares([(rows[0][0], {"train": 2.0})], ["train"], narrow))
        for narrow in (False, True)
    }
    for narrow, both in drawn.items():
        for chart in both:
            svg = ElementTree.fromstring(chart)
            assert float(svg.attrib["viewBox"].split()[2]) == (340 if narrow else 560)
            for text in svg.iter("text"):
                length = 6.6 * len(text.text or "")  # of 11 units in a wide sans-serif
                begin = (
                    float(text.attrib["x"])
                    - length * {"tick": 0, "tick middle": 0.5, "tick end": 1}[text.attrib["class"]]
                )
                assert begin >= 0
                assert begin + length <= (340 if narrow else 560)
    page = (done / "comparison.html").read_text()
    assert page.count('class="narrow-chart"') == page.count('class="wide-chart"') == 2


# -- budgets -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Spends(Stage[Any]):
    """A stage that counts 60 tokens, or what it may."""

    verb: ClassVar[str] = "spends"
    makes: ClassVar[Any] = ("groups",)
    budget: Any = None

    def work(self, place: Any) -> dict[str, Any]:
        place.meter.add("generated_tokens", min(60, (self.budget or {}).get("generated_tokens", 60)))
        return {"budget": self.budget}

    def handle(self, made: Any) -> Any:
        return made


@dataclass(frozen=True, eq=False)
class Measures(Spends):
    """The same, of the comparison."""

    makes: ClassVar[Any] = ("evaluation",)


def test_each_stage_may_spend_what_is_left_and_measuring_is_free(tmp_path: Path) -> None:
    with CellRun(tmp_path, 0, {"generated_tokens": 100.0}) as run:
        assert run.make(Spends(name="a")).result["budget"] == {"generated_tokens": 100}
        run.make(Measures(name="b"))
        assert run.make(Spends(name="c")).result["budget"] == {"generated_tokens": 40}
        assert run.spent()["generated_tokens"] == 100.0
        with pytest.raises(BudgetSpent, match="generated_tokens is spent before d"):
            run.make(Spends(name="d"))
    assert [stage.spent("generated_tokens") for stage in run.made] == [60.0, 60.0, 40.0]


def test_nothing_is_sampled_for_a_stage_that_could_not_learn_from_it(tmp_path: Path) -> None:
    with CellRun(tmp_path, 0, {"generated_tokens": 60.0}) as run:
        v0 = run.policy("tiny")
        run.make(Spends(name="a"))
        with pytest.raises(BudgetSpent, match=r"spent before b.*Remedy"):
            run.sample(v0, Groups.from_prompts(["say x"]), name="b")
        assert run.spent()["generated_tokens"] == 60.0


def test_what_a_budget_left_undone_or_could_not_cut_is_said(tmp_path: Path) -> None:
    """A round that took no step was once called cut, and what was spent beyond the budget stood in a column alone."""
    given = {**ARGUMENTS, "seeds": 1, "budget": {"trained_tokens": 1}}
    words = compare(SUITE, [PAIRS], run_dir=tmp_path / "none", **given).table()
    assert f"{PAIRS.partition('(')[0]}: the budget left no optimizer step" in words
    assert "was cut at the budget" not in words
    record = {
        "conditions": {"budget": {"flops": 40_000_000, "reward_calls": 9}},
        "spent": {"flops": 53_400_000, "reward_calls": 9},
        "path": [
            {"spent": {"optimizer_steps": 2}, "stopped": "budget"},
            {"spent": {"optimizer_steps": 2}, "stopped": "budget"},
        ],
    }
    said = _notes([Done(tmp_path, "m", 0, record)])
    assert said == (
        "the last round was cut at the budget",
        "the budget left no optimizer step",
        "53.4 M flops spent, of 40 M",
    )


def test_a_method_goes_on_until_its_budget_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def improve(run: Any, suite: Any, current: Any, v0: Any, step: Any, conditions: Any, number: int) -> Any:
        made = run.make(Spends(name=f"v{number}"))
        return type("Improved", (), {"policy": made, "result": made.result})()

    monkeypatch.setattr(cells, "_improve", improve)
    monkeypatch.setattr(cells, "_measured", lambda *args: {"version": args[-2], "by": args[-1]})
    steps = (default_host().resolve("optimizer", "dpo").name, "kto")
    for repeat, versions in ((False, 2), (True, 4)):
        conditions = Conditions(SUITE, "tiny", {"generated_tokens": 200.0}, repeat=repeat)
        path: list[Any] = []
        with CellRun(tmp_path / str(repeat), 0, conditions.budget) as run:
            method = Method("both", tuple(read_method(default_host(), ",".join(steps), SUITE_OBJECT, 1.0).steps))
            cells._chain(run, SUITE_OBJECT, None, Cell(conditions, method, 0, tmp_path), path)  # type: ignore[arg-type]
        assert len(path) == versions
        assert [row["by"].split("(")[0] for row in path] == ["dpo", "kto", "dpo", "kto"][:versions]
    assert "is spent before v5" in path[-1]["note"]


@pytest.mark.parametrize(
    ("budget", "most"), [("generated_tokens=200", 200 + 4 * 16), ("reward_calls=14", 12)], ids=["tokens", "calls"]
)
def test_what_samples_nothing_learns_from_the_samples_that_its_budget_pays_for(
    tmp_path: Path, budget: str, most: int
) -> None:
    method = "dpo(learning_rate=4e-3, batch_size=4)"
    arguments = {**ARGUMENTS, "seeds": 1, "samples": 4, "max_new_tokens": 16}
    found = compare(SUITE, [method], run_dir=tmp_path, budget=budget, **arguments)
    [each] = [each for each in found.standings if each.method == method]
    assert not each.failed
    name, _, limit = budget.partition("=")
    assert int(limit) - 4 < each.spent[name] < most + 1
    assert each.spent["optimizer_steps"] > 0
    assert f"{method.partition('(')[0]}: the last round was cut at the budget" in found.table()


PROMPTS = [f"say {k}" for k in range(8)]
SUITE_OBJECT = Suite(Groups.from_prompts(PROMPTS), Groups.from_prompts(["say x", "say y"]), {"gold": len})


def test_budgets_are_read_as_they_are_written() -> None:
    assert budget_of("generated_tokens=200k") == {"generated_tokens": 200_000}
    assert budget_of(["flops=1.5T", "reward_calls=7"]) == {"flops": 1_500_000_000_000, "reward_calls": 7}
    assert budget_of({"optimizer_steps": 3}) == {"optimizer_steps": 3}
    assert budget_of([]) == budget_of(None) == {}
    for text, said in (("tokens=3", "not counted"), ("flops", "flops=''"), ("flops=0", "flops='0'")):
        with pytest.raises(ConfigError, match=said):
            budget_of(text)


# -- methods -----------------------------------------------------------------------------------------------------------


def test_a_method_is_an_optimizer_a_chain_or_a_recipe() -> None:
    host = default_host()
    found = read_method(host, "dpo(epochs=3),kto", replace(SUITE_OBJECT, settings={"dpo": {"epochs": 9}}), 0.5)
    assert [str(step) for step in found.steps] == ["dpo(epochs=3, temperature=0.5)", "kto(temperature=0.5)"]
    settled = read_method(host, "dpo", replace(SUITE_OBJECT, settings={"dpo": {"epochs": 9}}), 0.5)
    assert settled.steps[0].params["epochs"] == 9
    assert read_method(host, "llama2(heldout=4)", SUITE_OBJECT, 1.0).recipe
    with pytest.raises(PluginError, match="and no recipe is; did you mean 'llama2'"):
        read_method(host, "llama", SUITE_OBJECT, 1.0)
    with pytest.raises(PluginError, match="epoch"):
        read_method(host, "dpo(epoch=3)", SUITE_OBJECT, 1.0)


@pytest.mark.parametrize(
    ("methods", "arguments", "said"),
    [
        ([], {}, "no method"),
        ([PAIRS, PAIRS], {}, "two methods are called"),
        ([PAIRS], {"policy": None}, "which policy"),
        ([PAIRS], {"seeds": 0}, "no seeds"),
        ([PAIRS], {"processes": 0}, "processes=0"),
        ([PAIRS], {"budget": "steps=4"}, "not counted"),
        ([PAIRS], {"answers": 0}, "answers=0"),
        ([PAIRS], {"lora": -1}, "lora=-1"),
        ([PAIRS], {"max_new_tokens": 0}, "max_new_tokens=0"),  # 0 once meant the suite's
        ([PAIRS], {"samples": 1}, "samples=1: dpo compares responses"),
        ([PAIRS, "llama2,ppo"], {}, "llama2 is a recipe among several steps"),
        ([PAIRS], {"run_dir": Path(__file__)}, "is a file"),
        ([PAIRS], {"run_dir": Path(__file__) / "run"}, "is a file"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(
    tmp_path: Path, methods: list[str], arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        compare(SUITE, methods, **{**ARGUMENTS, "run_dir": tmp_path / "run", **arguments})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "arguments", "said"),
    [
        (PAIRS, {"sampler": "defalt"}, "did you mean default"),
        (PAIRS, {"tune": 2, "tune_on": "embeded"}, "did you mean embedded"),
        ("llama2(heldot=3)", {}, "'heldot'; did you mean 'heldout'"),
        ("llama2(heldout='x')", {}, "heldout is int"),
    ],
)
def test_a_misspelled_name_is_refused_before_any_work(
    tmp_path: Path, method: str, arguments: dict[str, Any], said: str
) -> None:
    """Each of these once failed in every cell, a recipe's argument as a bare TypeError."""
    if "tune" in arguments:
        pytest.importorskip("optuna", reason="alignkit[compare] is not installed")
    with pytest.raises(PluginError, match=said):
        compare(SUITE, [method], run_dir=tmp_path / "run", **{**ARGUMENTS, **arguments})
    assert not (tmp_path / "run").exists()


# -- tuning ------------------------------------------------------------------------------------------------------------


def test_the_search_is_of_what_is_declared_and_not_written() -> None:
    host = default_host()
    rate, epochs = tuning.ranges_of(host, read_method(host, "dpo(loss=ipo)", SUITE_OBJECT, 1.0))
    assert (epochs.name, epochs.low, epochs.whole) == ("epochs", 1, True)
    assert (rate.name, rate.log, rate.whole) == ("learning_rate", True, False)
    now = host.build("optimizer", "dpo").learning_rate
    assert (rate.low, rate.high) == pytest.approx((0.2 * now, 5 * now), rel=0.01)
    written = read_method(host, "dpo(learning_rate=1e-3)", SUITE_OBJECT, 1.0)
    assert [each.name for each in tuning.ranges_of(host, written)] == ["epochs"]


@pytest.mark.parametrize(
    ("space", "now", "expected"),
    [
        ((0.1, 0.5), 0.2, tuning.Range("x", 0, 0.1, 0.5)),
        ((1, 4), 2, tuning.Range("x", 0, 1, 4, whole=True)),
        ((1e-4, 1e-2, "log"), 1e-3, tuning.Range("x", 0, 1e-4, 1e-2, log=True)),
        (("times", 0.5, 2.0), 0.3, tuning.Range("x", 0, 0.15, 0.6, log=True)),
        (["a", "b"], "a", tuning.Range("x", 0, choices=("a", "b"))),
    ],
)
def test_a_space_is_a_range_multiples_or_choices(space: Any, now: Any, expected: tuning.Range) -> None:
    assert tuning._range("x", 0, space, now, "here") == expected


@pytest.mark.parametrize("space", [(2.0, 1.0), (1.0,), "learning_rate", (1.0, 2.0, "square"), []])
def test_what_is_no_space_is_refused(space: Any) -> None:
    with pytest.raises(PluginError, match="is no range"):
        tuning._range("x", 0, space, 1.0, "here")


def test_trials_begin_with_what_is_set_and_keep_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score is highest at a rate of 3e-3, three times what is set."""

    def trial(task: Any, method: Method) -> dict[str, Any]:
        rate = method.steps[0].params.get("learning_rate", 1e-3)
        tried.append(rate)
        failed = len(tried) == 3
        return {"settings": [str(method.steps[0])], "score": None if failed else -abs(rate - 3e-3), "reason": "x"}

    tried: list[float] = []
    monkeypatch.setattr(tuning, "_trial", trial)
    host = default_host()
    method = read_method(host, "dpo", replace(SUITE_OBJECT, settings={"dpo": {"learning_rate": 1e-3}}), 1.0)
    task = tuning.Search(tmp_path, Conditions(SUITE, "tiny"), method, tuning.ranges_of(host, method), 12)
    found, first = tuning.search(task), list(tried)
    assert first[0] == 1e-3
    assert len(first) == len(found.trials) == 12
    best = found.method.steps[0].params["learning_rate"]
    assert abs(best - 3e-3) == min(abs(rate - 3e-3) for k, rate in enumerate(first) if k != 2)
    tried.clear()
    assert tuning.search(task).method == found.method
    assert tried == first


def test_settings_are_tried_on_prompts_that_are_not_the_tests() -> None:
    whole, part = open_suite(default_host(), SUITE), open_suite(default_host(), SUITE, tuning=True)
    taught, measured, test = (
        {row["prompt_id"] for row in groups} for groups in (part.prompts, part.heldout, whole.heldout)
    )
    assert (len(taught), len(measured)) == (6, 2)
    assert not taught & measured
    assert not (taught | measured) & test


def test_a_suite_without_prompts_to_spare_is_not_tuned_on() -> None:
    whole = replace(SUITE_OBJECT, heldout=SUITE_OBJECT.prompts)
    others = replace(SUITE_OBJECT, heldout=Groups.from_prompts(["say z"]))
    few = replace(SUITE_OBJECT, prompts=SUITE_OBJECT.prompts.select([0, 1, 2]))
    for suite, other in ((whole, None), (few, None), (whole, whole), (SUITE_OBJECT, SUITE_OBJECT)):
        with pytest.raises(ConfigError, match="chosen by the test itself"):
            tuning.check_tuning(suite, other)
    tuning.check_tuning(SUITE_OBJECT, None)
    tuning.check_tuning(whole, others)
    tuning.check_tuning(*(open_suite(default_host(), f"enumerable(seed={seed})") for seed in (7, 8)))


def test_tuning_runs_end_to_end(done: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(done, tmp_path / "run")
    found = compare(
        SUITE, [PAIRS.replace("learning_rate=4e-3, ", "")], tune=2, run_dir=folder, **{**ARGUMENTS, "seeds": 1}
    )
    (rows,) = found.trials.values()
    assert [row["score"] is not None for row in rows] == [True, True]
    assert len({row["settings"][0] for row in rows}) == 2
    assert max(each.trials for each in found.standings) == 2
    assert "2 trials on other prompts" in found.page.read_text()


# -- workers, progress, command line -----------------------------------------------------------------------------------


def die(item: str) -> str:
    if item == "dies":
        os._exit(9)
    return f"{item} done"


@pytest.mark.slow
def test_a_killed_process_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts seven interpreters."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))  # where they find `die`, however pytest was started

    def watch(item: str, what: str, _: Any) -> None:
        told.append((item, what))

    told: list[tuple[str, str]] = []
    items = ["a", "dies", "b", "c", "d"]
    found = workers.run_all(die, items, 2, watch, 1, lambda item, why: f"{item}: {why}")
    assert [found[0], *found[2:]] == ["a done", "b done", "c done", "d done"]
    assert "was killed" in found[1]
    for item in items:
        begun, ended = told.index((item, "begins")), told.index((item, "ended"))
        assert begun < ended
        assert told.count((item, "ended")) == 1


def test_progress_counts_cells_and_the_time_that_is_left(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    conditions = Conditions(SUITE, "tiny")
    three = [Cell(conditions, Method(name, ()), 0, tmp_path) for name in ("a", "b", "\x1b[31mc")]
    progress = Progress()
    with progress.over(three):
        for each, status in zip(three, ("complete", "failed", "complete"), strict=True):
            progress.watch(each, "begins", None)
            progress.watch(each, "ended", {"status": status, "reason": "no memory"})
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"a s0: done \(.*\); 1 of 3, about .* left", lines[0])
    assert "b s0: failed: no memory; 2 of 3" in lines[1]
    assert "3 of 3" in lines[2]
    assert "\x1b" not in lines[2]


def test_the_command_line_takes_what_python_takes(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    seen: dict[str, Any] = {}

    def fake(suite: str, methods: list[str], **arguments: Any) -> Any:
        seen.update(arguments, suite=suite, methods=methods)
        return type("Found", (), {"table": lambda self: "the table", "page": "page.html", "nothing": "f" in methods})()

    monkeypatch.setattr("alignkit.comparison.compare", fake)
    words = ["compare", "toy", "a", "b,c", "--seeds", "3", "--budget", "flops=1G", "--tune", "4", "--processes", "2"]
    assert cli.main([*words, "--policy", "tiny", "--repeat"]) == 0
    assert (seen["suite"], seen["methods"], seen["seeds"]) == ("toy", ["a", "b,c"], 3)
    assert (seen["budget"], seen["tune"], seen["processes"], seen["repeat"]) == (["flops=1G"], 4, 2, True)
    assert "the table" in capsys.readouterr().out
    assert cli.main(["compare", "toy", "f"]) == 1
    assert cli.main(["compare"]) == 2
    assert cli.main(["compare", "toy", "--from", "a", "b"]) == 2


# -- what methods are called -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "short"),
    [
        (["ppo(kl_coef=0.1)", "dpo", "start"], ["ppo", "dpo", "start"]),
        (["ppo(kl_coef=0.1)", "ppo"], ["ppo(kl_coef=0.1)", "ppo"]),
        (["ppo(kl_coef=0.1, epochs=2)", "ppo(kl_coef=0.2, epochs=2)"], ["ppo(kl_coef=0.1)", "ppo(kl_coef=0.2)"]),
        (["rs(n=2),ppo(kl_coef=0.1)", "ppo(kl_coef=0.1)"], ["rs,ppo", "ppo"]),
        (["a(x=b(y=1))", "a(x=b(y=2))"], ["a(x=b(y=1))", "a(x=b(y=2))"]),
        (["ppo(kl_coef=0.1)", "ppo(kl_coef=0.10)"], ["ppo(kl_coef=0.1)", "ppo(kl_coef=0.10)"]),
        (["start", "(no component"], ["start", "(no component"]),
    ],
)
def test_methods_are_called_by_what_tells_them_apart(labels: list[str], short: list[str]) -> None:
    assert list(called(labels).values()) == short


def test_a_method_called_in_short_is_spelled_out_below(done: Path) -> None:
    found = merge_comparisons([done], done.parent / "again")
    long = next(each.method for each in found.standings if "(" in each.method)
    name = long.partition("(")[0]
    assert f"{name} is {long}" in found.table()
    assert all(long not in row for row in found.table().splitlines()[:6]), "the rows have the name alone"
    assert long in json.dumps(found.to_json()), "what a program reads has the label as it was written"
    assert f">{name}</text>" in found.page.read_text()


def test_a_score_that_is_called_like_a_column_has_a_column_of_its_own() -> None:
    ours = {"mean", "rank", "flops"}
    assert _named_apart(["gold", "rank", "flops"], ours) == ["gold", "score.rank", "score.flops"]
    assert _named_apart(["score.rank", "rank"], ours) == ["score.rank", "score.score.rank"]


def test_a_note_is_said_once_over_the_cells_of_a_comparison(caplog: pytest.LogCaptureFixture) -> None:
    same = Groups.from_rows([{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]}] * 2)
    with said_once():
        for cell in range(3):
            refuse_or_drop(same, check_given(same), False, f"cell {cell}")
    assert len([each for each in caplog.messages if "AK-D20" in each]) == 1
    refuse_or_drop(same, check_given(same), False, "another")
    assert len([each for each in caplog.messages if "AK-D20" in each]) == 2
