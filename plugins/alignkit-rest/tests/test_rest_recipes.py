"""The recipes `rest` and `distill` on the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from alignkit_rest.recipes import distill, rest, shallower

from alignkit import ConfigError, Groups, Policy, Run

SUITE = "embedded(prompts=16, heldout=32)"


def test_recipe_rest_prints_what_each_threshold_kept_and_brought(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Run(tmp_path) as run:
        rest(run, policy="tiny", suite=SUITE, samples=8, epochs=3)
    printed = "".join(capfd.readouterr())
    table = printed[printed.index("Improve    kept") :].splitlines()
    assert table[0].endswith("held-out gold")
    assert [line.split()[0] for line in table[:5]] == ["Improve", "V0", "1", "2", "3"]
    counts = [int(line.split()[1]) for line in table[2:5]]
    assert counts == sorted(counts, reverse=True)
    assert (tmp_path / "report.html").is_file()


def test_recipe_rest_plans_without_work(tmp_path: Path) -> None:
    with Run(tmp_path, plan=True, quiet=True) as run:
        rest(run, policy="tiny", suite=SUITE)
        assert [p.name for p in run.planned if p.verb == "improve"] == ["improve1", "improve2", "improve3"]


def test_recipe_distill_plans_without_a_student(tmp_path: Path) -> None:
    with Run(tmp_path, plan=True, quiet=True) as run:
        distill(run, teacher="tiny", suite=SUITE)
        assert [p.name for p in run.planned if p.verb == "improve"] == ["distilled"]
    assert not (tmp_path / "student").exists()


def test_a_smaller_student_learns_from_the_best_samples_of_a_larger_teacher(tmp_path: Path) -> None:
    with Run(tmp_path, quiet=True) as run:
        distill(
            run,
            teacher="tiny",
            suite=SUITE,
            samples=8,
            teach="rest(require_finished=False, learning_rate=1e-2, epochs=3)",
            optimizer="rest(quantiles=[0.5], require_finished=False, learning_rate=1e-2, epochs=3)",
        )
    students = list(tmp_path.glob("stages/*-distilled-*/model"))
    teachers = list(tmp_path.glob("stages/*-teacher-*/model"))
    assert Policy.load(students[0]).model.config.num_hidden_layers == 1
    assert Policy.load(teachers[0]).model.config.num_hidden_layers == 2


def test_every_other_layer_is_left_out_and_the_rest_is_untouched(tmp_path: Path) -> None:
    made = shallower("tiny", tmp_path / "student")
    large, small = Policy.load("tiny"), Policy.load(made)
    own, theirs = dict(large.model.named_parameters()), dict(small.model.named_parameters())
    assert len(theirs) < len(own)
    assert all(torch.equal(value, own[name]) for name, value in theirs.items())
    assert not any("layers.1." in name for name in theirs)
    folder = shallower("tiny", tmp_path / "student")
    before = (folder / "config.json").stat().st_mtime_ns
    assert shallower("tiny", tmp_path / "student") == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="cannot be halved"):  # of another model, and not the student that is there
        shallower(str(folder), tmp_path / "student")


def test_samples_of_another_tokenizer_are_tokenised_anew_and_the_run_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The ids of a teacher with another tokenizer mean nothing to the student; the text does."""
    rows = [
        {"prompt": f"say {w}", "responses": [w], "response_ids": [ids], "tokenizer": "of the teacher"}
        for w, ids in (("abc", [1, 2]), ("defg", [3]))
    ]
    learn = Groups.from_rows(rows).with_rewards("r", [[1.0], [2.0]])
    losses = []
    for name, groups in (("foreign", learn), ("plain", learn.map_rows(lambda r: {"response_ids": None}))):
        with Run(tmp_path / name, quiet=True) as run:
            student = run.policy("tiny", lora=None)
            made = run.improve(
                student, groups, optimizer="rest(samples_per_prompt=0, quantiles=[0.0])", max_new_tokens=8
            )
        losses.append(made.result["budget"]["trained_tokens"])
        if name == "foreign":
            assert "tokenised anew from their text" in caplog.text
    assert losses == [9, 9]  # letters and an end each


def test_rest_makes_a_version_of_llama2(tmp_path: Path) -> None:
    from alignkit_recipes import llama2

    with Run(tmp_path, quiet=True) as run:
        llama2.main(
            run,
            policy="tiny",
            algorithms="rest(quantiles=[0.3, 0.6], require_finished=False)",
            prompts_per_version=8,
            heldout=4,
            max_new_tokens=6,
        )
    logged = [path.read_text() for path in tmp_path.glob("stages/*-v1-*/metrics.jsonl")]
    assert any('"kept_share"' in text and '"round": 1' in text for text in logged)
