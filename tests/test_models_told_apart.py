"""What is asked of a model from outside: how likely it finds responses, and which model it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alignkit.plugin import ConfigError, Policy, is_tiny, model_digest, response_logprobs
from alignkit.testing import save_states, tiny_chat, tiny_policy


@pytest.mark.parametrize("max_tokens", [1, 10**6])
def test_a_response_is_as_likely_as_its_tokens_are_in_a_row(max_tokens: int) -> None:
    """Against one plain forward pass for each, whatever the micro-batches."""
    policy = tiny_policy(trainable=False)
    prompts = [[258, 259, 65], [259, 97, 98, 99, 100], [258]]
    responses = [[[66, 67, 257], [68]], [[97]], [[120, 121], [122], [123, 124, 125]]]
    found = response_logprobs(policy, prompts, responses, max_tokens)
    assert [len(each) for each in found] == [2, 1, 3]
    for prompt, after, values in zip(prompts, responses, found, strict=True):
        for ids, value in zip(after, values, strict=True):
            with torch.no_grad():
                logprobs = policy.model(torch.tensor([[*prompt, *ids]])).logits[0].double().log_softmax(-1)
            expected = sum(float(logprobs[len(prompt) - 1 + place, token]) for place, token in enumerate(ids))
            assert value == pytest.approx(expected, abs=1e-4)


def test_a_model_is_known_by_what_it_holds_and_not_by_where_it_lies(tmp_path: Path) -> None:
    save_states(tmp_path / "one")
    tiny_policy().save(tmp_path / "same")
    tiny_policy(seed=1).save(tmp_path / "other")
    assert model_digest(tmp_path / "one" / "base") == model_digest(str(tmp_path / "same"))
    digests = [model_digest(tmp_path / name) for name in ("same", "other", "one/sft")]
    assert len({*digests, model_digest("tiny")}) == 4
    with pytest.raises(ConfigError, match="no such model folder"):
        model_digest("./no/such/folder")


def test_an_adapter_counts_with_its_base(tmp_path: Path) -> None:
    save_states(tmp_path)
    before = model_digest(tmp_path / "sft")
    card = next(file for file in (tmp_path / "sft").glob("*.json") if "base_digest" in file.read_text())
    card.write_text(json.dumps({**json.loads(card.read_text()), "base_digest": "another"}))
    assert model_digest(tmp_path / "sft") != before


def test_a_live_policy_is_known_by_its_weights() -> None:
    policy, twin = tiny_policy(), tiny_policy()
    assert model_digest(policy) == model_digest(twin)
    with torch.no_grad():
        next(twin.parameters()).view(-1)[0].add_(1e-3)
    assert model_digest(policy) != model_digest(twin)


def test_the_tiny_model_is_told_by_how_it_reads(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    assert is_tiny(tiny_chat())
    policy = tiny_policy()
    policy.save(tmp_path)
    assert is_tiny(Policy.load(tmp_path).chat)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert not is_tiny(Policy(policy.model, tokenizer).chat)
