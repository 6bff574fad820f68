"""The report: complete, the same bytes for the same run, and nothing that a model wrote is ever more than text."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import alignkit
from alignkit.errors import DataError
from alignkit.evaluation import accuracy_by_level, score_histogram, summarise_evaluation
from alignkit.groups import RATINGS
from alignkit.report import version_table, write_report
from alignkit.report.charts import padded, thinned, ticks
from alignkit.report.collect import collect
from alignkit.report.cost import costs
from alignkit.report.text import clipped, conversation, duration, number, visible

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "[x](javascript:alert(1)) <a href='javascript:alert(1)'>x</a>",
    "![](http://evil.example/beacon.png)",
    "</script></style></title></svg></details><!-- {{ 7*7 }} {% raw %}",
    "\u202e\u200b\x1b[31m\ud800\U000e0041\ufeff\x00",
    "' onload='alert(1)' style='background:url(http://evil.example)",
)


MADE = {
    "policy": ["policy"],
    "improve": ["policy", "groups"],
    "train_reward": ["reward"],
    "evaluate": ["evaluation"],
}


class Outline(HTMLParser):
    """Every element with its attributes, and the text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple]] = []
        self.text: list[str] = []
        self.other: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        self.other.append(data)


def outline(page: Path) -> Outline:
    parser = Outline()
    parser.feed(page.read_text(encoding="utf-8"))
    parser.close()
    return parser


class FakeRun:
    """Writes the files a run writes; `mark` is put behind every text that comes from data."""

    def __init__(self, folder: Path, mark: str = "") -> None:
        self.folder, self.mark, self.stages, self.rng = folder, mark, [], random.Random(0)
        self.info: dict[str, Any] = {"status": "complete", "name": "llama2" + mark}

    def stage(self, name: str, verb: str, result: dict | None = None, **files: list[dict]) -> Path:
        folder = self.folder / "stages" / f"{len(self.stages) + 1:04d}-{verb}-ab12cd34"
        folder.mkdir(parents=True)
        self.stages.append(folder.name)
        info = {
            "name": name + self.mark,
            "verb": verb,
            "key": "ab12cd34",
            "status": "complete",
            "seconds": 12.3,
            "started": "2025-06-01T10:00:00+00:00",
            "made": MADE[verb],
            "config": {"learning_rate": 1e-4, "x": "y" + self.mark},
            "inputs": {"policy": "0001" + self.mark},
            "result": result or {},
        }
        (folder / "stage.json").write_text(json.dumps(info, sort_keys=True))
        for file, rows in files.items():
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    def reward_model(self, name: str) -> None:
        chosen, rejected = ([self.rng.gauss(mean, 1) for _ in range(40)] for mean in (0.5, -0.5))
        result = accuracy_by_level(chosen, rejected, [RATINGS[i % 4] for i in range(40)])
        extra = {"histogram": score_histogram(chosen, rejected), "pairs": 100, "eval_pairs": 40}
        self.stage(
            name, "train_reward", {**result, **extra}, metrics=[{"step": i, "loss": 1 / (1 + i)} for i in range(9)]
        )

    def improve(self, name: str) -> None:
        steps = [
            {"step": i, "round": i // 4, "reward_mean": i / 8, "kl_per_token": 0.01, "odd_metric": 1} for i in range(8)
        ]
        self.stage(name, "improve", metrics=[*steps, {"round_end": 1, "seconds": 2.0}])

    def rows(self, version: int, prompts: int = 20) -> list[dict]:
        return [
            {
                "prompt_id": f"{p:04d}",
                "prompt": [{"role": "user", "content": f"question {p}{self.mark}"}],
                "sample": s,
                "tags": ["unsafe" + self.mark] if p % 5 == 0 else [],
                "finished": p % 3 > 0,
                "response_length": 10 + p,
                "kl": 0.7 * version,
                "response": f"answer {version}.{p}{self.mark}",
                "scores": {"gold" + self.mark: p / 20 + version + s, "safety": -1.0 * version},
            }
            for p in range(prompts)
            for s in range(2)
        ]

    def evaluate(self, version: int) -> Path:
        first = self.rows(0) if version else None
        result = {
            "label": f"V{version}{self.mark}",
            **summarise_evaluation(self.rows(version), first, resamples=200),
        }
        return self.stage(f"v{version}/heldout", "evaluate", result, evaluation=self.rows(version))

    def close(self) -> Path:
        info = {
            "format": 2,
            "seed": 7,
            "created": "2025-06-01T10:00:00+00:00",
            "precision": "32-true",
            "trainer": {"devices": 1},
            "versions": {"alignkit": "0.1.0", "my-plugin": "3.2.1"},
            "command": "alignkit run" + self.mark,
            "stages": self.stages,
        }
        self.folder.mkdir(exist_ok=True)
        (self.folder / "run.json").write_text(json.dumps(info | self.info))
        return self.folder


def full_run(folder: Path, mark: str = "") -> Path:
    run = FakeRun(folder, mark)
    run.stage("v0", "policy")
    run.evaluate(0)
    for version in (1, 2):
        run.reward_model(f"v{version}/helpfulness")
        run.improve(f"v{version}")
        run.evaluate(version)
    return run.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_run(tmp_path_factory.mktemp("plain"))


def test_the_page_tells_what_ran_and_what_came_of_it(plain):
    text = "".join(outline(write_report(plain)).text)
    stages = ("v0", "v1/helpfulness", "v1", "v1/heldout", "v2/heldout")
    for expected in (
        *stages,
        "V0",
        "V1",
        "V2",
        "my-plugin 3.2.1",
        "32-true",
        "0004-improve-ab12cd34",
        "12.3 s",
        "odd_metric",
    ):
        assert expected in text
    for heading in ("Versions", "Answers", "Reward models", "Best of N", "Curves", "What ran", "How to read this"):
        assert heading in text
    assert "V2 − V0 on gold: +2" in text
    assert "V1 − V0V2 − V1V2 − V0" in text
    assert "The whole interval lies above zero" in text
    assert "answer 0.0" in text
    assert "answer 2.0" in text


@pytest.mark.parametrize("mark", HOSTILE)
def test_no_element_and_no_attribute_comes_from_data(plain, tmp_path, mark):
    benign, hostile = outline(write_report(plain)), outline(write_report(full_run(tmp_path / "run", mark)))
    assert hostile.elements == benign.elements
    assert hostile.other == benign.other == []
    assert visible(mark) in "".join(hostile.text)


def test_nothing_is_loaded_and_nothing_can_run(tmp_path):
    page = write_report(full_run(tmp_path / "run", "".join(HOSTILE)))
    elements = outline(page).elements
    tags = {tag for tag, _ in elements}
    assert not tags & {
        "script",
        "img",
        "iframe",
        "link",
        "object",
        "embed",
        "form",
        "base",
        "image",
        "use",
        "foreignobject",
    }
    for _, attributes in elements:
        for name, value in attributes:
            assert not name.startswith("on")
            assert name not in ("src", "srcset", "style", "background")
            assert name != "href" or re.fullmatch(r"#[a-z-]+", value or "")
    policy = dict(next(dict(a) for t, a in elements if t == "meta" and ("http-equiv", "Content-Security-Policy") in a))
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    style = re.search(r"<style>(.*?)</style>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert style
    assert not re.search(r"url\(|@import|http", style[1])


METERS = (
    {
        "counts": {"generated_tokens": 1500, "optimizer_steps": 3, "<b>": 7},
        "flops": {"forward": 2_000_000, "backward": 500_000},
        "seconds": {"generate": 6.0, "train": 2.0, "other": -1, "<script>": 9, "write": "x"},
        "peak_memory": {"cpu": 512_000_000, "cuda": 3_000_000_000},
    },
    {"counts": {"optimizer_steps": True}, "seconds": {"load": 4.0}, "peak_memory": "much"},
    "none",
)


def test_what_each_stage_cost_is_told_with_where_its_seconds_went(tmp_path):
    run = FakeRun(tmp_path)
    results = ({"stopped": "budget", "stopped_by": "flops<i>"}, {}, {})
    for place, (meter, result) in enumerate(zip(METERS, results, strict=True)):
        folder = run.stage(f"v{place}", "improve", result)
        info = json.loads((folder / "stage.json").read_text())
        (folder / "stage.json").write_text(json.dumps({**info, "meter": meter}))
    found = costs(collect(run.close()))
    assert [head for head, _ in found["columns"]] == ["Sampled", "Steps", "FLOP"]
    assert [(row["amounts"], row["phases"]) for row in found["rows"]] == [
        ([1500, 3, 2_500_000], [("generate", 6.0), ("train", 2.0)]),
        ([0, 0, 0], [("load", 4.0)]),
    ]
    assert (found["total"], found["memory"]) == ([1500, 3, 2_500_000], 3_000_000_000)
    assert [name for name, _, _ in found["phases"]] == ["load", "generate", "train"]
    bars = [re.findall(r'class="p(\d)"[^>]* width="([\d.]+)"', row["bar"]) for row in found["rows"]]
    assert bars == [[("1", "750.00"), ("5", "250.00")], [("0", "500.00")]]  # the longest fills its place
    page = write_report(tmp_path)
    text = " ".join("".join(outline(page).text).split())
    assert "1.5 k" in text
    assert "2.5 M" in text
    assert "3 GB" in text
    assert "v0 stopped because its budget of flops<i> was spent" in text
    assert "<b>" not in text
    assert "<script>" not in text
    assert costs(collect(FakeRun(tmp_path / "empty").close())) is None


PROFILED = (
    {
        "seconds": {"generate": 6.0, "score": 1.0, "train": 2.0},
        "work": {
            "generate": {"generated_tokens": 600, "scored_tokens": 9, "flops": 12_000},
            "score": {"scored_tokens": 50, "<b>": 3, "flops": "much"},
            "<i>": {"flops": 4},
        },
        "ceiling": {"flops": 10_000, "dtype": "bfloat16"},
    },
    {
        "seconds": {"generate": 2.0, "load": 9.0},
        "work": {"generate": {"generated_tokens": 200, "flops": 8_000}},
        "ceiling": {"flops": 30_000, "dtype": "float32"},
    },
    {"seconds": {"generate": 2.0}, "work": [], "ceiling": "high"},
)


def test_where_time_went_is_told_by_phase_with_rates_and_the_share_of_what_the_machine_reaches(tmp_path):
    run = FakeRun(tmp_path)
    for place, meter in enumerate(PROFILED):
        folder = run.stage(f"v{place}", "improve", {})
        info = json.loads((folder / "stage.json").read_text())
        (folder / "stage.json").write_text(json.dumps({**info, "meter": meter}))
    found = costs(collect(run.close()))
    rows = {row["phase"]: row for row in found["profile"]}
    assert list(rows) == ["generate", "load", "train", "score"]  # the longest first
    sampled = rows["generate"]
    assert (sampled["seconds"], sampled["tokens"]) == (10.0, 800)
    assert sampled["share"] == pytest.approx(10 / 22)
    assert (sampled["token_rate"], sampled["flop_rate"]) == (80.0, 2000.0)
    # of 6 s at 10,000 and 2 s at 30,000 operations a second; the third stage does not say what its machine reaches
    assert sampled["of_ceiling"] == pytest.approx(20_000 / (6 * 10_000 + 2 * 30_000))
    assert (rows["score"]["tokens"], rows["score"]["flop_rate"], rows["score"]["of_ceiling"]) == (50, None, None)
    assert (rows["train"]["tokens"], rows["load"]["token_rate"]) == (0, None)
    assert found["ceilings"] == ["10 kFLOP/s in bfloat16", "30 kFLOP/s in float32"]
    text = " ".join("".join(outline(write_report(tmp_path)).text).split())
    assert "generate10.0 s45%800802 k17%" in text
    assert "10 kFLOP/s in bfloat16; 30 kFLOP/s in float32" in text


def test_the_same_folder_gives_the_same_bytes(plain, tmp_path):
    first = write_report(plain).read_bytes()
    assert write_report(plain).read_bytes() == first
    assert write_report(full_run(tmp_path / "again")).read_bytes() == first
    assert not list(plain.glob(".report*"))


def test_links_inside_the_page_lead_somewhere(plain):
    elements = outline(write_report(plain)).elements
    targets = {f"#{dict(attributes)['id']}" for _, attributes in elements if "id" in dict(attributes)}
    assert {dict(attributes)["href"] for tag, attributes in elements if tag == "a"} == targets


def test_an_empty_run_says_that_there_is_nothing_yet(tmp_path):
    text = "".join(outline(write_report(tmp_path)).text)
    assert "There is nothing yet" in text
    assert "Versions" not in text
    assert version_table(tmp_path) == "No version was evaluated yet."


def test_absent_parts_leave_no_heading(tmp_path):
    run = FakeRun(tmp_path)
    run.stage("v0", "policy")
    text = "".join(outline(write_report(run.close())).text)
    assert "What ran" in text
    for heading in ("Reward models", "Best of N", "Curves", "Answers", "side by side", " − V0"):
        assert heading not in text


@pytest.mark.parametrize(
    ("status", "says"),
    [("running", "not finished"), ("failed", "This run failed"), ("interrupted", "This run was interrupted")],
)
def test_a_run_that_is_not_complete_says_so(tmp_path, status, says):
    run = FakeRun(tmp_path)
    run.evaluate(0)
    run.info["status"] = status
    assert says in "".join(outline(write_report(run.close())).text)


def test_torn_and_missing_files_are_told_and_the_rest_is_shown(tmp_path):
    run = FakeRun(tmp_path)
    run.improve("v1")
    metrics = tmp_path / "stages" / run.stages[0] / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 9, "lo')
    broken = run.evaluate(0)
    (broken / "stage.json").write_text("{")
    run.evaluate(1)
    run.stages += ["0009-gone-00000000", "../../etc", 5]
    view = collect(run.close())
    assert [stage.status for stage in view.stages] == ["complete", "unreadable", "complete", "not finished"]
    assert [version.label for version in view.versions] == ["V1"]
    text = "".join(outline(write_report(tmp_path)).text)
    for expected in (
        "metrics.jsonl: 1 line(s)",
        "stage.json cannot be read",
        "'../../etc' is not",
        "0009-gone-00000000",
    ):
        assert expected in text


def test_scores_that_are_not_numbers_are_told_and_never_drawn(tmp_path):
    run = FakeRun(tmp_path)
    folder = run.evaluate(0)
    run.evaluate(1)
    rows = run.rows(0)
    rows[0]["scores"]["gold"] = float("nan")
    rows[1] |= {"kl": None, "response_length": "many"}
    (folder / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(run.close()).read_text(encoding="utf-8")
    assert "1 score(s) are not finite numbers" in page
    assert "nan" not in " ".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', '{"format": 3}'])
def test_what_is_no_run_of_ours_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(DataError, match=r"run\.json"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        write_report(tmp_path / "nowhere")


def test_differences_and_means_are_worked_out_where_the_stage_has_no_summary(tmp_path):
    run = FakeRun(tmp_path)
    for version in (0, 1):
        run.stage(f"v{version}", "evaluate", {"label": f"V{version}"}, evaluation=run.rows(version))
    last = collect(run.close()).versions[-1]
    assert last.paired["gold"]["mean"] == pytest.approx(1.0)
    assert last.metrics["gold"]["n"] == 20


def test_lineage_names_the_stages_it_comes_from(tmp_path):
    run = FakeRun(tmp_path)
    parent, child = run.stage("v0/parent", "policy"), run.stage("v1", "improve")
    key, other = "0123456789abcdef" * 4, "f" * 64
    for folder, change in ((parent, {"key": key}), (child, {"inputs": {"policy": {"stage": key}, "data": other}})):
        info = json.loads((folder / "stage.json").read_text())
        (folder / "stage.json").write_text(json.dumps(info | change))
    text = "".join(outline(write_report(run.close())).text)
    assert '{"stage": "v0/parent"}' in text
    assert other not in text
    assert other[:12] in text


def test_versions_stand_in_their_order_and_equal_labels_are_told_apart(tmp_path):
    run = FakeRun(tmp_path)
    for version in (0, 2, 1):
        run.evaluate(version)
    run.stage("other", "evaluate", {"label": "V1"}, evaluation=run.rows(1))
    labels = [version.label for version in collect(run.close()).versions]
    assert labels == ["V0", "V2", "V1 (v1/heldout)", "V1 (other)"]


def test_the_terminal_table_has_every_version_and_fits(plain):
    lines = version_table(plain).splitlines()
    assert [line.split()[0] for line in lines if line.startswith("V")] == ["V0", "V1", "V2"]
    head, _, gold = lines[lines.index("") + 1 :][:3]
    assert head.split("  ")[0] == "difference"
    assert [" ".join(each.split()) for each in head.split("  ")[1:] if each] == ["V2 - V0", "V2 - V1"]
    assert gold.split() == ["gold", "+2.000", "[+2.000,", "+2.000]", "+1.000", "[+1.000,", "+1.000]"]
    assert "gold: rose from V0 to V2." in lines
    assert "safety: fell from V0 to V2." in lines
    assert lines[-1].startswith("Cost: KL 1.400 nats a response, ")
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("count", [3, 6, 15])
def test_the_terminal_table_fits_with_many_scores_and_shows_no_escapes(tmp_path, count):
    run = FakeRun(tmp_path)
    for version in (0, 1):
        rows = [
            row | {"scores": {f"score_number_{i:02d}\x1b[31m": 1.0 for i in range(count)}} for row in run.rows(version)
        ]
        run.stage("x", "evaluate", {"label": "V\n" * 50 + str(version)}, evaluation=rows)
    table = version_table(run.close())
    assert max(map(len, table.splitlines())) <= 100
    assert "\x1b" not in table


def test_hidden_characters_are_made_visible_and_others_are_kept():
    assert visible("a\u202eb\u200b\x1b\x00\ud800") == "a⟦U+202E⟧b⟦U+200B⟧⟦U+001B⟧⟦U+0000⟧⟦U+D800⟧"
    assert visible("tag\U000e0041 fill\u3164 vs\U000e0101") == "tag⟦U+E0041⟧ fill⟦U+3164⟧ vs⟦U+E0101⟧"
    kept = "Grüße, 世界, ❤\ufe0f, मनुष्य\n\tend"
    assert visible(kept) == kept
    assert visible("x" * 10_000_000) == "x" * 10_000_000
    assert len(clipped("x" * 10_000_000)) < 5000


def test_numbers_and_prompts_read_well():
    found = [number(v) for v in (-0.1234, 0.0, 12.345, 123.45, 12345.6, 3, 1e-7, None, float("nan"))]
    assert found == ["−0.123", "0.000", "12.35", "123.5", "12,346", "3", "1.0e−07", "–", "–"]
    assert [duration(v) for v in (4.24, 190, 7500, None)] == ["4.2 s", "3 min 10 s", "2 h 05 min", "–"]
    assert conversation([{"role": "user", "content": "hi"}]) == "hi"
    assert (
        conversation([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]) == "system: s\n\nuser: u"
    )


def test_axes_and_curves_keep_what_matters():
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(3.0, 3.0) == [3.0]
    low, high = padded([2.0, 2.0])
    assert low < 2.0 < high
    points = [(float(i), 1.0) for i in range(10_001)]
    shorter = thinned(points, 100)
    assert len(shorter) == 100
    assert shorter[-1] == points[-1]
    assert all(y == 1.0 for _, y in shorter)


def test_no_rule_of_the_style_sheet_is_written_twice() -> None:
    text = (Path(alignkit.__file__).parent / "report" / "style.css").read_text(encoding="utf-8")
    rules = [line.strip() for line in text.splitlines() if "{" in line and "}" in line and "@" not in line]
    assert len(rules) > 40
    assert sorted(set(rules)) == sorted(rules)
