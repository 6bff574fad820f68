"""Constraints, what obeys them, and consistency by turn."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from alignkit_gatt.consistency import InstructionConsistency, instruction_consistency
from alignkit_gatt.constraints import CHECKS, obeys, of_kinds, read_constraints, with_instructions
from alignkit_gatt.dialogues import user_turns
from alignkit_gatt.recipe import main

from alignkit import ConfigError, DataError, Groups, Run, use

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("ALIGNKIT_SHARED", HERE.parents[3] / "shared" / "data"))
SHOUT = {"instruction": "Shout.", "constraints": [{"type": "endswith", "text": "!"}]}


# -- checks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"type": "startswith", "text": "Sure", "ignore_case": True}, "SURELY not.", "I am sure"),
        ({"type": "startswith", "text": "Sure", "whole_word": True}, "Sure, go.", "Surely not."),
        ({"type": "endswith", "text": "!"}, "Go! \n", "Go!."),
        ({"type": "contains", "text": "sea", "ignore_case": True, "whole_word": True}, "The SEA.", "Season"),
        ({"type": "contains", "text": "sea"}, "Overseas", "The SEA"),
        ({"type": "not_contains", "text": ","}, "One; two", "One, two"),
        ({"type": "lowercase"}, "all 3 small: ß", "One"),
        ({"type": "uppercase"}, "ALL 3!", "ALl"),
        ({"type": "uppercase"}, "A", "12!"),
        ({"type": "max_words", "n": 2}, "two words", "now three words"),
        ({"type": "min_words", "n": 2}, "two words", "one"),
        ({"type": "n_sentences", "n": 2}, "One. Two?", "One, at 3.5 percent."),
        ({"type": "all_lines_start", "text": "- "}, "- a\n\n- b", "- a\nb"),
        ({"type": "regex", "pattern": r"\d"}, "v2", "two"),
        ({"type": "not_regex", "pattern": r"\d"}, "two", "v2"),
        ({"type": "json_keys", "keys": ["a"]}, '{"a": 1}', '{"a": 1, "b": 2}'),
        ({"type": "json_keys", "keys": ["a"]}, ' {"a": {}} ', "[1]"),
        ({"type": "json_keys", "keys": ["a"]}, '{"a": null}', "{'a': 1}"),
        ({"type": "language:response_language", "language": "fr"}, "Le chat est dans la maison.", "The cat is here."),
        ({"type": "punctuation:no_comma"}, "One", "One, two"),
    ],
)
def test_what_a_check_passes(check: dict[str, Any], good: str, bad: str) -> None:
    assert obeys({"constraints": [check]}, good) == 1.0
    assert obeys({"constraints": [check]}, bad) == 0.0


def test_all_constraints_must_hold_nothing_obeys_none_and_no_check_is_missing() -> None:
    both = {"constraints": [{"type": "lowercase"}, {"type": "endswith", "text": "!"}]}
    assert [obeys(both, text) for text in ("ok!", "Ok!", "ok", "", " ")] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert obeys({"constraints": [{"type": "not_contains", "text": ","}]}, "") == 0.0
    assert obeys({}, "anything") is None
    assert obeys({"constraints": []}, "anything") is None


# -- the file and the draw ---------------------------------------------------------------------------------------------


def own(tmp_path: Path, *entries: Any) -> str:
    file = tmp_path / f"own{len(list(tmp_path.iterdir()))}.json"
    file.write_text(json.dumps({"instructions": list(entries)}))
    return str(file)


def test_the_shipped_constraints_are_read_and_their_values_filled_in() -> None:
    pool = read_constraints()
    kinds = Counter(c.kind for c in pool)
    assert {"hobby", "language", "persona", "opening", "ending", "case"} <= set(kinds)
    assert not any("{value}" in c.instruction + c.short + json.dumps(c.check) for c in pool)
    assert all(len(c.short) < len(c.instruction) for c in pool)
    assert all(type(c.check["n"]) is int for c in pool if c.check and c.check["type"] == "max_words")
    assert len({c.instruction for c in pool}) == len(pool)


def test_a_file_of_ones_own_may_be_bare(tmp_path: Path) -> None:
    (constraint,) = read_constraints(own(tmp_path, {"instruction": "Be brief."}))
    assert (constraint.short, constraint.check) == ("Be brief.", None)


@pytest.mark.parametrize(
    "entry",
    [
        {"text": "no instruction"},
        "text",
        {"instruction": "x", "check": {"type": "rhymes"}},
        {"instruction": "x", "check": {"type": "contains"}},
        {"instruction": "x", "check": {"type": "regex", "pattern": "("}},
        {"instruction": "x", "check": {"type": "max_words", "n": "ten"}},
        {"instruction": "x", "check": {"type": "language:response_language", "language": "klingon"}},
    ],
)
def test_an_entry_at_fault_is_named_by_its_place(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(DataError, match="instruction 1"):
        read_constraints(own(tmp_path, {"instruction": "Be brief."}, entry))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in ("{}", "nonsense", '{"instructions": []}'):
        file = tmp_path / f"{len(text)}.json"
        file.write_text(text)
        with pytest.raises(DataError):
            read_constraints(str(file))
    with pytest.raises(DataError, match="kinds"):
        of_kinds(read_constraints(), "colour")


@pytest.mark.skipif(not (SHARED / "gatt_instructions.json").exists(), reason="the shared data are not there")
def test_the_shared_instructions_are_read() -> None:
    pool = read_constraints(str(SHARED / "gatt_instructions.json"))
    assert len(pool) == 30
    assert {c.check["type"] for c in pool if c.check} <= set(CHECKS)


def drawn(seed: int = 0, most: int = 3, count: int = 300, first: int = 0) -> Groups:
    prompts = Groups.from_prompts([f"prompt {i}" for i in range(first, first + count)])
    return with_instructions(prompts, read_constraints(), most, 0.5, seed)


def test_constraints_of_different_kinds_are_combined_and_half_are_shortened() -> None:
    groups = drawn()
    pool = {c.instruction: c for c in read_constraints()}
    metas = [groups.meta(i) for i in range(len(groups))]
    counts = Counter()
    for meta in metas:
        parts = [c for text, c in pool.items() if text in meta["instruction"]]
        counts[len(parts)] += 1
        assert len({c.kind for c in parts}) == len(parts)
        assert len(parts) == len(meta["constraints"]) + meta["unverifiable"]
        assert meta["wording"] == meta["instruction"] or all(c.short in meta["wording"] for c in parts)
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 70
    assert 120 < sum(meta["wording"] != meta["instruction"] for meta in metas) < 180


def test_a_draw_depends_on_the_seed_and_the_prompt_and_on_nothing_beside_it() -> None:
    assert drawn().rows == drawn().rows
    assert drawn().rows != drawn(seed=1).rows
    assert drawn(count=5, first=2).rows[0] == drawn(count=5).rows[2]


def test_an_instruction_that_a_row_brings_stays() -> None:
    groups = Groups.from_rows([{"prompt": "p", "meta": {**SHOUT, "source": "x"}}])
    (meta,) = [with_instructions(groups, read_constraints(), 3, 0.5, 0).meta(0)]
    assert meta == {**SHOUT, "wording": "Shout.", "source": "x"}


# -- consistency -------------------------------------------------------------------------------------------------------


class Forgetful:
    """A context whose policy obeys up to a turn, and from then on where the turn itself says so."""

    seed = 0

    def __init__(self, until: int) -> None:
        self.until, self.asked = until, list[Groups]()

    def sample(self, prompts: Groups, n: int = 1, **options: Any) -> Groups:
        self.asked.append(prompts)
        early = len(self.asked) <= self.until
        return prompts.map_rows(
            lambda row: {"responses": ["yes!" if early or "Shout." in row["prompt"][-1]["content"] else "yes"]}
        )


def long_dialogue(turns: int, meta: dict[str, Any] = SHOUT) -> Groups:
    prompt = [{"role": "user", "content": f"u{i}"} for i in range(1, turns + 1)]
    return Groups.from_rows([{"prompt": prompt, "meta": meta, "tags": ["x"]}])


def test_every_second_turn_is_a_row_with_its_tag_and_the_instruction_was_said_once() -> None:
    ctx = Forgetful(until=4)
    rows = InstructionConsistency()(long_dialogue(21), ctx)
    assert [r["tags"] for r in rows] == [["x", f"turn {t:02d}"] for t in range(2, 21, 2)]
    assert [obeys(rows.meta(i), r["responses"][0]) for i, r in enumerate(rows)] == [1.0, 1.0] + [0.0] * 8
    assert [rows.meta(i).get("consistency") for i in range(10)] == [None] * 9 + [0.2]
    asked = "".join(t["content"] for t in ctx.asked[-1][0]["prompt"])
    assert asked.count("Shout.") == 1
    assert asked.startswith("Shout.")


def test_told_in_every_turn_it_would_obey() -> None:
    ctx = Forgetful(until=0)
    rows = InstructionConsistency(told="always", every=1)(long_dialogue(3), ctx)
    assert [rows.meta(i)["turn"] for i in range(3)] == [1, 2, 3]
    assert rows.meta(2)["consistency"] == 1.0


def test_rows_of_two_policies_pair_by_what_the_user_said() -> None:
    rows = [InstructionConsistency()(long_dialogue(6), Forgetful(until)) for until in (0, 6)]
    assert rows[0][2]["prompt"] != rows[1][2]["prompt"]
    assert [r["prompt_id"] for r in rows[0]] == [r["prompt_id"] for r in rows[1]]
    assert len({r["prompt_id"] for r in rows[0]}) == 3


def test_an_instruction_that_no_program_can_judge_is_refused() -> None:
    with pytest.raises(DataError, match="row 0: no instruction that a program can judge"):
        InstructionConsistency()(long_dialogue(4, {"instruction": "Be nice."}), Forgetful(0))


@pytest.mark.parametrize(
    "check", [{"type": "contains"}, {"text": "a"}, {"type": "regex", "pattern": "("}, {"type": "json_keys"}, "x"]
)
def test_a_check_that_cannot_be_run_is_refused_with_its_row_before_sampling(check: Any) -> None:
    groups = long_dialogue(2, {"instruction": "Shout.", "constraints": [check]})
    with pytest.raises(DataError, match="row 0"):
        InstructionConsistency()(groups, None)
    with pytest.raises(DataError, match="cannot be checked"):
        obeys({"constraints": [check]}, "{}")


def test_a_dialogue_too_short_to_evaluate_is_refused(tmp_path: Path) -> None:
    with Run(tmp_path, quiet=True) as run, pytest.raises(ConfigError, match="no dialogue has 2 turns"):
        instruction_consistency(run, run.policy("tiny"), long_dialogue(1))


def test_consistency_has_an_interval_by_turn_over_dialogues_and_pairs_versions(tmp_path: Path) -> None:
    asked = user_turns("tiny", "heldout", 4, 4)
    digits = {"instruction": "low", "constraints": [{"type": "regex", "pattern": "."}]}
    dialogues = asked.map_rows(lambda _: {"meta": digits})
    play = use("instruction_consistency", max_new_tokens=2)
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        first = instruction_consistency(run, v0, dialogues, transform=play, label="V0", name="a")
        second = instruction_consistency(run, v0, dialogues, transform=play, label="V1", name="b")
    assert {k for k in first.metrics if k[:4] in ("turn", "cons")} == {"consistency", "turn 02", "turn 04"}
    assert {k: v["n"] for k, v in first.metrics.items() if k[:4] in ("turn", "cons")} == dict.fromkeys(
        ("consistency", "turn 02", "turn 04"), 4
    )
    assert second.result["paired_to_first"]["turn 04"]["n"] == 4


# -- the recipe --------------------------------------------------------------------------------------------------------


def test_embedded_dialogues_are_distinct_and_held_out_by_topic() -> None:
    train, heldout = user_turns("small", "train", 60, 4), user_turns("small", "heldout", 40, 20)
    openings = [{r["prompt"][1]["content"] for r in part} for part in (train, heldout)]
    assert len(openings[0]) == 60
    assert not openings[0] & openings[1]
    assert all(len({t["content"] for t in r["prompt"]}) == 21 for r in heldout)
    with pytest.raises(ConfigError, match="30 turns"):
        user_turns("small", "train", 1, 30)


def test_the_recipe_runs_on_tiny_and_writes_consistency_by_turn(tmp_path: Path) -> None:
    options = {"train_dialogues": 8, "train_turns": 2, "samples_per_turn": 8, "heldout_dialogues": 3, "epochs": 1}
    with Run(tmp_path, quiet=True) as run:
        main(run, policy="tiny", heldout_turns=4, max_new_tokens=2, **options)
    table = (tmp_path / "consistency.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:5]] == ["all turns", "turn 02", "turn 04"]
    found = json.loads((tmp_path / "consistency.json").read_text())
    assert found["GAtt"]["paired_to_first"]["consistency"]["n"] == 3
    assert "turn 04" in (tmp_path / "report.html").read_text()


def test_dialogues_of_a_file_are_split_and_plain_demonstrations_learned_beside_them(tmp_path: Path) -> None:
    turns = ("user", "assistant", "user", "assistant")
    asked = [{"messages": [{"role": r, "content": f"{c}{i}"} for i, r in enumerate(turns)]} for c in "abcdefgh"]
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps(row) for row in asked))
    (tmp_path / "plain.jsonl").write_text(json.dumps({"prompt": "hello", "response": "hi"}))
    options = {"samples_per_turn": 16, "heldout_dialogues": 4, "max_new_tokens": 2, "epochs": 1}
    with Run(tmp_path / "run", quiet=True) as run:
        files = {"dialogues": str(tmp_path / "asked.jsonl"), "demonstrations": str(tmp_path / "plain.jsonl")}
        main(run, policy="tiny", **files, **options)
    stages = {s["name"]: s["result"] for s in map(_stage, (tmp_path / "run" / "stages").iterdir())}
    assert stages["gatt"]["rows"] == stages["gatt/dialogues"]["rows"] + 1
    assert stages["consistency/V0"]["metrics"]["consistency"]["n"] == 2
    with pytest.raises(DataError, match="1 distinct dialogues"), Run(tmp_path / "few", quiet=True) as run:
        main(run, policy="tiny", dialogues=str(tmp_path / "plain.jsonl"))


def _stage(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "stage.json").read_text())


def test_the_recipe_plans_without_doing_anything(tmp_path: Path) -> None:
    run = Run(tmp_path, plan=True, quiet=True)
    main(run, policy="tiny")
    assert [p.name for p in run.planned][:3] == ["policy", "gatt/dialogues", "gatt"]
    assert not (tmp_path / "stages").exists()
