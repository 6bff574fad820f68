"""What is learned and scored is what the text says: ids of other texts, and ends that nobody wrote, are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from alignkit.data.chat import ChatFormat
from alignkit.data.encode import EDITED, encode_groups, encode_texts
from alignkit.engine.training_data import TrainingData
from alignkit.groups import Groups
from alignkit.models import Policy
from alignkit.rewards import rank_by_reward
from alignkit.sampling import Sampler
from alignkit.sampling.decode import Sampled
from alignkit.selection import take_responses
from alignkit.testing import tiny_policy

LIMITS: dict[str, Any] = {"max_prompt_tokens": 100, "max_response_tokens": 100}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture
def sampled(policy: Policy) -> Groups:
    return Sampler(max_new_tokens=6).sample(policy, Groups.from_prompts(["a", "b"]), 2)


def learned(groups: Groups, policy: Policy) -> list[list[list[int]]]:
    return [each.responses for each in encode_groups(groups, policy.chat, **LIMITS)[0]]


def by_rows(groups: Groups, new: Mapping[str, Any]) -> Groups:
    return Groups.from_rows([{**row, **new} for row in groups])


def by_columns(groups: Groups, new: Mapping[str, Any]) -> Groups:
    return groups.with_columns({name: [value] * len(groups) for name, value in new.items()})


def by_map(groups: Groups, new: Mapping[str, Any]) -> Groups:
    return groups.map_rows(lambda row: new)


@pytest.mark.parametrize("edit", [by_rows, by_columns, by_map])
def test_an_edited_text_is_what_is_learned(
    policy: Policy, sampled: Groups, edit: Callable[[Groups, Mapping[str, Any]], Groups]
) -> None:
    texts = {"responses": ["edited", "too"]}
    fresh = Groups.from_rows([{"prompt": p, **texts} for p in ("a", "b")])
    assert learned(edit(sampled, texts), policy) == learned(fresh, policy)


def test_what_was_sampled_of_a_text_goes_with_it(sampled: Groups) -> None:
    first = sampled[0]
    edited = sampled.with_columns({"responses": [["edited", first["responses"][1]], sampled[1]["responses"]]})
    assert edited[1] == sampled[1]
    names = ("response_ids", "logprobs", "tokenizer")
    assert [edited[0][name] for name in names] == [None, None, None]
    assert edited[0]["finished"] == [None, first["finished"][1]]


def test_what_is_given_with_a_text_stays(sampled: Groups) -> None:
    new = {"responses": [["x", "y"]] * 2, "response_ids": [[[1], [2]]] * 2, "finished": [[True, False]] * 2}
    assert sampled.with_columns(new).column("response_ids") == new["response_ids"]
    assert sampled.with_columns(new).column("finished") == new["finished"]


def test_what_was_not_edited_keeps_its_ids(policy: Policy, sampled: Groups) -> None:
    before = policy.chat.notes[EDITED]
    assert learned(sampled, policy) == sampled.column("response_ids")
    assert policy.chat.notes[EDITED] == before


def test_a_cut_response_gets_no_end_when_tokenised_anew(policy: Policy) -> None:
    row = {"prompt": "p", "responses": ["half", "whole", "given"], "finished": [False, True, None]}
    rows = Groups.from_rows([row, {**row, "response_ids": [[1], [2], [3]], "tokenizer": "another"}])
    ends = policy.chat.end_ids
    assert [[ids[-1] in ends for ids in each] for each in learned(rows, policy)] == [[False, True, True]] * 2
    assert learned(rows, policy)[0][0] == policy.chat.encode_response("half")[:-1]


def with_bos() -> PreTrainedTokenizerFast:
    tokenizer = Policy.load("tiny").tokenizer
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


def test_plain_text_begins_as_the_tokenizer_begins_it(policy: Policy) -> None:
    tokenizer, text = with_bos(), "plain text"
    rows = Groups.from_rows([{"prompt": [], "prompt_id": "1", "responses": [text]}])
    for known in (tokenizer, policy.tokenizer):
        (piece,) = encode_texts(rows, ChatFormat(known), 100)
        assert piece.prompt_ids + piece.responses[0] == known(text)["input_ids"]
    pieces = encode_texts(rows, ChatFormat(tokenizer), 4)
    assert [i for each in pieces for i in each.prompt_ids + each.responses[0]] == tokenizer(text)["input_ids"]


def test_a_stop_text_ends_a_response_at_its_first_token_and_few_prefixes_are_read(policy: Policy) -> None:
    text = "abc stop def stop " * 40
    ids = policy.chat.encode_text(text)
    asked: Counter[str] = Counter()

    def decode(some: Any) -> str:
        asked["times"] += 1
        return policy.tokenizer.decode(some)

    response = Sampled(ids=list(ids), logprobs=[0.0] * len(ids), sampled_logprobs=[], finished=False)
    original = policy.chat.decode
    policy.chat.decode = decode  # type: ignore[method-assign]
    try:
        Sampler(stop=("stop",))._end_at_stop(response, policy)
    finally:
        policy.chat.decode = original  # type: ignore[method-assign]
    first = next(n for n in range(len(ids) + 1) if "stop" in policy.tokenizer.decode(ids[:n]))
    assert response.ids == ids[:first]
    assert response.finished
    assert asked["times"] <= 2 + len(ids).bit_length()


@pytest.mark.parametrize("at", [1, 2, 5])
def test_the_place_of_a_stop_text_is_exact(policy: Policy, at: int) -> None:
    words = ["a"] * 5
    words[at - 1] = "Z"
    ids = [i for word in words for i in policy.chat.encode_text(word)]
    response = Sampled(ids=list(ids), logprobs=[0.0] * 5, sampled_logprobs=[], finished=False)
    Sampler(stop=("Z",))._end_at_stop(response, policy)
    assert response.ids == ids[:at]
    assert len(response.logprobs) == at


def test_a_response_that_a_stop_text_ended_has_ended(policy: Policy) -> None:
    end = policy.chat.end_of_turn_id
    row = {"prompt": "p", "responses": ["x", "x", "x"], "response_ids": [[5], [5], [5, end]]}
    texts = [policy.chat.decode(ids) for ids in row["response_ids"]]
    row |= {"responses": texts, "finished": [True, False, None], "tokenizer": policy.chat.fingerprint}
    data = TrainingData.whole(policy, Groups.from_rows([row]), **LIMITS)
    assert torch.equal(data.ended(policy.chat.end_ids), torch.tensor([True, False, True]))


META = {"safe": [True, True, False], "scores": [3, 2, 1], "responses": [{"by": "A"}, {"by": "B"}, {"by": "C"}]}


def test_lists_for_each_response_follow_their_responses() -> None:
    row = {"prompt": "p", "responses": ["a", "b", "c"], "meta": {**META, "words": [1, 2, 3]}}
    groups = Groups.from_rows([{**row, "rewards": {"r": [None, 2.0, 1.0]}}])
    some = {"safe": [True, False], "scores": [2, 1], "responses": [{"by": "B"}, {"by": "C"}], "words": [1, 2, 3]}
    assert rank_by_reward(groups, "r").meta(0) == some
    turned = take_responses(groups, [[2, 1]]).meta(0)
    assert (turned["safe"], turned["words"]) == ([False, True], [1, 2, 3])


def test_prompts_alone_say_nothing_of_the_responses_they_had() -> None:
    of_prompt = {"words": [1, 2, 3], "source": "s"}
    row = {"prompt": "p", "responses": ["a", "b", "c"], "meta": {**META, "margin": 2.0, **of_prompt}}
    assert Groups.from_rows([row]).without_responses().meta(0) == of_prompt
    prompt = {**row, "responses": []}
    assert Groups.from_rows([prompt]).without_responses().meta(0) == prompt["meta"]
