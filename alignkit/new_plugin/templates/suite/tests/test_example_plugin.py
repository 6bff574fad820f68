"""What is learned on and what is measured on are apart, and the truth is what it says."""

from __future__ import annotations

import pytest
from example_plugin import example_component, vowels

from alignkit import ConfigError
from alignkit.plugin import build


def test_nothing_that_is_measured_on_is_learned_on() -> None:
    suite = example_component(prompts=60, heldout=40)
    learned, measured = (set(part.dataset["prompt_id"]) for part in (suite.prompts, suite.heldout))
    assert (len(learned), len(measured)) == (60, 40)
    assert not learned & measured


@pytest.mark.parametrize(("answer", "share"), [("aeiou", 1.0), ("abab", 0.5), ("", 0.0)])
def test_the_truth_is_the_share_of_vowels(answer: str, share: float) -> None:
    assert vowels(answer) == share


def test_it_is_found_by_name() -> None:
    assert len(build("suite", "example_component(prompts=3, heldout=2)")().heldout) == 2


@pytest.mark.parametrize(("prompts", "heldout"), [(0, 1), (1, 0), (99, 2)])
def test_more_prompts_than_there_are_is_refused(prompts: int, heldout: int) -> None:
    with pytest.raises(ConfigError, match="100"):
        example_component(prompts=prompts, heldout=heldout)
