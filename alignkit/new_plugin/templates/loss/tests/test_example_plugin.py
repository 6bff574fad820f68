"""The loss by hand, and what its hyper-parameter does."""

from __future__ import annotations

import pytest
import torch
from example_plugin import example_component

from alignkit import ConfigError, Groups, LoRA, Run, use


def test_the_loss_is_the_square_of_what_is_missing() -> None:
    chosen, rejected = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(example_component(chosen, rejected), torch.tensor([0.0, 0.25, 4.0]))
    torch.testing.assert_close(example_component(chosen, rejected, width=3.0), torch.tensor([1.0, 6.25, 16.0]))


@pytest.mark.parametrize("width", [0.0, -1.0, float("inf"), float("nan")])
def test_a_width_out_of_range_is_refused(width: float) -> None:
    with pytest.raises(ConfigError, match="width"):
        example_component(torch.zeros(1), torch.zeros(1), width=width)


def test_a_reward_model_learns_by_it(tmp_path) -> None:
    rows = [{"prompt": f"Name {n}.", "responses": [f"{n}", "no"], "ranks": [1, 2]} for n in range(4)]
    with Run(tmp_path / "run", quiet=True) as run:
        policy = run.policy("tiny", lora=LoRA(r=4))
        loss = use("example_component", width=0.5)
        made = run.train_reward(policy, Groups.from_rows(rows), loss=loss, heldout_fraction=0.5)
    assert made.result["steps"] == 1
