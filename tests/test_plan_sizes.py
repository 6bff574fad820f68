"""A plan reckons with the weights that a model has, or says that nobody knows."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from alignkit.run.plan import Planned, table
from alignkit.stages.cost import Cost
from alignkit.stages.policy import guessed_parameters


def test_weights_are_counted_whatever_their_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = {"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.zeros(7), "c": torch.zeros(())}
    save_file(weights, str(tmp_path / "model-1.safetensors"), metadata={"format": "pt"})
    save_file({"d": torch.zeros(2, 2, dtype=torch.float64)}, str(tmp_path / "model-2.safetensors"))
    assert guessed_parameters(str(tmp_path)) == 15 + 7 + 1 + 4


def test_a_model_that_is_not_here_has_no_made_up_size() -> None:
    assert guessed_parameters("meta-llama/Llama-3.1-8B-Instruct") == 0


def test_a_plan_says_which_times_it_does_not_know() -> None:
    rows = [
        Planned("known", "sample", False, Cost(generated=10, parameters=5)),
        Planned("hub", "sample", False, Cost(generated=10)),
        Planned("made", "sample", True, Cost(generated=10)),
        Planned("labels", "score", False, Cost(forwarded=10)),
    ]
    lines = table(rows, "32-true").splitlines()
    assert [line.split()[-1] == "?" for line in lines[2:6]] == [False, True, False, False]
    assert lines[-1].startswith("?: 1 stages")
    assert "?" not in table(rows[:1], "32-true")
