"""The lower part of a trunk that nothing trains: read once for a text, and what comes of it as if it were not."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from alignkit import Groups, LoRA, Policy, Run
from alignkit.data.encode import EncodedGroup
from alignkit.models import RewardModel, forward, lower
from alignkit.models.batch import collate
from alignkit.models.lora import adapt

SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BEGIN = [*range(40, 49)]
GROUPS = [
    EncodedGroup([*range(1, 8)], [[3, 4, 5, 6], [*range(4, 14)], [7]], None, 0),
    EncodedGroup([5, 6], [[9, 8, 7], [1, 2, 3, 4]], None, 1),
    EncodedGroup([11], [[12, 13]], None, 2),
]
BEGUN = [EncodedGroup([*BEGIN, *group.prompt_ids], group.responses, None, n) for n, group in enumerate(GROUPS)]


@pytest.fixture(autouse=True)
def nothing_kept():
    lower.forget()
    yield
    lower.forget()


def body(model):
    return forward.body_of(model)


def of_family(family, layers=1, seed=0):
    """A model of four layers, the last `layers` of which are adapted, with an adapter that says something; 0: none."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    more = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, **SMALL, **more)
    model = AutoModelForCausalLM.from_config(config).eval()
    if layers == 0:
        return model
    model = adapt(model, LoRA(r=2, layers=layers))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    return model


def passes(model):
    """Tokens that the first and the last layer read, one number for each pass, as they come."""
    read = ([], [])
    layers = forward.body_of(model).layers
    for noted, layer in zip(read, (layers[0], layers[-1]), strict=True):
        layer.register_forward_pre_hook(lambda _, given, noted=noted: noted.append(given[0].shape[1]))
    return read


def gradients(model, groups, packed=True):
    """(log-probs, gradient of each weight that trains), by the sum of the log-probs."""
    batch = collate(groups, range(len(groups)), [0, 3, 5][: len(groups)], pad_id=0, packed=packed)
    hidden = forward.gather_hidden(forward.hidden_states(model, batch), batch)
    values = torch.log_softmax(forward.bare(model).get_output_embeddings()(hidden), -1)
    taken = values.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    model.zero_grad()
    (taken * batch.response_mask).sum().backward()
    trained = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    return torch.cat([taken[r][batch.response_mask[r]] for r in range(len(taken))]).detach(), trained


@pytest.mark.parametrize("groups", [GROUPS, BEGUN])
@pytest.mark.parametrize("family", sorted(lower.FAMILIES))
def test_values_and_gradients_are_those_of_the_whole_trunk(family, groups, monkeypatch):
    model = of_family(family)
    first, slopes = gradients(model, groups)
    again, _ = gradients(model, groups)
    monkeypatch.setattr(lower, "FAMILIES", frozenset())
    whole, wanted = gradients(model, groups)
    padded, _ = gradients(model, groups, packed=False)
    for found in (first, again, padded):
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
    for name, slope in wanted.items():
        torch.testing.assert_close(slopes[name], slope, rtol=1e-4, atol=1e-5)
    assert wanted
    assert all(".3." in name for name in wanted)


def test_a_text_is_read_once_however_it_lies(monkeypatch):
    model = of_family("llama")
    low, high = passes(model)
    gradients(model, BEGUN)
    gradients(model, [EncodedGroup(g.prompt_ids, g.responses[::-1], None, n) for n, g in enumerate(BEGUN)])
    gradients(model, [EncodedGroup(g.prompt_ids, g.responses[:1], None, n) for n, g in enumerate(BEGUN)][:2])
    assert len(low) == 1
    assert len(high) == 3
    gradients(model, [EncodedGroup([*BEGUN[0].prompt_ids, 3], BEGUN[0].responses, None, 0)])
    assert len(low) == 2, "another prompt"


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("room", [2**28, 40 * (16 * 4 + lower.ENTRY)])
def test_of_a_row_that_is_known_in_parts_the_others_are_read(family, room, monkeypatch):
    """What a new response goes on from is read with it, and no more; the same comes of it where nothing was known, and
    where there is no room for the row."""
    model = of_family(family)
    rows = [*BEGUN, EncodedGroup([*BEGIN, 21, 22], [[23, 24, 25]], None, 3)]
    rows[0] = EncodedGroup(rows[0].prompt_ids, [*rows[0].responses, [31, 32]], None, 0)
    batch = collate(rows, range(4), [0, 4, 6, 7], pad_id=0, packed=True)
    with torch.no_grad():
        wanted = forward.hidden_states(model, batch)
        lower.forget()
        monkeypatch.setattr(lower, "ROOM", room)
        low, _ = passes(model)
        forward.hidden_states(model, collate(BEGUN, range(3), [0, 3, 5], pad_id=0, packed=True))
        found = forward.hidden_states(model, batch)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    if room == 2**28:
        assert low[1:] == [len(BEGIN) + len(GROUPS[0].prompt_ids) + 2 + len([21, 22, 23, 24, 25])]


def test_states_are_shared_by_models_on_the_same_base_and_by_no_others():
    first, other = of_family("llama"), of_family("llama", seed=1)
    twin = copy.deepcopy(first)
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            if "lora_A" in name:
                weight.normal_()
    low, _ = passes(twin)
    apart, _ = passes(other)
    gradients(first, GROUPS)
    found, _ = gradients(twin, GROUPS)
    assert not low
    _, wide = passes(twin)
    gradients(other, GROUPS)
    assert apart
    lower.forget()
    torch.testing.assert_close(gradients(twin, GROUPS)[0], found, rtol=0, atol=1e-5)
    gradients(first, GROUPS)
    with torch.no_grad():
        body(first).layers[0].mlp.up_proj.weight.add_(0.1)
    changed, _ = gradients(first, GROUPS)
    lower.forget()
    torch.testing.assert_close(gradients(first, GROUPS)[0], changed, rtol=0, atol=1e-5)
    assert wide


def test_one_that_begins_higher_goes_on_from_what_another_read():
    """Adapters on the last layer alone, where those of another model on the same base begin a layer below, and after
    it the other way round; a text that only one of them read too."""
    low, high = of_family("llama", layers=2), of_family("llama", layers=1)
    wanted = [gradients(model, groups)[0] for model in (low, high) for groups in (GROUPS, GROUPS[:1])]
    lower.forget()
    first, second = passes(low), passes(high)
    found = [gradients(low, GROUPS)[0], gradients(low, GROUPS[:1])[0]]
    found += [gradients(high, GROUPS)[0], gradients(high, GROUPS[:1])[0]]
    assert len(first[0]) == 1
    assert not second[0], "it went on from layer 2"
    other = [EncodedGroup([33, 34], [[3, 4, 5]], None, 0)]
    gradients(high, other)
    gradients(low, other)
    assert (len(first[0]), len(second[0])) == (1, 1), "it was kept for the other one too"
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_what_one_that_begins_higher_changes_below_is_no_beginning_for_it():
    low, high = of_family("llama", layers=2), of_family("llama", layers=1)
    with torch.no_grad():
        body(high).layers[2].mlp.up_proj.weight.add_(0.1)  # above where the other ends: that is still one and the same
    gradients(low, GROUPS)
    shared, _ = passes(high)
    found, _ = gradients(high, GROUPS)
    assert not shared
    lower.forget()
    torch.testing.assert_close(gradients(high, GROUPS)[0], found, rtol=0, atol=1e-5)
    with torch.no_grad():
        body(high).layers[1].mlp.up_proj.weight.add_(0.1)  # below it
    lower.forget()
    gradients(low, GROUPS)
    shared.clear()
    found, _ = gradients(high, GROUPS)
    assert shared
    lower.forget()
    torch.testing.assert_close(gradients(high, GROUPS)[0], found, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.double(),
        lambda model: model.to(torch.bfloat16),
        lambda model: body(model).embed_tokens.weight.data.copy_(body(model).embed_tokens.weight.data.flip(0)),
        lambda model: (
            body(model).layers[1].mlp.up_proj.weight.data.copy_(body(model).layers[1].mlp.up_proj.weight.flip(0))
        ),
        lambda model: body(model).layers[0].mlp.up_proj.weight.data.add_(0.1),
        lambda model: body(model).rotary_emb.inv_freq.mul_(0.5),
    ],
    ids=["float64", "bfloat16", "tokens swapped", "neurons swapped", "past torch's count", "positions"],
)
@pytest.mark.parametrize("twin", [False, True])
def test_another_lower_part_has_states_of_its_own(change, twin, monkeypatch):
    """In a copy, whose weights were never looked at, and in place."""
    model = of_family("llama")
    gradients(model, GROUPS)
    changed = copy.deepcopy(model) if twin else model
    with torch.no_grad():
        change(changed)
        if not twin:
            lower._prints.clear()  # a buffer is looked at once
    found, _ = gradients(changed, GROUPS)
    monkeypatch.setattr(lower, "FAMILIES", frozenset())
    torch.testing.assert_close(found, gradients(changed, GROUPS)[0], rtol=0, atol=1e-5)


def test_a_base_that_is_kept_in_sixteen_bits_and_read_in_more_is_another():
    """Its weights have the same values in both types."""
    low = of_family("llama").to(torch.bfloat16)
    high = copy.deepcopy(low).float()
    wanted, _ = gradients(high, GROUPS)
    lower.forget()
    gradients(low, GROUPS)
    torch.testing.assert_close(gradients(high, GROUPS)[0], wanted, rtol=0, atol=1e-5)


def test_what_was_interrupted_leaves_nothing_behind(monkeypatch):
    model = of_family("llama")
    wanted, _ = gradients(model, BEGUN)
    lower.forget()
    take = torch.cat

    def interrupted(tensors, *given, **more):
        if len(tensors) == 2 and tensors[0].ndim == 2:
            raise KeyboardInterrupt
        return take(tensors, *given, **more)

    with monkeypatch.context() as during:
        during.setattr(torch, "cat", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gradients(model, BEGUN)
    for _ in range(2):
        torch.testing.assert_close(gradients(model, BEGUN)[0], wanted, rtol=0, atol=1e-5)


def test_what_is_trained_to_the_first_layer_is_read_whole(monkeypatch):
    monkeypatch.setattr(lower, "part", lambda *_: pytest.fail("parted"))
    for model in (of_family("llama", layers=4), of_family("llama", layers=0), of_family("gpt2")):
        with torch.no_grad():
            batch = collate(GROUPS, range(3), [0, 3, 5], pad_id=0, packed=True)
            forward.hidden_states(model, batch)
    trained = of_family("llama")
    body(trained).layers[0].mlp.up_proj.weight.requires_grad_(True)
    chosen = r".*(embed_tokens|layers\.3\.self_attn\.q_proj)"
    embedded = get_peft_model(of_family("llama", layers=0), LoraConfig(r=2, target_modules=chosen))
    for model in (trained, embedded):
        gradients(model, GROUPS)
    embedded.requires_grad_(False)
    with torch.no_grad(), embedded.disable_adapter():
        forward.hidden_states(embedded, collate(GROUPS, range(3), [0, 3, 5], pad_id=0, packed=True))
    moving = of_family("llama")
    body(moving).config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    gradients(moving, GROUPS)


@pytest.mark.parametrize("tokens", [5, 11, 20, 90])
def test_what_is_kept_has_a_limit(tokens, monkeypatch):
    """The states and their places; where a text alone is more, nothing is kept of it."""
    model = of_family("llama")
    room = 60 * (16 * 4 + lower.ENTRY)
    monkeypatch.setattr(lower, "ROOM", room)
    most = 0
    for number in range(12):
        gradients(model, [EncodedGroup([number + 3, 7, 8], [[9] * tokens], None, 0)])
        kept = [each for each in lower._KEPT.values() if each.rows is not None]
        assert sum(each.bytes for each in kept) <= room
        assert sum(len(each.rows) for each in kept) <= 60
        most = max([most, *(len(each.after) for each in kept)])
    assert most > 30 or tokens == 90


def test_a_policy_and_a_reward_model_share(tmp_path):
    Policy.load("tiny").save(tmp_path / "base")
    lora = LoRA(r=2, layers=1)
    policy = Policy.load(tmp_path / "base", lora=lora, trainable=True)
    scorer = RewardModel.from_policy(tmp_path / "base", lora=lora)
    batch = collate(GROUPS, range(3), [0, 3, 5], pad_id=0, packed=True)
    policy.tensors(batch)
    low, _ = passes(scorer.model)
    with scorer.scoring():
        folded = scorer.scores(batch)
    assert not low
    lower.forget()
    torch.testing.assert_close(scorer.scores(batch).detach(), folded, rtol=0, atol=1e-5)
    assert low


def test_a_reward_model_with_an_adapter_of_its_own(tmp_path):
    """On other layers than the policy's; whole where it is said; another key, and what goes on from it as it is."""
    rows = [{"prompt": f"{n}?", "responses": ["yes", "no"], "ranks": [1, 2]} for n in range(4)]
    pairs, shared = Groups.from_rows(rows), {"loss": "pairwise_ranking", "heldout_fraction": 0}
    with Run(tmp_path / "r", quiet=True) as run:
        v0 = run.policy("tiny", lora=LoRA(r=4))
        found = {
            "policy's": run.train_reward(v0, pairs, name="a", **shared),
            "own": run.train_reward(v0, pairs, name="b", lora=LoRA(r=2, layers=1), **shared),
            "whole": run.train_reward(v0, pairs, name="c", lora=None, **shared),
        }
        found["on"] = run.train_reward(found["own"], pairs, name="d", **shared)
    models = {name: RewardModel.load(each.model_folder, trainable=True) for name, each in found.items()}
    count = {
        name: (each.adapted, len(lower.untrained_layers(forward.bare(each.body)))) for name, each in models.items()
    }
    layers = models["own"].body.config.num_hidden_layers
    assert count == {"policy's": (True, 0), "own": (True, layers - 1), "whole": (False, 0), "on": (True, layers - 1)}
    assert len({str(each.key()) for each in found.values()}) == 4


def test_a_runs_end_gives_the_memory_back(tmp_path):
    gradients(of_family("llama"), GROUPS)
    assert lower._KEPT
    with Run(tmp_path / "r", quiet=True):
        pass
    assert not lower._KEPT
