"""What a run shows while it works: a picture on a terminal, thinned lines elsewhere, nothing where it is quiet."""

from __future__ import annotations

import io
import itertools
import logging
import re
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import Groups, Run
from alignkit.data.problems import Problem, folded, report_notes, tell_folded
from alignkit.meter import Advance, Meter
from alignkit.registry.host import default_host
from alignkit.run import recipes
from alignkit.run.console import Console
from alignkit.run.display import Display, Outlook, scores_of
from alignkit.run.plan import Planned, measured_flops
from alignkit.run.recipes import Recipe, run_recipe
from alignkit.run_folder import read_run
from alignkit.stages.cost import Cost

PROMPTS = Groups.from_prompts([{"prompt": f"Say {word}."} for word in ("one", "two", "three")])


class Terminal(io.StringIO):
    """A terminal that keeps what was written to it; `breaks` at the first picture that is drawn after so many."""

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, breaks: int | None = None) -> None:
        super().__init__()
        self.breaks, self.pictures = breaks, 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.pictures += "\x1b" in text
        if self.breaks is not None and self.pictures > self.breaks and "\x1b" in text:
            raise OSError(5, "Input/output error")
        return super().write(text)

    @property
    def text(self) -> str:
        """Without the control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


def put(monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> Terminal:
    """Make it standard output, of a fixed size."""
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "100"), ("LINES", "30")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("alignkit.run.display.PAUSE", 0.0)
    return terminal


def plan(*names: str, flops: int = 10) -> list[Planned]:
    return [Planned(name, "sample", False, Cost(generated=flops, parameters=1)) for name in names]


# -- the time left -----------------------------------------------------------------------------------------------------


def outlook(*planned: tuple[str, str, int]) -> Outlook:
    found = Outlook()
    found.expect([Planned(n, verb, False, Cost(generated=tokens, parameters=1)) for n, verb, tokens in planned])
    return found


def test_the_time_left_is_that_of_the_same_stage_of_the_last_version_in_proportion_to_what_was_planned():
    found = outlook(("v1", "improve", 100), ("v2", "improve", 100), ("v3", "improve", 50))
    assert found.left(0.0) is None  # nothing was measured yet
    found.end("v1", "improve", 8.0, {})
    found.begin("v2", "improve")
    assert found.left(2.0) == pytest.approx((8.0 - 2.0) + 4.0)
    assert found.left(20.0, least=3.0) == pytest.approx(3.0 + 4.0)  # it says itself what it still takes
    found.end("v2", "improve", 10.0, {})
    assert found.left(0.0) == pytest.approx(5.0)


def test_a_stage_of_no_known_kind_takes_what_was_planned_at_the_rate_so_far():
    found = outlook(("a", "sample", 100), ("b", "improve", 30))
    found.end("a", "sample", 20.0, {})
    assert found.left(0.0) == pytest.approx(6.0)


def test_a_stage_that_is_there_already_takes_no_time_and_what_it_took_counts():
    found = Outlook()
    cost = Cost(generated=10, parameters=1)
    here = {"v1/a": True, "v2/a": False, "v3/a": True}
    found.expect([Planned(name, "sample", cached, cost) for name, cached in here.items()])
    found.end("v1/a", "sample", 7.0, {})
    assert found.left(0.0) == pytest.approx(7.0)  # of the second alone
    found.end("v2/a", "sample", 7.0, {})
    assert found.left(0.0) == 0.0


def test_without_a_plan_no_time_is_promised():
    found = Outlook()
    found.end("a", "sample", 3.0, {})
    assert found.left(0.0) is None


def test_stages_come_in_the_order_in_which_they_are_made():
    found = outlook(("a", "sample", 1), ("skipped", "sample", 1), ("c", "sample", 1))
    found.end("a", "sample", 1.0, {})
    found.begin("unforeseen", "export")
    assert list(found.lines) == ["a", "unforeseen", "skipped", "c"]
    found.end("unforeseen", "export", 1.0, {})
    found.begin("c", "sample")
    assert [(line.name, line.state) for line in found.lines.values()] == [
        ("a", "done"), ("unforeseen", "done"), ("c", "present"),
    ]  # fmt: skip


def test_scores_are_those_of_evaluations_reward_models_and_last_rounds():
    assert scores_of({"metrics": {"gold": {"mean": 0.25, "low": 0.1, "high": 0.4}}, "label": "V1"}) == "gold 0.250"
    assert scores_of({"accuracy": {"overall": {"mean": 0.75, "n": 8}}}) == "held-out accuracy 0.750"
    assert scores_of({"last": {"reward_mean": 1.5, "entropy": 2.0}}) == "reward_mean 1.500"
    assert scores_of({"rows": 3}) == ""


# -- a terminal --------------------------------------------------------------------------------------------------------


def test_a_terminal_shows_what_is_done_at_work_and_to_come(monkeypatch: pytest.MonkeyPatch):
    terminal = put(monkeypatch, Terminal())
    console, meter = Console(), Meter()
    console.expect(plan("v1/a", "v2/a", "v3/a"))
    console.ended("v1/a", "sample", 6.0, {"label": "V0", "metrics": {"gold": {"mean": 0.384}}})
    before = threading.enumerate()
    with console.working("v2/a", "sample", meter), meter.phase("generate"):
        console.tick("-", Advance("sampling:", 3, 12, "responses", "100 tokens/s", 9.0))
        assert threading.enumerate() == before
        print("of the work itself")
    for wanted in (
        "1 of 3 stages done", "about 15 s left", "✓ v1/a", "▶ v2/a", "· v3/a", "about 6 s", "━",
        "sampling: 3/12 responses, 100 tokens/s, 9 s left", "V0: gold 0.384", "of the work itself",
    ):  # fmt: skip
        assert wanted in terminal.text
    assert sys.stdout is terminal
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_the_bar_goes_when_the_work_that_it_told_of_is_over(monkeypatch: pytest.MonkeyPatch):
    terminal = put(monkeypatch, Terminal())
    console, meter = Console(), Meter()
    with console.working("v1", "improve", meter):
        with meter.phase("generate"):
            console.tick("-", Advance("sampling:", 12, 12))
        terminal.truncate(0)
        with meter.phase("score"):
            meter.add("scored_tokens", 1000)
        assert "score, " in terminal.text
        assert "1 k tokens" in terminal.text
        assert "sampling" not in terminal.text


def test_more_stages_than_the_terminal_has_lines_are_counted(monkeypatch: pytest.MonkeyPatch):
    terminal = put(monkeypatch, Terminal())
    console = Console()
    console.expect(plan(*(f"s{i}" for i in range(60))))
    with console.working("s0", "sample", Meter()):
        pass
    frame = terminal.text.split("stages done")[1].split("\n")
    assert any(re.fullmatch(r"\s+and \d+ more\s*", line) for line in frame)
    assert 15 < len(frame) < 30


def test_what_others_wrote_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch):
    terminal = put(monkeypatch, Terminal())
    console = Console()
    with console.working("a", "sample", Meter()):
        console.say("row [bold]x[/bold] \x1b[2J")
    assert "row [bold]x[/bold] ⟦U+001B⟧[2J" in terminal.text
    assert "\x1b[2J" not in terminal.getvalue()


def test_a_terminal_that_fails_ends_nothing_and_is_said_once(monkeypatch: pytest.MonkeyPatch):
    terminal = put(monkeypatch, Terminal(breaks=3))
    console, meter = Console(every=0.0), Meter()
    with console.working("a", "sample", meter):
        for done in range(1, 6):
            console.tick(f"a: {done}/5", Advance("", done, 5))
        console.say("a: still at work")
    with console.working("b", "sample", meter):
        meter.add("scored_tokens", 3)
    assert sys.stdout is terminal
    assert terminal.text.count("could not be drawn on (OSError: [Errno 5] Input/output error)") == 1
    assert "a: 5/5" in terminal.text
    assert "a: still at work" in terminal.text
    assert "b: sample …" in terminal.text


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_error_of_the_work_passes_and_leaves_the_terminal_as_it_was(
    monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
):
    terminal = put(monkeypatch, Terminal())
    with pytest.raises(stop), Console().working("a", "sample", Meter()):
        raise stop
    assert sys.stdout is terminal
    assert terminal.getvalue().count("\x1b[?25h") == 1


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch):
    terminal = put(monkeypatch, Terminal())
    monkeypatch.setenv("TERM", "dumb")
    console = Console()
    with console.working("a", "sample", Meter()):
        console.tick("a: 1/2", Advance("", 1, 2))
    assert terminal.getvalue() == "[00:00] a: sample …\n"


# -- no terminal -------------------------------------------------------------------------------------------------------


def test_elsewhere_progress_lines_come_ever_more_seldom(capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    clock = itertools.count(1000)
    monkeypatch.setattr("alignkit.run.console.time.monotonic", lambda: next(clock) / 4)
    console = Console(every=10.0)
    with console.working("a", "sample", Meter()):
        for done in range(600):
            console.tick(f"a: {done}", Advance("", done, 600))
    stamps = [line[1:6] for line in capsys.readouterr().out.splitlines()]
    seconds = [60 * int(m) + int(s) for m, s in (stamp.split(":") for stamp in stamps)]
    gaps = [b - a for a, b in itertools.pairwise(seconds)]
    assert 4 <= len(gaps) <= 8
    assert gaps[0] >= 10
    assert gaps == sorted(gaps)
    assert gaps[-1] > 2 * gaps[0]


def test_a_quiet_console_says_nothing_and_draws_nothing(monkeypatch: pytest.MonkeyPatch):
    terminal = put(monkeypatch, Terminal())
    console = Console(quiet=True)
    console.expect(plan("a"))
    with console.working("a", "sample", Meter()):
        console.tick("a", Advance("", 1, 2))
        console.say("a")
    console.ended("a", "sample", 1.0, {})
    assert terminal.getvalue() == ""


# -- runs and recipes --------------------------------------------------------------------------------------------------


def test_a_run_at_a_terminal_keeps_its_lasting_lines_and_records_work_by_phase(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    terminal = put(monkeypatch, Terminal())
    with Run(tmp_path / "r") as run:
        policy = run.policy("tiny", lora=None)
        run.sample(policy, PROMPTS, n=2, max_new_tokens=4)
    text = terminal.text
    assert "policy: done" in text
    assert "samples: 3 rows" in text or "sample: 3 rows" in text
    assert "responses, " in text
    record = read_run(tmp_path / "r").stages[1]
    assert record.work["generate"]["generated_tokens"] == record.spent("generated_tokens") > 0
    assert sum(found.get("flops", 0) for found in record.work.values()) == record.spent("flops")
    rate, dtype = record.ceiling
    assert dtype == "float32"
    assert 1e8 < rate < 1e15
    assert read_run(tmp_path / "r").stages[0].ceiling == (0, "")  # it computed nothing


def test_what_the_machine_reaches_is_measured_in_a_moment_without_drawing_a_number():
    import time

    before, began = torch.random.get_rng_state(), time.monotonic()
    rate = measured_flops.__wrapped__("32-true", "cpu")
    assert time.monotonic() - began < 3.0  # a busy machine may take longer than the 0.2 s that it needs
    assert rate > 1e8
    assert torch.equal(before, torch.random.get_rng_state())


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The stages that consoles are told to expect, by name."""
    told: list[list[str]] = []
    monkeypatch.setattr(Console, "expect", lambda _, planned: told.append([each.name for each in planned]))
    return told


def two_stages(run: Run) -> None:
    calls.append(run.planning)
    print("of the recipe")
    logging.getLogger("alignkit.data").warning("of the recipe")
    policy = run.policy("tiny", lora=None)
    run.sample(policy, PROMPTS, max_new_tokens=3, name="drawn")
    if run.planning:
        raise KeyError("no plan goes on from here")


calls: list[bool] = []


def test_a_registered_recipe_is_planned_ahead_as_far_as_a_plan_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    terminal = put(monkeypatch, Terminal())
    told = recorded(monkeypatch)
    calls.clear()
    disabled = logging.root.manager.disable
    run_recipe(Recipe("two", two_stages, registered=True), run_dir=tmp_path / "r", precision="32-true")
    assert told == [["policy", "drawn"]]
    assert calls == [True, False]
    assert terminal.text.count("of the recipe") == 1
    assert caplog.text.count("of the recipe") == 1
    assert logging.root.manager.disable == disabled


@pytest.mark.parametrize("why", ["a file", "quiet", "no terminal"])
def test_otherwise_its_main_is_called_once(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(monkeypatch, Terminal())
    if why == "no terminal":
        monkeypatch.setattr("sys.stdout", io.StringIO())
    told = recorded(monkeypatch)
    calls.clear()
    recipe = Recipe("two", two_stages, registered=why != "a file")
    run_recipe(recipe, run_dir=tmp_path / "r", precision="32-true", quiet=why == "quiet")
    assert (calls, told) == ([False], [])


def test_recipes_of_plugins_are_planned_ahead_and_files_are_not(tmp_path: Path):
    name = next(r.name for r in default_host().components() if r.kind == "recipe")
    assert recipes.load_recipe(name).registered
    (tmp_path / "mine.py").write_text("def main(run):\n    pass\n")
    assert not recipes.load_recipe(tmp_path / "mine.py").registered


# -- warnings about rows -----------------------------------------------------------------------------------------------


def note(row: int, code: str = "D08") -> Problem:
    return Problem(code, row, f"p{row}", "text", "holds a token", "it stays text", note=True)


def noted_and_failed() -> None:
    with folded():
        report_notes([note(1), note(2), note(3)], "v2")
        raise RuntimeError


def test_notes_on_rows_are_one_line_a_code_with_a_count_and_the_first(caplog: pytest.LogCaptureFixture):
    with folded():
        for start in (3, 10, 20):
            report_notes([note(start + i) for i in range(4)], "v1")
        report_notes([note(7, "D01")], "v1")
        assert not caplog.records
    assert [record.message for record in caplog.records] == [
        "v1: AK-D08 × 12: holds a token — it stays text (first: row 3 (p3) text)",
        "v1: AK-D01 row 7 (p7) text — holds a token — it stays text",
    ]


def test_notes_are_told_before_long_work_where_it_fails_and_outside_a_stage_at_once(caplog: pytest.LogCaptureFixture):
    with folded():
        report_notes([note(1), note(2)], "v1")
        tell_folded()
        assert "AK-D08 × 2" in caplog.text
    assert len(caplog.records) == 1  # and not again
    with pytest.raises(RuntimeError):
        noted_and_failed()
    assert "v2: AK-D08 × 3" in caplog.text
    report_notes([note(5)], "file")
    assert "file: AK-D08 row 5" in caplog.text


def test_a_stage_tells_its_notes_before_it_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The control token that is written out in the rows is noted; the lines of the steps come after that."""
    order: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: order.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("alignkit.data").addHandler(handler)
    rows = [{"prompt": f"Say {i}.", "responses": [f"<|user|> {i}"]} for i in range(4)]
    with Run(tmp_path / "r", quiet=True) as run:
        run.console.tick = lambda text, advance=None: order.append("step")  # type: ignore[method-assign]
        run.sft(run.policy("tiny", lora=None), Groups.from_rows(rows), epochs=1, name="sft")
    logging.getLogger("alignkit.data").removeHandler(handler)
    assert order[0].startswith("sft: AK-D08 × 4: holds ['<|user|>']")
    assert order.count("step") == len(order) - 1 > 0


def test_notes_on_the_whole_wait_for_nothing(caplog: pytest.LogCaptureFixture):
    with folded():
        report_notes([Problem("D19", None, "", "ranks", "one of them is upside down", note=True)], "v1")
        assert "upside down" in caplog.text


def test_a_display_is_drawn_only_while_a_stage_is_made(monkeypatch: pytest.MonkeyPatch):
    terminal = put(monkeypatch, Terminal())
    display = Display(Outlook(), 0.0)
    display.show(Advance("", 1, 2))
    assert terminal.getvalue() == ""
