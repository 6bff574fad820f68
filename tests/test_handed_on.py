"""What the sampler reads below the adapter: prompts once for all versions, responses once for who reads them next."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from alignkit import Groups, LoRA, Policy
from alignkit.data.encode import EncodedGroup, encode_groups
from alignkit.models import RewardModel, forward, handed_on, lower, slots, ways
from alignkit.models.batch import collate
from alignkit.models.slots import Slots
from alignkit.models.together import Together, in_parts
from alignkit.sampling import Sampler
from alignkit.sampling.decode import Rule, decode
from alignkit.sampling.voice import Voice

ASKED = ["a", "say bob", "say bob twice", "a prompt that is longer than the others are", "hide it", "say", "a b c"]
PROMPTS = Groups.from_prompts(ASKED)


def told(system: str) -> Groups:
    """The same after a system message."""
    turns = [[{"role": "system", "content": system}, {"role": "user", "content": text}] for text in ASKED]
    return Groups.from_prompts(turns)


TOLD = told("be brief, be kind")


class EndsEarly(Sampler):
    """One token in twelve ends a response."""

    def generate(self, policy, prompts, keys, end_ids):
        return super().generate(policy, prompts, keys, [*range(0, 262, 12), *end_ids])


SAMPLER = EndsEarly(max_new_tokens=9, batch_size=6)
"""A few at a time, so that prompts join as responses end."""


@pytest.fixture(autouse=True)
def nothing_kept():
    lower.forget()
    yield
    lower.forget()


def adapted(**lora) -> Policy:
    """The tiny policy, its last layer adapted, with an adapter that says something."""
    policy = Policy.load("tiny", lora=LoRA(r=2, **{"layers": 1, **lora}), trainable=True)
    change(policy, 1)
    return policy


def change(policy, seed):
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)


def laid_out(policy, groups):
    """All responses in one packed row, as they are scored and learned from."""
    encoded, problems = encode_groups(groups, policy.chat, max_prompt_tokens=500, max_response_tokens=100)
    assert not problems
    return row_of(policy, encoded)


def row_of(policy, encoded):
    firsts = [sum(len(each.responses) for each in encoded[:i]) for i in range(len(encoded))]
    return collate(encoded, range(len(encoded)), firsts, pad_id=policy.chat.pad_id, packed=True)


class Passes:
    """Which layers of a reader are read, by how many tokens each time."""

    def __init__(self, monkeypatch):
        self.read: dict[int, list[int]] = {}
        plain, ours = slots.decoding_copy, self

        def watched(model, dtype):
            found = plain(model, dtype)
            for number, layer in enumerate(forward.body_of(found).layers):
                layer.register_forward_pre_hook(lambda _, given, number=number: ours.note(number, given[0]))
            return found

        monkeypatch.setattr(slots, "decoding_copy", watched)

    def note(self, number, states):
        self.read.setdefault(number, []).append(states.shape[0] * states.shape[1])

    def taken(self):
        found, self.read = self.read, {}
        return {number: sum(tokens) for number, tokens in sorted(found.items())}


@pytest.mark.parametrize(("waiting", "together", "prompts"), [(1, 4096, PROMPTS), (4, 20, TOLD), (1000, 4096, TOLD)])
@pytest.mark.parametrize("n", [1, 3])
def test_what_was_written_is_read_no_more_below_the_adapter(waiting, together, prompts, n, monkeypatch):
    monkeypatch.setattr(slots, "WAITING", waiting)
    monkeypatch.setattr(slots, "TOGETHER", together)
    policy = adapted()
    groups = SAMPLER.sample(policy, prompts, n, seed=(0,))
    assert {len(ids) for row in groups.column("response_ids") for ids in row} - {9}, "some end by themselves"
    batch, ((_, kept),) = laid_out(policy, groups), lower._KEPT.items()
    assert kept.missing(batch.input_ids[0].tolist(), batch.pieces) == []
    with monkeypatch.context() as during, torch.no_grad():
        during.setattr(lower, "keep", lambda *_: pytest.fail("read again"))
        found = forward.hidden_states(policy.model, batch)
    lower.forget()
    with torch.no_grad():
        torch.testing.assert_close(found, forward.hidden_states(policy.model, batch), rtol=1e-4, atol=1e-4)


def test_a_reward_model_on_the_same_base_goes_on_from_it(tmp_path):
    """The policy that was sampled from has no adapter, and what stands on its base adapts the last layer."""
    policy = Policy.load("tiny")
    policy.save(tmp_path)
    plain = Policy.load(tmp_path)
    plain.upper = 1
    groups = SAMPLER.sample(plain, PROMPTS, 2, seed=(0,))
    reward = RewardModel.from_policy(tmp_path, lora=LoRA(r=2, layers=1))
    batch, ((key, kept),) = laid_out(plain, groups), lower._KEPT.items()
    assert key[0] == 1
    assert kept.missing(batch.input_ids[0].tolist(), batch.pieces) == []
    before = len(kept.after)
    with torch.no_grad():
        found = reward.scores(batch)
        assert len(kept.after) == before
        assert len(lower._KEPT) == 1
        lower.forget()
        torch.testing.assert_close(found, reward.scores(batch), rtol=1e-4, atol=1e-4)


def test_prompts_may_begin_otherwise_the_next_time():
    """One reader, two samplings: those that are over go on from the beginning that was theirs."""
    policy, rule = adapted(), Rule([*range(0, 262, 12)], 9, vocabulary=260)
    every = [SAMPLER.encoded(policy, prompts) for prompts in (TOLD, told("another beginning, as long"))]
    written = []
    with policy.reading() as reader:
        assert isinstance(reader, Slots)
        reader.apart_from = 1
        for ids in every:
            for place, (answer,) in decode(reader, ids, [[each] for each in range(len(ids))], rule, 6):
                written.append(EncodedGroup(ids[place], [answer.ids], None, len(written)))
    batch, ((_, kept),) = row_of(policy, written), lower._KEPT.items()
    assert kept.missing(batch.input_ids[0].tolist(), batch.pieces) == []
    with torch.no_grad():
        found = forward.hidden_states(policy.model, batch)
        lower.forget()
        torch.testing.assert_close(found, forward.hidden_states(policy.model, batch), rtol=1e-4, atol=1e-4)


def test_a_reader_is_gone_with_its_last_use():
    policy = adapted()
    gc.collect()
    gc.disable()
    try:
        with policy.reading() as reader:
            reader.admit([[5, 6, 7]], 1)
            known = weakref.ref(reader.model)
        del reader
        assert known() is None, "its copy of the weights with it"
    finally:
        gc.enable()


def test_a_conversation_is_handed_on_to_nobody():
    policy = adapted()
    with Voice(policy, Sampler(max_new_tokens=4)) as voice:
        "".join(voice.answer([{"role": "user", "content": "a"}]))
    assert not lower._KEPT
    assert not lower._READ


def test_nothing_is_noted_where_nobody_stands_on_the_layers_below():
    for policy in (Policy.load("tiny"), adapted(layers=None), Policy.load("tiny", trainable=True)):
        with policy.reading() as reader:
            assert isinstance(reader, Slots)
            assert reader.notes is None
    for policy in (Policy.load("tiny", trainable=True), adapted(layers=None)):
        policy.upper = 1
        SAMPLER.sample(policy, PROMPTS, 1, seed=(0,))
    assert not lower._KEPT
    assert not lower._READ


def test_the_next_version_reads_prompts_above_the_layers_below_alone(monkeypatch):
    passes, policy = Passes(monkeypatch), adapted()
    long = Sampler(max_new_tokens=9, batch_size=64)
    long.sample(policy, PROMPTS, 1, seed=(0,))
    passes.taken()
    first = long.sample(policy, PROMPTS, 1, seed=(0,))
    again = passes.taken()
    change(policy, 2)
    found = long.sample(policy, PROMPTS, 1, seed=(0,))
    passes.taken()
    lower.forget()
    ways._SLOTS.clear()
    wanted = long.sample(policy, PROMPTS, 1, seed=(0,))
    prompts = {tuple(ids) for ids in SAMPLER.encoded(policy, PROMPTS)}
    assert again[1] - again[0] >= 2 * len(set.union(*(set(enumerate(ids)) for ids in prompts))) // 3
    assert found.column("response_ids") == wanted.column("response_ids") != first.column("response_ids")
    for ours, theirs in zip(found.column("logprobs"), wanted.column("logprobs"), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def test_other_weights_below_are_other_states():
    policy = adapted()
    SAMPLER.sample(policy, PROMPTS, 1, seed=(0,))
    other = copy.deepcopy(policy)
    with torch.no_grad():
        forward.body_of(other.model).layers[0].mlp.up_proj.weight.mul_(1.5)
    found = SAMPLER.sample(other, PROMPTS, 1, seed=(0,))
    assert len(lower._KEPT) == 2
    lower.forget()
    assert SAMPLER.sample(other, PROMPTS, 1, seed=(0,)).column("response_ids") == found.column("response_ids")
    with torch.autocast("cpu", torch.bfloat16):
        SAMPLER.sample(other, PROMPTS, 1, seed=(0,))
    assert {key[1] for key in lower._KEPT} == {None, torch.bfloat16}
    assert {key[0][1] for key in lower._READ} == {None, torch.bfloat16}


@pytest.mark.parametrize("room", [0, 2000, 20000])
def test_where_there_is_no_room_nothing_is_noted_and_the_same_is_written(room, monkeypatch):
    policy = adapted()
    wanted = SAMPLER.sample(policy, PROMPTS, 3, seed=(0,))
    lower.forget()
    monkeypatch.setattr(handed_on.lower, "ROOM", room)
    found = SAMPLER.sample(policy, PROMPTS, 3, seed=(0,))
    assert found.column("response_ids") == wanted.column("response_ids")
    assert sum(each.bytes for each in lower._READ.values()) <= room
    assert not lower._KEPT


def test_what_there_is_no_room_for_is_given_back_at_once():
    notes = handed_on.Notes("key", room=10 * lower.cost_of(torch.zeros(1, 4)))
    notes.begin(torch.zeros(1, 2, 4))
    assert notes.admit([1, 2], [[3, 4]], torch.zeros(1, 2, 4), 2).tolist() == [0, 1]
    notes.read(torch.arange(2), torch.tensor([5, 6]), torch.zeros(2, 4))
    assert notes.open
    assert len(notes.states) == 1
    assert notes.admit([], [[7] * 9], torch.zeros(1, 9, 4), 1).tolist() == [2]
    assert not notes.open
    assert [notes.beginning, notes.admitted, notes.states] == [None, [], []]


def test_prompts_in_a_row_are_a_tree():
    prompts = [[5, 6, 7], [5, 6], [5, 8, 7, 9], [4]]
    row = Together.of(prompts)
    assert row.ids.tolist() == [[5, 6, 7, 8, 7, 9, 4]]
    assert row.depths.tolist() == [[0, 1, 2, 1, 2, 3, 0]]
    assert row.index.tolist() == [[0, 1, 2, 2], [0, 1, 1, 1], [0, 3, 4, 5], [6, 6, 6, 6]]
    assert row.last.tolist() == [2, 1, 5, 6]
    states = torch.arange(7.0).view(1, 1, 7, 1)
    spread = row.spread(states)
    assert spread.shape == (4, 1, 4, 1)
    assert spread[:, 0, :, 0].tolist() == row.index.tolist()
    assert row.gather(spread.transpose(1, 2)).flatten().tolist() == [*range(7)]


def test_prompts_are_parted_where_they_are_too_many():
    assert in_parts([3, 3, 3, 9, 1], 6) == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert in_parts([1], 6) == [(0, 1)]
