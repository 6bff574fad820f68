"""The problem and its exact values: by hand where two responses are enough, else by a second, plainer computation."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from alignkit_enumerable.exact import Landscape, heated, kl, responses_of, table, tokens_of, turns
from alignkit_enumerable.parts import (
    BradleyTerry,
    TableReward,
    data_of,
    draws,
    good_counts,
    labels,
    pairs,
    preference,
    rewards_of,
)
from alignkit_enumerable.problem import (
    END,
    PROMPTS,
    WORDS,
    Problem,
    listed,
    model,
    normals,
    prompts,
    tokenizer,
    tree,
)
from torch import Tensor

from alignkit.plugin import ConfigError, DataError, Groups, Policy

PROBLEM = Problem()
CHAT = Policy(model(PROBLEM.seed), tokenizer()).chat


def policy(seed: int = PROBLEM.seed) -> Policy:
    return Policy(model(seed).double(), tokenizer())


def two(chances: list[float]) -> Tensor:
    """[1, 2] log-probs of one prompt with two responses."""
    return torch.tensor([chances], dtype=torch.float64).log()


# -- the problem -------------------------------------------------------------------------------------------------------


def test_every_response_is_listed_once() -> None:
    words = range(len(WORDS))
    every = {
        r for n in (1, 2) for r in itertools.product(words, repeat=n) if END not in r[:-1] and (n == 2 or r == (END,))
    }
    assert set(tree(2).responses) == every
    assert len(tree(2).responses) == len(every) == 57
    assert len(tree(3).responses) == 400
    assert [tree(2).number(r) for r in tree(2).responses] == list(range(57))


def test_the_way_to_a_response_goes_through_its_beginnings() -> None:
    grown = tree(3)
    place = grown.number((4, 5, END))
    assert [grown.states[s] for s in grown.state[place].tolist()] == [(), (4,), (4, 5)]
    assert grown.token[place].tolist() == [4, 5, END]
    assert grown.mask[grown.number((4, END))].tolist() == [True, True, False]


def test_normal_numbers_are_a_function_of_their_path() -> None:
    drawn = normals(20_000, "a", 1)
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1) < 0.02
    assert abs((drawn[:-1] * drawn[1:]).mean()) < 0.02
    assert (normals(5, "a", 1) == drawn[:5]).all()
    assert (normals(5, "a", 2) != drawn[:5]).all()


def test_the_policy_is_the_same_whatever_was_drawn_before() -> None:
    torch.manual_seed(5)
    first = model(1).state_dict()
    before = torch.random.get_rng_state()
    second = model(1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sum(w.numel() for w in first.values()) == 10_848
    assert float(first["lm_head.weight"].std()) == pytest.approx(0.3, rel=0.15)
    assert not torch.equal(first["lm_head.weight"], model(2).state_dict()["lm_head.weight"])


def test_variants_of_a_prompt_are_told_apart_and_read_alike() -> None:
    rows = list(prompts(600))
    assert len({row["prompt_id"] for row in rows}) == 600
    assert {tuple(CHAT.encode_prompt(row["prompt"])) for row in rows} == {
        tuple(CHAT.encode_prompt(turns(p))) for p in PROMPTS
    }
    assert [listed(row["prompt"][0]["content"]) for row in rows] == [0, 1] * 300
    assert len({row["prompt_id"] for row in prompts(600, apart=False)}) == 2


def test_a_problem_that_cannot_be_listed_is_refused() -> None:
    for wrong in ({"beta": 0.0}, {"beta": math.nan}, {"length": 4}, {"length": 0}):
        with pytest.raises(ConfigError, match=r"suite enumerable|Problem: beta=nan"):
            Problem(**wrong)  # type: ignore[arg-type]


# -- what a policy is worth --------------------------------------------------------------------------------------------


def test_a_table_is_what_the_model_says_of_whole_sequences() -> None:
    live = policy()
    logprobs = table(live, PROBLEM)
    said = responses_of(logprobs, PROBLEM.tree)
    assert float(said.exp().sum(-1).sub(1).abs().max()) < 1e-12
    for prompt, response in ((0, (4, END)), (1, (7, 0)), (0, (END,))):
        ids = [*live.chat.encode_prompt(turns(PROMPTS[prompt])), *response]
        with torch.no_grad():
            logits = live.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(float(logits[len(ids) - len(response) - 1 + t, token]) for t, token in enumerate(response))
        assert float(said[prompt, PROBLEM.tree.number(response)]) == pytest.approx(expected, abs=1e-9)
    assert tokens_of(logprobs, PROBLEM.tree).shape == (2, 57, 2)


def test_a_hot_table_is_flatter_in_every_state() -> None:
    cold = torch.tensor([[[0.8, 0.2]]], dtype=torch.float64).log()
    assert heated(cold, 2.0).exp()[0, 0].tolist() == pytest.approx([2 / 3, 1 / 3])  # 2 to 1: the root of 4 to 1


def test_objective_and_optimum_by_hand() -> None:
    """Two responses, r = (log 2, 0), a fair reference, beta = 1/2: pi* = (4, 1) / 5 and J* = log(2.5) / 2."""
    scape = Landscape(torch.tensor([[math.log(2), 0.0]], dtype=torch.float64), two([0.5, 0.5]), 0.5)
    assert scape.optimum().exp()[0].tolist() == pytest.approx([0.8, 0.2])
    assert float(scape.objective(scape.optimum())) == pytest.approx(math.log(2.5) / 2)
    assert float(scape.objective(scape.ref)) == pytest.approx(math.log(2) / 2)
    assert scape.optimum(0.0).exp()[0].tolist() == [1.0, 0.0]
    assert float(kl(two([0.8, 0.2]), two([0.5, 0.5]))) == pytest.approx(0.8 * math.log(1.6) + 0.2 * math.log(0.4))
    assert float(kl(two([1.0, 0.0]), two([0.5, 0.5]))) == pytest.approx(math.log(2))
    half = float(scape.shares(two([0.65, 0.35])).mean())
    gain = 0.15 * math.log(4) - (0.65 * math.log(1.3) + 0.35 * math.log(0.7))
    assert half == pytest.approx(gain / (math.log(2.5) - math.log(2)))


def test_the_share_is_1_at_the_optimum_and_less_beside_it() -> None:
    scape = Landscape(PROBLEM.rewards(), responses_of(table(policy(), PROBLEM), PROBLEM.tree), 0.5)
    best = scape.optimum()
    assert float(scape.shares(best).mean()) == pytest.approx(1.0)
    assert float(scape.shares(scape.ref).mean()) == pytest.approx(0.0)
    for seed in range(3):
        noise = torch.randn(best.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert float(scape.shares(torch.log_softmax(best + 0.1 * noise, -1)).mean()) < 1.0


def test_the_frontier_is_the_most_reward_at_a_kl() -> None:
    scape = Landscape(PROBLEM.rewards(), responses_of(table(policy(), PROBLEM), PROBLEM.tree), 0.5)
    best = scape.optimum()
    assert scape.frontier(float(kl(best, scape.ref).mean())) == pytest.approx(float(scape.reward(best).mean()))
    assert scape.frontier(0.0) == pytest.approx(float(scape.reward(scape.ref).mean()), abs=1e-4)
    curve = scape.frontier_curve()
    assert curve == sorted(curve)
    assert [scape.frontier(spent) for spent, _ in curve[4:9]] == pytest.approx([reward for _, reward in curve[4:9]])


# -- what is handed out ------------------------------------------------------------------------------------------------


def sampled(*responses: tuple[int, ...], prompt: int = 0) -> Groups:
    ids = [list(r) for r in responses]
    return Groups.from_rows(
        [{"prompt": PROMPTS[prompt], "responses": [CHAT.decode(i) for i in ids], "response_ids": ids}]
    )


def test_a_reward_is_looked_up_by_the_ids() -> None:
    values = TableReward(PROBLEM).score(sampled((4, END), (0, 0), prompt=1)).values
    numbers = [PROBLEM.tree.number((4, END)), PROBLEM.tree.number((0, 0))]
    assert values == [[float(PROBLEM.rewards()[1, n]) for n in numbers]]
    with pytest.raises(DataError, match="not a prompt and responses of the problem"):
        rewards_of(sampled((4, 5, END)), PROBLEM)
    with pytest.raises(DataError, match="row 0"):
        rewards_of(Groups.from_rows([{"prompt": "else", "responses": [""], "response_ids": [[END]]}]), PROBLEM)


def test_a_judge_is_as_sure_as_bradley_and_terry() -> None:
    assert preference([0.0, math.log(3)]) == {"ranks": [2, 1], "preference_prob": pytest.approx(0.75)}
    assert preference([1.0, 1.0])["ranks"] == [1, 1]
    assert preference([1.0, 3.0, 2.0]) == {"ranks": [3, 1, 2], "preference_prob": None}
    (row,) = BradleyTerry(PROBLEM).annotate(sampled((4, END), (0, 0)))["preference"]
    a, b = (float(PROBLEM.rewards()[0, PROBLEM.tree.number(r)]) for r in ((4, END), (0, 0)))
    assert row["ranks"] == ([1, 2] if a > b else [2, 1])
    assert row["preference_prob"] == pytest.approx(1 / (1 + math.exp(-abs(a - b))))


def test_every_response_is_compared_with_eight_others() -> None:
    made = pairs(PROBLEM)
    assert len(made) == 2 * 57 * 4
    for prompt in PROMPTS:
        said = [tuple(ids) for row in made if row["prompt"][0]["content"] == prompt for ids in row["response_ids"]]
        assert {said.count(response) for response in PROBLEM.tree.responses} == {8}
    rewards = rewards_of(made, PROBLEM)
    assert all((a > b) == (row["ranks"] == [1, 2]) for (a, b), row in zip(rewards, made, strict=True))


def test_drawn_labels_come_out_as_often_as_they_should() -> None:
    made, soft = draws(PROBLEM), pairs(PROBLEM)
    right = sum(row["ranks"] == other["ranks"] for row, other in zip(made, soft, strict=True))
    expected = sum(row["preference_prob"] for row in soft)
    spread = math.sqrt(sum(row["preference_prob"] * (1 - row["preference_prob"]) for row in soft))
    assert abs(right - expected) < 3 * spread
    assert 3 * spread < expected / 6
    assert {row["preference_prob"] for row in made} == {None}


def test_labels_say_the_chance_of_being_good_in_eighths() -> None:
    made = labels(PROBLEM)
    counts = [sum(row["labels"][k] for row in made if row["prompt"][0]["content"] == PROMPTS[0]) for k in range(57)]
    assert counts == good_counts(PROBLEM)[0].tolist()
    assert counts[3] == round(8 / (1 + math.exp(-float(PROBLEM.rewards()[0, 3]))))
    assert len(made) == 16


class Given:
    """As much of an optimizer as the suite looks at."""

    def __init__(self, samples: int, rows: int = 0) -> None:
        self.samples_per_prompt, self.prompts_per_round = samples, rows


def test_what_a_method_is_given_follows_from_its_loss() -> None:
    cases: list[tuple[Any, tuple[str, ...], int]] = [
        (Given(4), (), 2),
        (Given(4, 128), (), 128),
        (Given(0), ("chosen_logprobs", "preference_prob"), 456),
        (Given(0), ("chosen_logprobs",), 456),
        (Given(0), ("logprobs", "labels"), 16),
    ]
    assert [len(data_of(PROBLEM, method, asks)) for method, asks, _ in cases] == [rows for _, _, rows in cases]
    assert data_of(PROBLEM, Given(0), ("chosen_logprobs",)).digest() == draws(PROBLEM).digest()
    with pytest.raises(ConfigError, match="One of them would weigh more"):
        data_of(PROBLEM, Given(4, 5), ())
