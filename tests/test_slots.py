"""Sequences in slots: the family's own log-probs, whatever joins, ends or is folded, by the weights as they are now."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from alignkit import Groups, LoRA, Policy
from alignkit.data.encode import encode_groups
from alignkit.models import batch, lean, slot_attention, slot_cache, slots, ways
from alignkit.models.batch import collate
from alignkit.models.packed import SMALL, Product, packs
from alignkit.models.slot_cache import Places, SlotCache, SlotLayer
from alignkit.models.slots import Slots
from alignkit.models.stepwise import Anew
from alignkit.randomness import uniforms
from alignkit.sampling import Sampler
from alignkit.sampling.decode import Rule, choose, decode

PROMPTS = Groups.from_prompts(["a", "say bob", "a prompt that is longer than the others are", "hide it", "say"])


def gap(policy: Policy, sampler: Sampler, n: int = 2) -> float:
    """Largest difference between log-probs as sampled and those of the training path, nats."""
    groups = sampler.sample(policy, PROMPTS, n, seed=(0, "slots"))
    encoded, _ = encode_groups(groups, policy.chat, max_prompt_tokens=500, max_response_tokens=100)
    firsts = [n * i for i in range(len(encoded))]
    rows = collate(encoded, range(len(encoded)), firsts, pad_id=policy.chat.pad_id, shared=False)
    with torch.no_grad():
        found = policy.tensors(rows)["logprobs"]
    stored = [logprobs for row in groups for logprobs in row["logprobs"]]
    return max(
        float((found[place, : len(kept)] - torch.tensor(kept)).abs().max())
        for place, number in enumerate(rows.responses.tolist())
        if (kept := stored[number])
    )


@pytest.mark.parametrize("lora", [None, LoRA(r=2)])
def test_the_weights_as_they_are_now_are_sampled_from(lora):
    policy = Policy.load("tiny", lora=lora, trainable=True)
    first = Sampler(max_new_tokens=12).sample(policy, PROMPTS, 2, seed=(0,))
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    assert Sampler(max_new_tokens=12).sample(policy, PROMPTS, 2, seed=(0,)).digest() != first.digest()
    assert gap(policy, Sampler(max_new_tokens=12)) < 2e-4
    assert {p.requires_grad for n, p in policy.named_parameters() if lora is None or "lora_" in n} == {True}


@pytest.mark.parametrize("own", [True, False])
def test_a_wrong_attention_is_found_out(own, monkeypatch):
    """Of layers of the house, and of a family's own."""
    policy, right = Policy.load("tiny"), slot_attention.attend
    monkeypatch.setattr(ways, "_SLOTS", {})
    if own:
        monkeypatch.setattr(lean, "is_lean", lambda layer: False)
    with policy.reading() as reader:
        assert isinstance(reader, Slots)
    ways._SLOTS.clear()
    where = slots if own else lean
    monkeypatch.setattr(where, "attend", lambda *args, scaling=None, **more: right(*args, scaling=0.5, **more))
    with policy.reading() as reader:
        assert not isinstance(reader, Slots)
    assert gap(policy, Sampler(max_new_tokens=12)) < 1e-5


def test_under_autocast_products_keys_and_values_are_bfloat16_and_the_rest_is_not():
    policy = Policy.load("tiny")
    with torch.autocast("cpu", torch.bfloat16):
        with policy.reading() as reader:
            assert isinstance(reader, Slots)
            logits = reader.admit([[5, 6, 7]], 1)
            kept = reader.cache.slots[0].keys
        own = policy.model(torch.tensor([[5, 6, 7]])).logits[:, -1]
        assert gap(policy, Sampler(max_new_tokens=12)) < 0.1
    assert logits.dtype == torch.bfloat16
    assert kept is not None
    assert kept.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), own.float(), rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_product_is_the_product(dtype, bias):
    torch.manual_seed(0)
    weight, states = torch.randn(256, SMALL // 128).to(dtype), torch.randn(3, 5, SMALL // 128).to(dtype)
    added = torch.randn(256).to(dtype) if bias else None
    found = Product(weight, added, dtype)(states)
    assert packs(weight) == (dtype != torch.float64) or dtype == torch.bfloat16
    wanted = torch.nn.functional.linear(states.double(), weight.double(), None if added is None else added.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol={torch.bfloat16: 0.3}.get(dtype, 1e-4))


class Counting(Anew):
    """Reads as the model does, and notes how many sequences each pass has."""

    def __init__(self, model, pad_id):
        super().__init__(model, pad_id)
        self.passes: list[int] = []
        self.admitted: list[int] = []

    def admit(self, prompts: Sequence[Sequence[int]], n: int) -> torch.Tensor:
        self.admitted.append(len(prompts) * n)
        return super().admit(prompts, n)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        self.passes.append(len(tokens))
        return super().read(tokens)


class Alone(Counting):
    joins = False


def test_sequences_join_as_others_end():
    policy = Policy.load("tiny")
    prompts = [policy.chat.encode_prompt(row["prompt"]) for row in PROMPTS] * 4
    keys = [[100 * i, 100 * i + 1] for i in range(len(prompts))]
    rule = Rule([*range(0, 262, 12), *policy.chat.end_ids], 24, vocabulary=policy.vocabulary)
    with policy.generating() as model:
        joined, alone = Counting(model, 0), Alone(model, 0)
        found, wanted = (sorted(decode(reader, prompts, keys, rule, 8)) for reader in (joined, alone))
    assert [[s.ids for s in answers] for _, answers in found] == [[s.ids for s in answers] for _, answers in wanted]
    assert [place for place, _ in found] == list(range(len(prompts)))
    assert sum(joined.admitted) == sum(alone.admitted) == 2 * len(prompts)
    assert max(joined.passes) <= 8
    assert len(joined.passes) < len(alone.passes)
    assert np.mean(joined.passes) > 1.1 * np.mean(alone.passes)


def test_a_prompt_with_more_samples_than_the_batch_holds_is_answered():
    policy = Policy.load("tiny")
    few = Sampler(max_new_tokens=6, batch_size=2).sample(policy, PROMPTS, 3, seed=(0,))
    many = Sampler(max_new_tokens=6).sample(policy, PROMPTS, 3, seed=(0,))
    assert few.column("response_ids") == many.column("response_ids")


class Noting(Slots):
    """Notes how many tokens each pass reads."""

    def _forward(self, ids, *given):
        self.passes = [*getattr(self, "passes", []), ids.numel()]
        return super()._forward(ids, *given)

    def _part(self, row, *given):
        self.passes = [*getattr(self, "passes", []), row.tokens]
        return super()._part(row, *given)


@pytest.mark.parametrize("apart_from", [1, slots.APART])
def test_what_prompts_begin_with_is_read_once(apart_from, monkeypatch):
    system = list(range(30, 45))
    first = [[*system, *rest] for rest in ([5, 6, 7], [9], [8, 4])]
    later = [
        [[*system, 3, 2]],
        [[1, 2, 3, 4], [1, 2, 5]],
        [[*system, 11], [*system, 12, 13]],
        [[7, *system], [7, *system, 1]],
    ]
    with Policy.load("tiny").generating() as model:
        found = []
        for least in (batch.LEAST_SHARED, 1000):
            monkeypatch.setattr(batch, "LEAST_SHARED", least)
            reader = Noting(model, 0)
            reader.apart_from = apart_from
            logits = [reader.admit(first, 2)]
            for prompts in later:
                logits += [reader.read(torch.arange(len(reader.lengths)) + 50), reader.admit(prompts, 1)]
            reader.keep(torch.arange(2, len(reader.lengths)))
            logits.append(reader.read(torch.arange(len(reader.lengths)) + 60))
            found.append((logits, reader.lengths.tolist(), reader.passes))
    (ours, lengths, passes), (plain, same, apart) = found
    assert lengths == same
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    # The beginning, the rests; later ones go on from it, or begin alike themselves, and a new one takes its place.
    assert passes[:2] == [15, 6]
    assert [n for n in passes[2:] if n not in (6, 7, 9, 11, 13)] == [2, 5, 3, 15, 2]
    assert apart[0] == 15 + 6, "what two prompts begin with is read once in a row, too"


@pytest.mark.parametrize("apart_from", [1, slots.APART])
def test_padded_rows_go_on_from_what_prompts_begin_with(apart_from):
    begun = [[*range(30, 45), *rest] for rest in ([5, 6, 7], [9], [8, 4])]
    with Policy.load("tiny").generating() as model:
        reader = Slots(model, 0)
        reader.together, reader.apart_from = False, apart_from  # as families do whose trunk cannot be parted
        found = [reader.admit(begun, 1), reader.read(torch.tensor([50, 51, 52]))]
        for place, prompt in enumerate(begun):
            with torch.no_grad():
                wanted = model(torch.tensor([[*prompt, 50 + place]]), use_cache=False).logits[0, -2:]
            ours = torch.stack([each[place] for each in found])
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


def test_slots_are_empty_after_they_were_compared(monkeypatch):
    policy = Policy.load("tiny")
    monkeypatch.setattr(ways, "_SLOTS", {})
    with policy.reading() as reader:
        assert isinstance(reader, Slots)
        first = reader.admit([[1, 2, 3]], 2)
    with policy.reading() as reader:
        again = reader.admit([[1, 2, 3]], 2)
        assert reader.lengths.tolist() == [3, 3]
    assert torch.equal(first, again)


def test_prompts_of_like_length_are_read_together(monkeypatch):
    rows = [[1] * n for n in (40, 39, 20, 20, 19, 3, 3, 3)]
    parts = slots._of_like_length(rows, 8)
    assert [[len(row) for row in part] for part in parts] == [[40, 39], [20, 20, 19], [3, 3, 3]]
    assert slots._of_like_length(rows[::-1], 1000) == [rows[::-1]]
    prompts = [[7 + n % 5 for n in range(size)] for size in (40, 39, 20, 3)]
    with Policy.load("tiny").generating() as model:
        reader, found, rooms, plain = Noting(model, 0), [], set(), SlotLayer._room
        reader.together = False  # as families do whose trunk cannot be parted

        def noted(self, *given):
            keys, values = plain(self, *given)
            rooms.add(keys.data_ptr())
            return keys, values

        with monkeypatch.context() as during:
            during.setattr(SlotLayer, "_room", noted)
            logits = reader.admit(prompts, 2)
        assert len(rooms) == len(reader.cache.slots), "room is made once"
        for prompt in prompts:
            found.append(Slots(model, 0).admit([prompt], 2))
        after = reader.read(torch.arange(8))
    torch.testing.assert_close(logits, torch.cat(found), rtol=1e-4, atol=1e-4)
    assert reader.passes == [3 * 40, 3, 8]
    assert reader.lengths.tolist() == [41, 41, 40, 40, 21, 21, 4, 4]
    assert len(after) == 8


@pytest.mark.parametrize(("mixed", "tolerance"), [(False, 2e-4), (True, 0.1)])
@pytest.mark.parametrize("by_kernel", [True, False])
def test_room_grows_with_what_is_written(mixed, tolerance, by_kernel, monkeypatch):
    """By hand, in bfloat16, all that there is room for is looked at, unless that is far more than is written."""
    if not by_kernel:
        for module in (slots, slot_attention, slot_cache):
            monkeypatch.setattr(module, "in_one_call", lambda *_: False)
    policy = Policy.load("tiny")
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        assert gap(policy, Sampler(max_new_tokens=100, batch_size=4)) < tolerance


@pytest.mark.parametrize("size", [3, 256, 257, 1000])
def test_choosing_by_blocks_is_inversion_of_the_whole(size):
    torch.manual_seed(0)
    probs = torch.softmax(3 * torch.randn(400, size), -1)
    probs[:, ::7] = 0.0
    draws = uniforms(np.arange(400, dtype=np.uint64), 0)
    draws[:2], draws[-2:] = 0.0, 1 - 2**-53
    whole = probs.double().cumsum(-1)
    wanted = torch.searchsorted(whole, torch.from_numpy(draws)[:, None] * whole[:, -1:], right=True).squeeze(-1)
    chosen = choose(probs, draws)
    assert (probs.gather(-1, chosen[:, None]) > 0).all()
    assert torch.equal(chosen[2:-2], wanted[2:-2])
    only = torch.zeros(2, size)
    only[:, size // 2] = 1e-3
    assert choose(only, np.array([0.0, 1 - 2**-53])).tolist() == [size // 2] * 2


@pytest.mark.parametrize(
    ("begun", "by_kernel", "stays_apart"),
    [(slots.APART, True, True), (slots.APART - 1, True, False), (40, False, True)],
)
def test_what_all_sequences_begin_with_stands_in_no_slot_and_room_is_made_once(
    monkeypatch, begun, by_kernel, stays_apart
):
    """Where torch's kernel is taken, that is so of what is longer than what its call costs."""
    system = [7 + n % 5 for n in range(begun)]
    for module in (slots, slot_attention, slot_cache):
        monkeypatch.setattr(module, "in_one_call", lambda *_: by_kernel)
    prompts = [[*system, *range(30, 30 + n)] for n in (1, 2, 3, 9, 1, 4)]
    keys = [[10 * i, 10 * i + 1] for i in range(len(prompts))]
    rooms, plain, found = set(), SlotLayer._room, []
    monkeypatch.setattr(sys.modules["alignkit.sampling.decode"], "PREFILL", 50)  # a prompt at a time

    def noted(self, *given):
        room = plain(self, *given)
        rooms.add(room[0].data_ptr())
        return room

    with Policy.load("tiny").generating() as model:
        for least in (batch.LEAST_SHARED, 1000):
            monkeypatch.setattr(batch, "LEAST_SHARED", least)
            reader = Slots(model, 0)
            with monkeypatch.context() as during:
                during.setattr(SlotLayer, "_room", noted)
                found.append(sorted(decode(reader, prompts, keys, Rule([3], 12, vocabulary=260), 4)))
            assert len(rooms) == len(reader.cache.slots), "parts of the prompts come later, and find room"
            rooms.clear()
            apart = begun if stays_apart and least != 1000 else 0
            assert {layer.wide for layer in reader.cache.slots} == {slot_cache.rounded(begun - apart + 9 + 12)}
            assert reader.cache.apart == apart
    for (_, ours), (_, others) in zip(*found, strict=True):
        for one, other in zip(ours, others, strict=True):
            assert one.ids == other.ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("begun", [0, 37])
@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_token_attends_to_its_slot_and_to_what_all_begin_with(begun, by_kernel, dtype, monkeypatch):
    monkeypatch.setattr(slot_attention, "in_one_call", lambda *_: by_kernel)
    torch.manual_seed(0)
    rows, heads, of_keys, width, size = 3, 4, 2, 16, 8
    query = torch.randn(rows, heads, 1, size).to(dtype)
    key, value = torch.randn(2, rows, of_keys, width, size).to(dtype)
    first = torch.randn(2, 1, of_keys, begun, size).to(dtype)
    added = torch.zeros(rows, 1, 1, begun + width)
    for row, seen in enumerate((16, 1, 5)):
        added[row, ..., begun + seen :] = -torch.inf
    whole = [torch.cat([each.expand(rows, -1, -1, -1), own], 2) for each, own in zip(first, (key, value), strict=True)]
    keys, values = (each.double().repeat_interleave(heads // of_keys, 1) for each in whole)
    wanted = torch.softmax(0.7 * query.double() @ keys.mT + added.double(), -1) @ values
    key.kept_apart = tuple(first) if begun else None
    found, _ = slot_attention.attend(None, query, key, value, added, scaling=0.7)
    allowed = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 0.02}[dtype]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted.transpose(1, 2), rtol=0, atol=allowed)


@pytest.mark.parametrize("by_kernel", [True, False])
def test_room_is_made_for_a_token_that_has_none(by_kernel, monkeypatch):
    monkeypatch.setattr(slot_cache, "in_one_call", lambda *_: by_kernel)
    cache = SlotCache(1, torch.bfloat16)
    cache.expect(2, 3)
    cache.place_prompts(0, 1, 0, 3)
    [layer] = cache.slots
    layer.update(*torch.ones(2, 2, 1, 3, 4), 0)
    wide, (keys, values) = layer.wide, torch.full((2, 2, 1, 1, 4), 2.0)
    assert cache.place_tokens(torch.tensor([wide, 3])) > wide
    seen, _ = layer.update(keys, values, 0)
    assert seen[:, 0, :, 0].nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, wide], [1, 0], [1, 1], [1, 2], [1, 3]]
    assert seen[0, 0, wide, 0] == seen[1, 0, 3, 0] == 2


def test_tokens_have_places_in_the_slots_from_the_first_on():
    kept = torch.zeros(5, 2, 16, 3)
    places, rows = Places(2, torch.tensor([3, 0])), torch.arange(12.0).view(2, 2, 3)
    kept.view(-1, 3)[places.of(kept)] = rows.flatten(0, 1)
    assert torch.equal(kept[2, :, 3], rows[0])
    assert torch.equal(kept[3, :, 0], rows[1])
    assert (kept != 0).sum() == 11
    wider = torch.zeros(5, 1, 32, 3)
    assert places.of(wider).tolist() == [2 * 32 + 3, 3 * 32]
