"""Which tokens are left, by hand, and that what is drawn is among them."""

from __future__ import annotations

import math

import pytest
import torch
from example_plugin import ExampleComponent

from alignkit import ConfigError
from alignkit.testing import PROMPTS, tiny_policy


def test_what_is_left_is_near_the_likeliest() -> None:
    logprobs = torch.tensor([[0.5, 0.3, 0.19, 0.01]]).log()
    left = ExampleComponent(share=0.5).warp(logprobs)
    assert (left > -math.inf).tolist() == [[True, True, False, False]]
    torch.testing.assert_close(left[0, :2], logprobs[0, :2])


def test_at_a_share_of_one_the_likeliest_is_drawn() -> None:
    policy = tiny_policy(trainable=False)
    drawn = ExampleComponent(share=1.0, max_new_tokens=4).sample(policy, PROMPTS)
    likeliest = ExampleComponent(greedy=True, max_new_tokens=4).sample(policy, PROMPTS)
    assert [row["response_ids"] for row in drawn] == [row["response_ids"] for row in likeliest]


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, math.nan])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="share"):
        ExampleComponent(share=share)
