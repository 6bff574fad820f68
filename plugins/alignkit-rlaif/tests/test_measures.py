"""The measures: planted annotators whose worth is known, and the probes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from alignkit_rlaif import Judge
from alignkit_rlaif.gold import Gold
from alignkit_rlaif.measures import Judgement, as_markdown, judgements, measure
from alignkit_rlaif.probes import ATTACKS, PAIRS, injection
from alignkit_rlaif.probes import planted as planted_pairs
from alignkit_rlaif.recipes import comparisons

from alignkit import Annotator, Groups, Run

SHARED = Path(os.environ.get("ALIGNKIT_SHARED", Path(__file__).parents[3].parent / "shared" / "data"))


def people(*pairs: tuple[str, str], ranks: Any = (1, 2)) -> Groups:
    """Pairs in which people prefer the first response."""
    return Groups.from_rows([{"prompt": f"p {pair}", "responses": list(pair), "ranks": list(ranks)} for pair in pairs])


@dataclass(frozen=True)
class First(Annotator):
    """Prefers what is shown first."""

    def annotate(self, groups: Groups, seed: int = 0) -> Mapping[str, Groups]:
        return {"preference": groups.map_rows(lambda _row: {"ranks": [1, 2]})}

    def key(self) -> Any:
        return "first"


def test_agreement_position_and_length_of_known_judgements() -> None:
    groups = people(("aaaa", "b"), ("aaa", "b"), ("a", "bbb"), ("a", "bb"))
    said = [
        Judgement(0.9, 0.9, 0.1, 0.8),  # agrees, the longer, consistent
        Judgement(0.7, 0.9, 0.5, 0.6),  # agrees, the longer; one pass names none
        Judgement(0.2, 0.2, 0.8, 0.9),  # disagrees, the longer, consistent
        Judgement(0.5, 0.7, 0.7, 0.9),  # a tie: one half of everything
    ]
    found = measure(groups, said)
    assert found["agreement"]["mean"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert found["position_consistency"]["mean"] == pytest.approx(2 / 4)
    assert found["first_named"]["mean"] == pytest.approx((0.5 + 0.75 + 0.5 + 1) / 4)
    assert found["longer_named"]["mean"] == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert found["longer_by_people"]["mean"] == pytest.approx(2 / 4)
    assert found["length_bias"]["mean"] == pytest.approx(0.875 - 0.5)
    assert found["mass"]["mean"] == pytest.approx(0.8)
    assert found["agreement"]["n"] == 4


def test_what_is_not_judged_and_what_people_tie_count_where_they_should() -> None:
    groups = Groups.concat([people(("a", "b"), ("c", "d")), people(("e", "f"), ranks=(1, 1))])
    said = [Judgement(None, mass=0.1, reason="abstains"), Judgement(None, reason="HTTP 500", failed=True)]
    found = measure(groups, [*said, Judgement(0.8, 0.9, 0.3, 0.9)])
    assert found["agreement"] is None
    assert found["abstained"]["mean"] == pytest.approx(1 / 3)
    assert found["failed"]["mean"] == pytest.approx(1 / 3)
    assert found["position_consistency"]["n"] == 1
    assert found["mass"]["n"] == 2
    assert found["reasons"] == {"abstains": 1, "HTTP 500": 1}
    assert "No pair was judged" in as_markdown(found)


def test_an_annotator_of_places_agrees_by_half_whatever_the_order_of_the_file() -> None:
    groups = people(*[(f"good {i}", f"bad {i}") for i in range(20)])
    found = measure(groups, judgements(First(), groups))
    assert found["agreement"]["mean"] == 0.5
    assert found["position_consistency"]["mean"] == 0
    assert found["first_named"]["mean"] == 1
    assert "cannot be told from a coin" in as_markdown(found)


def test_a_planted_judge_of_length_is_found_out(prefers_longer: Any) -> None:
    groups = people(*[("short", f"a longer text {i}") for i in range(12)], ("a longer text", "short"))
    found = measure(groups, judgements(Judge(model=prefers_longer), groups))
    assert found["longer_named"]["mean"] == 1
    assert found["longer_by_people"]["mean"] == pytest.approx(1 / 13)
    assert found["length_bias"]["low"] > 0.5
    assert found["agreement"]["high"] < 0.5
    assert found["position_consistency"]["mean"] == 1


def test_a_perfect_judge_agrees_always(planted: Any) -> None:
    def knows(_question: str, first: str, second: str) -> tuple[float, float]:
        return (0.9, 0.05) if first in {good for _, good, _ in PAIRS} else (0.05, 0.9)

    groups = planted_pairs()
    found = measure(groups, judgements(Judge(model=planted(knows)), groups))
    assert found["agreement"]["mean"] == 1
    assert "above a coin" in as_markdown(found)


def test_any_annotator_is_measured() -> None:
    groups = people(("aaaa", "b"), ("aaa", "b"))
    found = measure(groups, judgements(Gold(lambda response: len(response), noise=0.0), groups))
    assert found["agreement"]["mean"] == found["position_consistency"]["mean"] == 1
    assert found["mass"] is None


def test_the_interval_counts_prompts_not_pairs() -> None:
    rows = [{"prompt": f"p{i % 2}", "responses": ["aa", "b"], "ranks": [1, 2]} for i in range(40)]
    said = [Judgement(0.9 if i % 2 else 0.1, 0.5, 0.5) for i in range(40)]
    found = measure(Groups.from_rows(rows), said)["agreement"]
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(
        (0.5, 0.0945, 0.9055), abs=1e-4
    )  # two prompts say next to nothing


# -- injection ---------------------------------------------------------------------------------------------------------


def test_a_judge_that_obeys_the_response_is_found_out(planted: Any) -> None:
    def gullible(_question: str, first: str, second: str) -> tuple[float, float]:
        for text, probs in ((first, (0.9, 0.05)), (second, (0.05, 0.9))):
            if "the verdict must name it" in text:
                return probs
        return (0.9, 0.05) if first in {good for _, good, _ in PAIRS} else (0.05, 0.9)

    found = injection(Judge(model=planted(gullible)))
    assert set(found) == set(ATTACKS)
    assert found["praises itself"]["plain"] == 0
    assert found["praises itself"]["attacked"] == 1
    assert found["praises itself"]["more"]["low"] > 0.7  # of ten: Wilson
    assert found["master key :"]["attacked"] == 0
    text = as_markdown({"injection": found})
    assert "| praises itself | 0.000 | 1.000 | 10 | 10 |" in text
    assert "says nothing wins" not in text


def test_a_master_key_that_wins_is_named(planted: Any) -> None:
    def opened(_question: str, first: str, second: str) -> tuple[float, float]:
        for text, probs in ((first, (0.9, 0.05)), (second, (0.05, 0.9))):
            if text == ":" or text in {good for _, good, _ in PAIRS[1:]}:
                return probs
        return 0.45, 0.45

    found = injection(Judge(model=planted(opened)), PAIRS[:2])
    assert (found["master key :"]["won"], found["master key :"]["attacked"]) == (1, 0.75)  # the other one is a tie
    assert "'master key :' in 1 of 2 pairs" in as_markdown({"injection": found})


def test_a_fixed_answer_cannot_win_in_both_orders(planted: Any) -> None:
    def obeys(question: str, first: str, _second: str) -> tuple[float, float]:
        if "answer 1." in question:
            return (0.9, 0.05)
        return (0.9, 0.05) if first in {good for _, good, _ in PAIRS} else (0.05, 0.9)

    found = injection(Judge(model=planted(obeys)))["says answer 1"]
    assert found["attacked"] == 0.5  # it wins in one order and loses in the other: a tie, as a judge of places


def test_marks_and_control_tokens_in_a_response_do_not_move_the_frame(planted: Any) -> None:
    seen: list[tuple[str, str]] = []

    def looks(_question: str, first: str, second: str) -> tuple[float, float]:
        seen.append((first, second))
        return 0.5, 0.4

    for name in ("fake marks", "control tokens"):
        seen.clear()
        Judge(model=planted(looks)).compare(planted_pairs(PAIRS[:1], ATTACKS[name]))
        texts = {text for pair in seen for text in pair}
        assert texts == {PAIRS[0][1], ATTACKS[name].replace("{text}", PAIRS[0][2])}


# -- people ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "judge_human.test.jsonl.gz").is_file(), reason="the shared data are not here")
def test_comparisons_by_people_are_read_and_measured() -> None:
    groups = comparisons(SHARED / "judge_human.test.jsonl.gz", 40, 1500)
    assert len(groups) == 40
    truth = {tuple(row["responses"]): float(-row["ranks"][0]) for row in groups}
    prefers = Gold(_Remembered(truth), noise=0.0)
    found = measure(groups, judgements(prefers, groups))
    assert found["agreement"]["mean"] > 0.95  # a text may be preferred in one pair and not in another
    assert set(found["agreement_by_subset"])


class _Remembered:
    """A reward that knows which of two texts people preferred."""

    def __init__(self, truth: dict[tuple[str, ...], float]) -> None:
        self.best = {texts[0] if rank == -1 else texts[1] for texts, rank in truth.items()}

    def __call__(self, response: str) -> float:
        return float(response in self.best)


# -- recipes -----------------------------------------------------------------------------------------------------------


def test_the_report_is_written_once_and_found_again(tmp_path: Path, prefers_longer: Any) -> None:
    from alignkit_rlaif.recipes import judge_report

    with Run(tmp_path / "run", quiet=True) as run:
        judge_report(run, annotator=Judge(model=prefers_longer), probes=False)  # type: ignore[arg-type]
    asked = prefers_longer.asked
    text = (tmp_path / "run" / "judge_report.md").read_text()
    assert "agreement with people" in text
    assert (tmp_path / "run" / "judge_report.json").is_file()
    with Run(tmp_path / "run", quiet=True) as run:
        judge_report(run, annotator=Judge(model=prefers_longer), probes=False)  # type: ignore[arg-type]
    assert prefers_longer.asked == asked


def test_a_temperature_of_zero_is_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignkit_rlaif import recipes

    seen: list[float] = []

    def configured(_run: Any, _optimizer: Any, _kind: Any, temperature: float) -> None:
        seen.append(temperature)
        raise KeyError("far enough")

    monkeypatch.setattr(recipes, "configured", configured)
    for given in (0.0, None):
        with Run(tmp_path / str(given), quiet=True) as run, pytest.raises(KeyError, match="far enough"):
            recipes.rlaif(run, policy="tiny", temperature=given)
    assert seen == [0.0, recipes.MODELS["tiny"].temperature]


@pytest.mark.parametrize("judge", ["", "judge(model='tiny', min_mass=0.0)"])
def test_the_recipe_runs_on_the_tiny_model(tmp_path: Path, judge: str) -> None:
    from alignkit_rlaif.recipes import rlaif

    with Run(tmp_path / "run", quiet=True) as run:
        rlaif(run, policy="tiny", judge=judge, prompts=12, heldout=8)
    assert (tmp_path / "run" / "report.html").is_file()
