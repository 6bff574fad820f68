"""References are states with a name, never an adapter switched off; a policy goes to disk and comes back."""

from __future__ import annotations

import pytest
import torch

from alignkit import ConfigError, LoRA
from alignkit.models import Policy
from alignkit.testing import DEMOS, save_states, training_data


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """A base folder, and an adapter on it (as after supervised fine-tuning)."""
    return save_states(tmp_path_factory.mktemp("states"))


def probe(policy, state=None):
    data = training_data(policy, DEMOS)
    batch = data.collate(range(len(DEMOS)))
    if state is None:
        with torch.no_grad():
            return policy.tensors(batch)["logprobs"]
    with policy.state(state):
        return policy.tensors(batch)["logprobs"]


def test_reference_is_a_named_state_never_adapter_off(states):
    """Where V0 is itself an adapter, the reference must be that adapter, not the bare base."""
    policy = Policy.load(states / "sft", lora=LoRA(r=4), trainable=True)
    assert policy.add_state("v0", states / "sft")
    assert policy.add_state("base", states / "base")
    torch.testing.assert_close(probe(policy, "v0"), probe(Policy.load(states / "sft")), rtol=0, atol=1e-6)
    torch.testing.assert_close(probe(policy, "base"), probe(Policy.load(states / "base")), rtol=0, atol=1e-6)
    assert (probe(policy, "v0") - probe(policy, "base")).abs().max() > 0.05
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B.default" in name:
                parameter.zero_()
    torch.testing.assert_close(probe(policy, "v0"), probe(Policy.load(states / "sft")), rtol=0, atol=1e-6)
    torch.testing.assert_close(probe(policy), probe(Policy.load(states / "base")), rtol=0, atol=1e-6)


def test_switching_states_leaves_gradients_where_they_were(states):
    policy = Policy.load(states / "sft", lora=LoRA(r=4), trainable=True)
    policy.add_state("v0", states / "sft")
    before = {n: p.requires_grad for n, p in policy.named_parameters()}
    assert any(before.values())
    assert not any(flag for n, flag in before.items() if "lora_" not in n or ".default." not in n)
    probe(policy, "v0")
    assert {n: p.requires_grad for n, p in policy.named_parameters()} == before
    with policy.generating():
        pass
    assert {n: p.requires_grad for n, p in policy.named_parameters()} == before


def test_generation_folds_the_adapter_and_gives_the_same_tensors_back(states):
    policy = Policy.load(states / "sft")
    inside = probe(policy)
    weights = {n: p.data_ptr() for n, p in policy.named_parameters()}
    with policy.generating() as model:
        ids = torch.tensor([policy.chat.encode_prompt([{"role": "user", "content": "x"}])])
        folded = model(ids).logits
    assert {n: p.data_ptr() for n, p in policy.named_parameters()} == weights
    assert torch.equal(probe(policy), inside)
    with torch.no_grad():
        torch.testing.assert_close(policy.model(ids).logits, folded, rtol=0, atol=2e-5)  # 3e-6 measured


def test_another_base_is_not_a_state(states, tmp_path):
    other = Policy.load("tiny")
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    other.save(tmp_path / "other")
    policy = Policy.load(states / "sft", lora=LoRA(r=4), trainable=True)
    assert not policy.add_state("v0", tmp_path / "other")
    with pytest.raises(ConfigError, match="no state"), policy.state("v0"):
        pass


def test_changed_base_is_refused(states, tmp_path):
    import shutil

    shutil.copytree(states, tmp_path / "copy")
    changed = Policy.load(tmp_path / "copy" / "base")
    with torch.no_grad():
        next(changed.parameters()).add_(1.0)
    changed.save(tmp_path / "copy" / "base")
    with pytest.raises(ConfigError, match="was trained on base"):
        Policy.load(tmp_path / "copy" / "sft")


def test_export_merges_into_a_plain_folder(states, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = Policy.load(states / "sft")
    policy.export(tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    ids = torch.tensor([policy.chat.encode_prompt([{"role": "user", "content": "hello"}])])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, policy.model(ids).logits, rtol=0, atol=2e-5)
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    assert not list((tmp_path / "plain").glob("*.bin"))
