"""The shared-prefix batch gives what one response a row gives: values and gradients, whatever stands beside it."""

from __future__ import annotations

import copy

import pytest
import torch

from alignkit.data.encode import EncodedGroup
from alignkit.engine.reference import Reference
from alignkit.engine.setting import Models
from alignkit.models import attention, forward
from alignkit.models import head as head_module
from alignkit.models.attention import LONG, attend, mask_of_pieces
from alignkit.models.batch import collate, plan_micro_batches
from alignkit.models.head import BY_PARTS, CHUNK, token_logprobs
from alignkit.models.policy import Policy
from alignkit.models.tiny import tiny_model

SMALL = {
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def _llama():
    return tiny_model(0)[0]


def _gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=262, n_embd=32, n_layer=2, n_head=2, n_positions=128, **ids))


def _mistral():
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4))


def _qwen2():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=1))


def _gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, sliding_window=4))


def _gpt_oss():
    from transformers import GptOssConfig, GptOssForCausalLM

    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8, "sliding_window": 4}
    model = GptOssForCausalLM(GptOssConfig(**SMALL, **experts))
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks)
    return model


FAMILIES = {
    "llama": _llama,
    "gpt2": _gpt2,
    "mistral window 4": _mistral,
    "qwen2 mixed": _qwen2,
    "gemma2 eager": _gemma2,
    "gpt-oss sinks": _gpt_oss,
}

GROUPS = [
    EncodedGroup(list(range(1, 10)), [list(range(3, 9)), list(range(4, 14)), [7]], None, 0),
    EncodedGroup([5, 6], [[9, 8, 7], [1, 2, 3, 4, 5, 6, 7, 8]], None, 1),
    EncodedGroup([11], [[12, 13]], None, 2),
]
BEGUN = [
    EncodedGroup([*range(40, 49), *g.prompt_ids], g.responses, [i in (4, 9) for i in range(9 + len(g.prompt_ids))], n)
    for n, g in enumerate(GROUPS)
]
"""The same after a beginning that all have, such as a system message; of the prompts two tokens are learned, one of
them of the beginning."""
ANSWERS = BEGUN[0].responses
COMPARED = [
    *(
        EncodedGroup(BEGUN[0].prompt_ids, [ANSWERS[a], ANSWERS[b]], None, n)
        for n, (a, b) in enumerate(((0, 1), (1, 2), (2, 0)))
    ),
    EncodedGroup(BEGUN[0].prompt_ids, [ANSWERS[0], ANSWERS[0]], BEGUN[0].prompt_trained, 3),
    EncodedGroup(BEGUN[2].prompt_ids, BEGUN[2].responses, None, 4),
]
"""Three comparisons of the answers to one prompt, the same answer twice, and another prompt."""


EAGER = ("gemma2 eager", "gpt-oss sinks")


def _model(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    return model if family in EAGER else model.double()  # their own eager forwards give NaN in float64, or refuse it


# Most families take their norms in float32 whatever the weights, so float64 does not show: measured 2e-8 and 1e-5 at
# most.
VALUES, GRADIENTS = 2e-6, 5e-5


def _logprobs(model, groups, shared, packed=False):
    """{response number: log-probs of its tokens} and the gradient of their weighted sum."""
    firsts = [sum(len(g.responses) for g in groups[:i]) for i in range(len(groups))]
    batch = collate(groups, range(len(groups)), firsts, pad_id=0, shared=shared, packed=packed)
    hidden = forward.gather_hidden(forward.hidden_states(model, batch), batch)
    logits = model.get_output_embeddings()(hidden)
    values = torch.log_softmax(logits, -1).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    out = {int(n): values[r][batch.response_mask[r]] for r, n in enumerate(batch.responses)}
    total = sum((n + 1) * (v * torch.arange(1, len(v) + 1)).sum() for n, v in out.items())
    model.zero_grad()
    total.backward()
    return {n: v.detach() for n, v in out.items()}, model.get_input_embeddings().weight.grad.clone()


@pytest.mark.parametrize(("packed", "groups"), [(False, GROUPS), (True, GROUPS), (True, BEGUN), (True, COMPARED)])
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prompts_equal_one_response_a_row(family, packed, groups):
    model = _model(family)
    shared, shared_grad = _logprobs(model, groups, True, packed)
    plain, plain_grad = _logprobs(model, groups, False)
    for number, values in plain.items():
        torch.testing.assert_close(shared[number], values, rtol=0, atol=VALUES)
    torch.testing.assert_close(shared_grad, plain_grad, rtol=0, atol=GRADIENTS * float(plain_grad.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_rows_equal_the_models_own_forward(family):
    """One response alone, through the model as transformers calls it."""
    model = _model(family)
    ours, _ = _logprobs(model, GROUPS, True)
    number = 0
    for group in GROUPS:
        for response in group.responses:
            ids = torch.tensor([group.prompt_ids + response])
            logits = model(ids).logits[0, len(group.prompt_ids) - 1 : -1]
            if getattr(model.config, "final_logit_softcapping", None):
                hidden = forward.body_of(model)(ids).last_hidden_state[0, len(group.prompt_ids) - 1 : -1]
                logits = model.get_output_embeddings()(hidden)
            wanted = torch.log_softmax(logits, -1).gather(-1, torch.tensor(response).unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(ours[number], wanted, rtol=0, atol=VALUES)
            number += 1


@pytest.mark.parametrize("layout", [(True, False), (False, False), (True, True), (False, True)])
def test_batch_composition_and_padding_change_nothing(layout):
    model = _model("llama")
    together, _ = _logprobs(model, GROUPS, *layout)
    alone, _ = _logprobs(model, [GROUPS[1]], *layout)
    torch.testing.assert_close(together[3], alone[0], rtol=0, atol=VALUES)
    torch.testing.assert_close(together[4], alone[1], rtol=0, atol=VALUES)


@pytest.mark.parametrize("packed", [False, True])
def test_responses_do_not_see_one_another(packed):
    model = _model("llama")
    before, _ = _logprobs(model, [EncodedGroup([5, 6], [[9, 8, 7], [1, 2]], None, 0)], True, packed)
    after, _ = _logprobs(model, [EncodedGroup([5, 6], [[200, 201, 202], [1, 2]], None, 0)], True, packed)
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0], after[0])


def test_a_wrong_mask_is_noticed(monkeypatch):
    """The probe is worth something: with a mask that lets responses see one another it says no."""
    model = _model("mistral window 4").float()
    assert forward._probe(model)
    causal = forward.segment_mask

    def leaky(batch, window=None):
        length = batch.segments.shape[1]
        return causal(batch, window) | torch.ones(length, length, dtype=torch.bool).tril()

    monkeypatch.setattr(forward, "segment_mask", leaky)
    assert not forward._probe(model)


def test_wrong_pieces_are_noticed(monkeypatch):
    """A window that is not kept, and a response that does not see its prompt."""
    model = _model("mistral window 4").float()
    assert forward._probe(model, packed=True)
    right = forward.mask_of_pieces
    monkeypatch.setattr(forward, "mask_of_pieces", lambda pieces, window: right(pieces, None))
    assert not forward._probe(model, packed=True)
    monkeypatch.setattr(forward, "mask_of_pieces", lambda pieces, _: right([(n, -1) for n, _ in pieces], 4))
    assert not forward._probe(model, packed=True)


def test_packed_rows_hold_no_padding_and_no_mask_of_the_row(monkeypatch):
    monkeypatch.setattr(forward, "segment_mask", lambda *_: pytest.fail("a mask of the whole row"))
    policy = Policy.load("tiny")
    batch = collate(GROUPS, range(3), [0, 3, 5], pad_id=0, packed=True)
    assert batch.tokens == batch.cells == sum(len(g.prompt_ids) + sum(map(len, g.responses)) for g in GROUPS)
    # A prompt of its own where several responses share it; a single response is one piece with its prompt.
    assert batch.pieces == ((9, -1), (6, 0), (10, 0), (1, 0), (2, -1), (3, 4), (8, 4), (3, -1))
    masks = []
    take = torch.nn.functional.scaled_dot_product_attention

    def noted(*given, attn_mask=None, **more):
        masks.append(None if attn_mask is None else tuple(attn_mask.shape))
        return take(*given, attn_mask=attn_mask, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    policy.tensors(batch)
    assert set(masks) == {None, (6, 15), (10, 19), (1, 10), (3, 5), (8, 10)}
    assert policy.config._attn_implementation == "sdpa", "the attention of others has changed"


def test_what_all_prompts_begin_with_stands_once():
    batch = collate(BEGUN, range(3), [0, 3, 5], pad_id=0, packed=True)
    assert batch.input_ids[0, :9].tolist() == list(range(40, 49))
    assert batch.tokens == batch.cells == 9 + sum(len(g.prompt_ids) + sum(map(len, g.responses)) for g in GROUPS)
    assert batch.pieces == ((9, -1), (9, 0), (6, 1), (10, 1), (1, 1), (2, 0), (3, 5), (8, 5), (3, 0))
    alone = collate(BEGUN[:1], [0], [0], pad_id=0, packed=True)
    assert alone.pieces[0] == (18, -1), "one prompt has nothing in common with others"
    few = [EncodedGroup(g.prompt_ids[2:], g.responses, None, n) for n, g in enumerate(BEGUN)]
    assert collate(few, range(3), [0, 3, 5], pad_id=0, packed=True).pieces[0] == (16, -1), "seven tokens are too few"
    longer = [EncodedGroup([*BEGUN[0].prompt_ids, *more], [[3]], None, n) for n, more in enumerate(([], [1]))]
    assert collate(longer, range(2), [0, 1], pad_id=0, packed=True).pieces == ((17, -1), (2, 0), (3, 0))


def test_what_several_groups_hold_stands_once():
    batch = collate(COMPARED, range(5), [0, 2, 4, 6, 8], pad_id=0, packed=True)
    assert batch.tokens == batch.cells == 18 + 6 + 10 + 1 + 3
    assert batch.pieces == ((9, -1), (9, 0), (6, 1), (10, 1), (1, 1), (3, 0))
    assert batch.responses.tolist() == [*range(9)]
    assert batch.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert batch.last_index[:8].tolist() == [23, 33, 33, 34, 34, 23, 23, 23]
    assert batch.response_mask.sum(1).tolist() == [6, 10, 10, 1, 1, 6, 8, 8, 2], "learned are tokens of the own prompt"


def test_layers_computed_again_take_the_pieces_too():
    model = _model("llama")
    _, wanted = _logprobs(model, GROUPS, True, True)
    forward.checkpoint_layers(model)
    _, found = _logprobs(model, GROUPS, True, True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_attention_that_knows_more_is_refused():
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(NotImplementedError, match="position_bias"):
        attend(None, states, states, states, mask_of_pieces([(3, -1)], None), position_bias=states)


@pytest.mark.parametrize("kind", ["autocast", "bfloat16"])
def test_in_sixteen_bits_pieces_are_no_further_from_float64_than_padded_rows(kind):
    """Attention is done in float32 where the processor's kernel is slow in sixteen bits."""
    exact, _ = _logprobs(_model("llama"), GROUPS, False)
    model = _model("llama").to(torch.bfloat16 if kind == "bfloat16" else torch.float32)

    def off(packed):
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            found, _ = _logprobs(model, GROUPS, True, packed)
        return float(torch.cat([found[n].double() - exact[n] for n in exact]).abs().mean())

    assert off(True) <= 1.3 * off(False)


def test_denied_family_takes_the_plain_way_and_says_so(caplog):
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=262, hidden_size=16, num_hidden_layers=1, state_size=4))
    with caplog.at_level("WARNING", logger="alignkit"):
        assert not forward.can_share_prompts(model)
    assert "plain forward" in caplog.text


def _reference(weight, hidden, targets, temperature):
    logits = hidden @ weight.T / temperature
    logprobs = torch.log_softmax(logits, -1)
    return logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1), -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("tokens", [0, 3, CHUNK + 5, BY_PARTS + 5])
def test_token_logprobs_equal_full_log_softmax(temperature, trainable, tokens):
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    torch.nn.init.normal_(head.weight, generator=generator)
    head.weight.requires_grad_(trainable)
    hidden = torch.randn(tokens, 8, generator=generator, requires_grad=True)
    targets = torch.randint(50, (tokens,), generator=generator)
    upstream = torch.randn(tokens, generator=generator)

    logprobs, entropy, _ = token_logprobs(head, hidden, targets, temperature=temperature)
    wanted, wanted_entropy = _reference(head.weight, hidden, targets, temperature)
    torch.testing.assert_close(logprobs, wanted, rtol=0, atol=5e-6)  # float32; 1e-6 measured
    torch.testing.assert_close(entropy, wanted_entropy.detach(), rtol=0, atol=5e-5)  # 2e-5 measured
    if tokens:
        parameters = [hidden, head.weight] if trainable else [hidden]
        ours = torch.autograd.grad((logprobs * upstream).sum(), parameters)
        theirs = torch.autograd.grad((wanted * upstream).sum(), parameters)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("kind", ["float32", "autocast", "bfloat16", "float64"])
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_fused_head_is_the_plain_one(monkeypatch, kind, trainable, bias):
    """Values and gradients of the linear head, which takes shortcuts, are as near to float64's as those that autograd
    works out from a head of which nothing is known."""
    monkeypatch.setattr(head_module, "NEAR", 100 * 60)
    generator = torch.Generator().manual_seed(0)
    dtype = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(kind, torch.float32)
    head = torch.nn.Linear(16, 60, bias=bias, dtype=dtype).requires_grad_(trainable)
    hidden = torch.randn(BY_PARTS + 7, 16, generator=generator).to(dtype).requires_grad_(True)
    targets = torch.randint(60, (len(hidden),), generator=generator)
    upstream = torch.randn(len(hidden), generator=generator)
    learned = [hidden, *(head.parameters() if trainable else ())]

    def found(which):
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            out = token_logprobs(which, hidden, targets, temperature=0.8)
        gradients = torch.autograd.grad((out.logprobs * upstream).sum(), learned)
        return [out.logprobs.detach(), out.entropy, *gradients]

    fused, plain = found(head), found(lambda states: head(states))
    exact_head, exact_hidden = copy.deepcopy(head).double(), hidden.detach().double().requires_grad_(True)
    weights = [exact_head.weight, *([exact_head.bias] if bias else [])]
    log = (exact_head(exact_hidden) / 0.8).log_softmax(-1)
    value = log.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    exact = [value, -(log.exp() * log).sum(-1)]
    exact += torch.autograd.grad((value * upstream).sum(), [exact_hidden, *(weights if trainable else ())])
    for mine, theirs, right in zip(fused, plain, exact, strict=True):
        assert mine.dtype == theirs.dtype
        off, allowed = ((each.double() - right).abs().max() for each in (mine, theirs))
        assert off <= 2 * allowed + 3e-6, (float(off), float(allowed))
    assert torch.equal(fused[0], token_logprobs(head, hidden.detach(), targets, temperature=0.8, entropy=False)[0]) or (
        kind == "autocast"
    )


def test_entropy_gradient_is_there_when_asked_for():
    head = torch.nn.Linear(4, 9, bias=False)
    hidden = torch.randn(5, 4, requires_grad=True)
    targets = torch.arange(5)
    _, entropy, _ = token_logprobs(head, hidden, targets, entropy_gradient=True)
    _, wanted = _reference(head.weight, hidden, targets, 1.0)
    (ours,) = torch.autograd.grad(entropy.sum(), hidden)
    (theirs,) = torch.autograd.grad(wanted.sum(), hidden)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    _, detached, _ = token_logprobs(head, hidden, targets)
    assert not detached.requires_grad


def test_trained_turns_of_a_prompt_are_targets_too():
    group = EncodedGroup([1, 2, 3, 4, 5], [[6, 7]], [False, True, True, False, False], 0)
    batch = collate([group], [0], [0], pad_id=0)
    assert batch.targets[0][batch.response_mask[0]].tolist() == [2, 3, 6, 7]
    assert batch.predict_index[0].tolist() == [0, 1, 4, 5]


def test_micro_batches_hold_the_budget_and_every_item_once():
    lengths = [10, 3, 8, 50, 8, 1, 2]
    plan = plan_micro_batches(lengths, 24)
    assert sorted(i for batch in plan for i in batch) == list(range(7))
    assert all(len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 24 for batch in plan)
    even = plan_micro_batches(lengths, 1000, multiple_of=4)
    assert len(even) % 4 == 0
    assert sorted(i for batch in even for i in batch) == list(range(7))


def test_packed_micro_batches_hold_the_budget_and_are_full():
    lengths = [10, 3, 8, 50, 8, 1, 2]
    plan = plan_micro_batches(lengths, 24, packed=True)
    assert plan == [[3], [0, 2, 1, 6, 5], [4]]
    even = plan_micro_batches(lengths, 1000, multiple_of=4, packed=True)
    assert len(even) % 4 == 0
    assert sorted(i for batch in even for i in batch) == list(range(7))


def test_policy_tensors_pad_with_zeros():
    policy = Policy.load("tiny")
    batch = collate(GROUPS, range(3), [0, 3, 5], pad_id=0)
    with torch.no_grad():
        out = policy.tensors(batch, {"logprobs", "entropy"})
    assert (out["logprobs"][~batch.response_mask] == 0).all()
    assert (out["logprobs"][batch.response_mask] < 0).all()


def test_batches_are_laid_out_for_every_model_that_reads_them():
    """A reference or a value model of a family that cannot share prompts, or not in one row, reads the same batches."""
    for shares, packs in ((False, False), (True, False)):
        policy, other = Policy.load("tiny"), Policy.load("tiny")
        assert policy.packs_rows
        other._shares, other._beside = shares, (True, packs)
        Models(policy, policy, Reference(other))
        assert (policy.shares_prompts, policy.packs_rows) == (shares, packs)
        alone = Policy.load("tiny")
        Models(alone, alone, None, other)
        assert (alone.shares_prompts, alone.packs_rows) == (shares, packs)
        Models(own := Policy.load("tiny"), own, Reference(own))
        assert own.packs_rows


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("kind", ["autocast", "bfloat16"])
def test_pieces_attend_in_the_type_that_is_fast_here(monkeypatch, units, kind):
    """Each in its own: torch's gradient of short texts takes ten times as long in bfloat16."""
    seen, once = list[tuple[int, set[torch.dtype]]](), torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(attention, "has_matrix_units", lambda: units)
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v, **named: (seen.append((q.shape[2], {q.dtype, k.dtype, v.dtype})), once(q, k, v, **named))[1],
    )
    generator = torch.Generator().manual_seed(0)
    pieces = mask_of_pieces([(3, -1), (LONG, 0), (LONG - 1, 0), (5, 1)], None)
    given = [torch.randn(1, 2, 2 * LONG + 7, 4, generator=generator) for _ in range(3)]
    if kind == "bfloat16":
        given = [each.bfloat16() for each in given]
    exact, _ = attend(None, *(each.float() for each in given), pieces)
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
        found, _ = attend(None, *(each.requires_grad_() for each in given), pieces)
    long = torch.bfloat16 if units else torch.float32
    assert seen == [(3, {torch.float32}), (LONG, {long}), (LONG - 1, {torch.float32}), (5, {torch.float32})]
    assert found.dtype is torch.bfloat16
    assert found.shape == (1, 2 * LONG + 7, 2, 4)
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)
    found.sum().backward()
    assert {each.grad.dtype for each in given} == {given[0].dtype}
    with torch.autocast("cpu", enabled=False):
        assert attend(None, *(each.double() for each in given), pieces)[0].dtype is torch.float64


def test_gradients_of_states_that_many_responses_read_are_the_same_each_time():
    """Two threads add to the last state of a prompt, from which each of its responses begins."""
    groups = [EncodedGroup([1, 2, 3], [[4 + n, *[7] * 47] for n in range(8)], None, 0)]
    batch = collate(groups, [0], [0], pad_id=0, packed=True)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*batch.input_ids.shape, 576, generator=generator).requires_grad_(True)
    slopes = torch.randn(8, 48, 576, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [torch.autograd.grad(forward.gather_hidden(hidden, batch), hidden, slopes)[0] for _ in range(40)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, found[0]) for each in found)
    torch.testing.assert_close(found[0][0, 2], slopes[:, 0].sum(0))


ALIKE = [(3, -1), (4, 0), (5, 1), (5, 1), (5, 1), (2, 1), (2, 0), (2, 0), (6, -1), (3, 8), (3, 8), (3, -1), (3, -1)]
"""Pieces, of which some that nothing goes on from are as long as their neighbours."""


def test_pieces_that_are_read_in_one_call(monkeypatch):
    """Neighbours of one length that go on from the same piece, of so many keys at the most."""
    pieces = tuple((*piece, 0) for piece in ALIKE)
    runs = [alike for _, _, _, alike in attention._runs(pieces)]
    assert runs == [1, 1, 3, 1, 2, 1, 2, 1, 1]
    assert [run[:3] for run in attention._runs(pieces) for _ in range(run[3])] == list(pieces)
    monkeypatch.setattr(attention, "AT_ONCE", 2 * 5 * (3 + 4 + 5))
    monkeypatch.setattr(attention, "LEAST", 4)
    attention._runs.cache_clear()
    assert [alike for _, _, _, alike in attention._runs(pieces)] == [1, 1, 2, 1, 1, 2, 1, 2, 1, 1]
    attention._runs.cache_clear()
    gone_on_from = ((4, -1, 0), (2, 0, 0), (2, 0, 0), (2, 0, 0), (3, 1, 0))
    assert [alike for _, _, _, alike in attention._runs(gone_on_from)] == [1, 1, 2, 1]
    windows = ((4, -1, 0), (2, 0, 0), (2, 0, 3), (2, 0, 3))
    assert [alike for _, _, _, alike in attention._runs(windows)] == [1, 1, 2]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("more", [{}, {"softcap": 2.0}, {"s_aux": torch.tensor([0.3, -1.0, 0.5, 2.0])}])
def test_one_call_gives_what_a_call_each_gives(monkeypatch, window, more):
    tokens = sum(size for size, _ in ALIKE)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, tokens, 8) for heads in (4, 2, 2)]
    given = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    slopes = torch.randn(1, tokens, 4, 8, generator=generator, dtype=torch.float64)
    pieces = attention.mask_of_pieces(ALIKE, window)
    found = attention.attend(None, *given, pieces, **more)[0]
    gradients = torch.autograd.grad(found, given, slopes)
    monkeypatch.setattr(attention, "_runs", lambda pieces: [(*piece, 1) for piece in pieces])
    wanted = attention.attend(None, *given, pieces, **more)[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for mine, theirs in zip(gradients, torch.autograd.grad(wanted, given, slopes), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.float32, "autocast", torch.bfloat16, torch.float64])
@pytest.mark.parametrize("learned", ["hidden weight", "hidden weight bias", "hidden bias", "hidden", "weight", "bias"])
@pytest.mark.parametrize("tokens", [1, 12, 23])
def test_gradients_of_the_head_in_groups(monkeypatch, kind, learned, tokens):
    """One product a group of chunks gives what one for all gives."""
    dtype = torch.float32 if kind == "autocast" else kind
    wanted, bias = learned.split(), learned != "hidden weight"
    size = torch.finfo(torch.bfloat16 if kind == "autocast" else dtype).bits // 8
    monkeypatch.setattr(head_module, "BY_PARTS", 3)
    monkeypatch.setattr(head_module, "GROUP", 2 * 3 * 37 * size + 1)  # two chunks
    monkeypatch.setattr(head_module, "ROWS", 5)
    monkeypatch.setattr(head_module, "NEAR", 2 * 37 + 1)  # two rows
    generator = torch.Generator().manual_seed(0)
    named = {
        "hidden": torch.randn(tokens, 16, generator=generator).to(dtype),
        "weight": torch.randn(37, 16, generator=generator).to(dtype),
        **({"bias": torch.randn(37, generator=generator).to(dtype)} if bias else {}),
    }
    targets = torch.randint(37, (tokens,), generator=generator)
    upstream = torch.randn(tokens, generator=generator)
    products = list[tuple[int, ...]]()
    once = head_module.linear
    monkeypatch.setattr(
        head_module,
        "linear",
        lambda x, weight, *more: (products.append((len(x), weight.shape[1])), once(x, weight, *more))[1],
    )
    head = torch.nn.Linear(16, 37, bias=bias, dtype=dtype)
    head.weight = torch.nn.Parameter(named["weight"].clone(), "weight" in wanted)
    if bias:
        head.bias = torch.nn.Parameter(named["bias"].clone(), "bias" in wanted)
    hidden = named["hidden"].clone().requires_grad_("hidden" in wanted)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        value = token_logprobs(head, hidden, targets, temperature=0.8).logprobs
    given = {"hidden": hidden, **dict(head.named_parameters())}
    found = torch.autograd.grad((value * upstream).sum(), [given[name] for name in wanted])

    exact = {name: each.double().requires_grad_(name in wanted) for name, each in named.items()}
    log = (torch.nn.functional.linear(exact["hidden"], exact["weight"], exact.get("bias")) / 0.8).log_softmax(-1)
    value = log.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    right = torch.autograd.grad((value * upstream).sum(), [exact[name] for name in wanted])
    low = kind in ("autocast", torch.bfloat16)
    for name, mine, theirs in zip(wanted, found, right, strict=True):
        assert mine.dtype is dtype
        off = (mine - theirs).norm() / theirs.norm()
        assert off < (0.02 if low else 1e-5), (name, float(off))
    of_weight = [shape for shape in products if shape[1] <= 6]
    groups = [min(6, tokens - start) for start in range(0, tokens, 6)] if "weight" in wanted else []
    assert of_weight == [(rows, size) for size in groups for rows in ([5] * 7 + [2] if low else [37])]
