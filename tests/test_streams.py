"""A second stream of data beside every step."""

from __future__ import annotations

from alignkit import Groups, Term
from alignkit.data.encode import encode_texts
from alignkit.engine.losses import nll
from alignkit.engine.objectives import Objective, StreamData
from alignkit.models import Policy
from alignkit.testing import PAIRS, TEXTS, bound, one_step, ranking, same_gradients, tiny_policy, training_data


def stream_of(groups, weight, batch_size, max_tokens=10**6):
    def make(policy):
        objective = Objective(bound(nll), {"mix": Term(weight=weight, reduction="token")}, "mix")
        return [StreamData("mix", training_data(policy, groups), objective, batch_size, max_tokens, (0, "mix"))]

    return make


def test_a_stream_adds_its_gradient_whatever_its_micro_batches():
    terms = {"loss": Term()}
    rows: list = []
    both = one_step(tiny_policy(), PAIRS, ranking, terms, rows=rows, streams=stream_of(TEXTS, 0.5, 5)).gradients
    split = one_step(tiny_policy(), PAIRS, ranking, terms, streams=stream_of(TEXTS, 0.5, 5, max_tokens=1)).gradients
    alone = one_step(tiny_policy(), PAIRS, ranking, terms).gradients
    mixed = one_step(tiny_policy(), TEXTS, nll, {"loss": Term(weight=0.5, reduction="token")}).gradients
    same_gradients(both, [a + b for a, b in zip(alone, mixed, strict=True)], 1e-5)
    same_gradients(split, both, 1e-5)
    assert rows[0]["mix"] > 0


def test_a_stream_goes_around_its_rows_in_full_batches_without_a_row_twice():
    policy = Policy.load("tiny")
    (stream,) = stream_of(TEXTS, 1.0, 2)(policy)
    steps = [stream.step(index, 1).numbers for index in range(12)]
    assert all(len(set(step)) == 2 for step in steps)
    for lap in range(6):
        assert len({*steps[2 * lap], *steps[2 * lap + 1]}) == 4
    assert {n for step in steps for n in step} == set(range(5))  # what one lap leaves over comes in another
    assert stream.step(3, 1).numbers == steps[3]
    (wide,) = stream_of(TEXTS, 1.0, 50)(policy)
    assert sorted(wide.step(0, 1).numbers) == list(range(5))


def test_long_texts_are_learned_in_pieces_and_nothing_is_cut_off():
    policy = Policy.load("tiny")
    texts = Groups.from_rows([{"prompt": [], "responses": ["abcdefghij"]}, {"prompt": [], "responses": ["k"]}])
    pieces = encode_texts(texts, policy.chat, 4)
    whole = policy.chat.encode_text("abcdefghij")
    assert [i for piece in pieces for i in (*piece.prompt_ids, *piece.responses[0])] == whole
    assert [len(piece.responses[0]) for piece in pieces] == [3, 3, 1]
    assert {piece.index for piece in pieces} == {0}
