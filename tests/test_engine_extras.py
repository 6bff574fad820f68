"""What an optimizer may add to a step: extra losses, a second stream, pairs between prompts, annotators, a measure."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch

from alignkit import Batch, ConfigError, DataError, Groups, LoRA, PolicyOptimizer, Run, Term
from alignkit.annotators import Annotator
from alignkit.data.encode import encode_groups, encode_texts
from alignkit.engine.assemble import assemble
from alignkit.engine.fit import fit
from alignkit.engine.improve import improvement
from alignkit.engine.judging import Judging
from alignkit.engine.learner import Learner
from alignkit.engine.lesson import OneRound
from alignkit.engine.losses import nll
from alignkit.engine.objectives import Objective, StreamData, extra_objectives
from alignkit.engine.reference import Reference
from alignkit.engine.setting import Models, Setting
from alignkit.engine.training_data import TrainingData
from alignkit.functional import logistic_ranking, preference_cross_entropy
from alignkit.models import Policy
from alignkit.optimizers import Training
from alignkit.plugin import Stream
from alignkit.registry.host import PluginHost
from alignkit.rewards import FunctionReward
from alignkit.sampling import Sampler
from alignkit.selection import best_responses, rank_by_reward

HOST = PluginHost(allow=())
PAIRS = Groups.from_rows(
    {"prompt": f"p{i}", "responses": ["yes" * (i + 1), "no" * (4 - i)], "ranks": [1, 2]} for i in range(4)
)
DEMOS = Groups.from_rows({"prompt": f"text {i}", "responses": ["abc" * (i + 1)]} for i in range(5))


def bound(function):
    return HOST.build("loss", function)


def make_round(policy, groups, pairs=None):
    encoded, problems = encode_groups(groups, policy.chat, max_prompt_tokens=500, max_response_tokens=500)
    assert not problems
    return TrainingData(groups, encoded, shared=policy.shares_prompts, pad_id=policy.chat.pad_id, named_pairs=pairs)


class Watched(Learner):
    """Keeps the gradients of each step."""

    def _clip(self):
        self.gradients = [p.grad.clone() for p in self.parameters() if p.grad is not None]
        return super()._clip()


def one_step(groups, loss, terms, *, max_tokens=10**6, pairs=None, rows=None, **kwargs):
    policy = Policy.load("tiny", trainable=True)
    data = make_round(policy, groups, pairs)
    steps = data.steps(0, 1, max_tokens, (0, "order"))
    config = Training(max_grad_norm=0.0)
    record = (rows if rows is not None else []).append
    built = {key: value(policy) if callable(value) else value for key, value in kwargs.items()}
    made = Watched(policy, bound(loss), terms, config, OneRound(data, steps), record=record, **built)
    fit(made, precision="32-true", trainer={"accelerator": "cpu"})
    return made


def close(mine, other, atol=1e-6):
    assert len(mine) == len(other) > 5
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol * max(1.0, float(b.abs().max())))


# -- extra losses --------------------------------------------------------------------------------------------------


def ranking(chosen_logprobs, rejected_logprobs):
    return logistic_ranking(0.1 * (chosen_logprobs - rejected_logprobs))


def chosen_nll(chosen_logprobs):
    return -chosen_logprobs


def watch(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs=None):
    gap = chosen_logprobs - rejected_logprobs
    return {"gap": gap, "referenced": torch.full_like(gap, float(ref_chosen_logprobs is not None))}


def test_an_extra_loss_with_a_weight_adds_its_gradient():
    """The sum of both, each at its own level."""
    terms = {"loss": Term(), "chosen_nll": Term(weight=0.25)}
    both = one_step(PAIRS, ranking, terms, extras=extra_objectives({"chosen_nll": bound(chosen_nll)}, terms)).gradients
    alone = one_step(PAIRS, ranking, {"loss": Term()}).gradients
    extra = one_step(PAIRS, chosen_nll, {"loss": Term(weight=0.25)}).gradients
    close(both, [a + b for a, b in zip(alone, extra, strict=True)], 1e-5)
    assert max(float((a - b).abs().max()) for a, b in zip(both, alone, strict=True)) > 1e-3


def test_an_undeclared_extra_term_is_logged_and_changes_nothing():
    rows: list = []
    terms = {"loss": Term()}
    extras = extra_objectives({"watch": bound(watch)}, terms)
    watched = one_step(PAIRS, ranking, terms, rows=rows, extras=extras)
    alone = one_step(PAIRS, ranking, terms)
    for a, b in zip(watched.gradients, alone.gradients, strict=True):
        assert torch.equal(a, b)
    policy = Policy.load("tiny")
    data = make_round(policy, PAIRS)
    tensors, _ = assemble(policy, data, data.collate(range(4)), frozenset({"chosen_logprobs"}))
    expected = float((tensors["chosen_logprobs"] - tensors["rejected_logprobs"]).mean())
    assert rows[0]["gap"] == pytest.approx(expected, abs=1e-4)
    assert rows[0]["referenced"] == 0.0


def test_a_declared_term_that_no_loss_returns_is_told():
    with pytest.raises(ConfigError, match="no loss returned"):
        one_step(PAIRS, ranking, {"loss": Term(), "bonus": Term()})


def test_two_losses_with_one_term_name_are_told():
    terms = {"loss": Term()}
    with pytest.raises(ConfigError, match="two losses"):
        one_step(PAIRS, ranking, terms, extras=extra_objectives({"loss": bound(chosen_nll)}, terms))


def test_levels_of_loss_and_extra_loss_are_independent():
    """A pair loss beside a token loss with its own token mean."""
    rows: list = []
    terms = {"loss": Term(), "imitation": Term(weight=1.0, reduction="token")}
    one_step(PAIRS, ranking, terms, rows=rows, extras=extra_objectives({"imitation": bound(nll)}, terms))
    alone: list = []
    one_step(PAIRS, nll, {"loss": Term(reduction="token")}, rows=alone)
    assert rows[0]["imitation"] == pytest.approx(alone[0]["loss"], abs=1e-5)
    assert rows[0]["loss"] > rows[0]["imitation"]


# -- a second stream -----------------------------------------------------------------------------------------------


def stream_of(groups, weight, batch_size, max_tokens=10**6):
    def make(policy):
        objective = Objective(bound(nll), {"mix": Term(weight=weight, reduction="token")}, "mix")
        return [StreamData("mix", make_round(policy, groups), objective, batch_size, max_tokens, (0, "mix"))]

    return make


def test_a_stream_adds_its_gradient_whatever_its_micro_batches():
    terms = {"loss": Term()}
    rows: list = []
    both = one_step(PAIRS, ranking, terms, rows=rows, streams=stream_of(DEMOS, 0.5, 5)).gradients
    split = one_step(PAIRS, ranking, terms, streams=stream_of(DEMOS, 0.5, 5, max_tokens=1)).gradients
    alone = one_step(PAIRS, ranking, terms).gradients
    mixed = one_step(DEMOS, nll, {"loss": Term(weight=0.5, reduction="token")}).gradients
    close(both, [a + b for a, b in zip(alone, mixed, strict=True)], 1e-5)
    close(split, both, 1e-5)
    assert rows[0]["mix"] > 0


def test_a_stream_goes_around_its_rows_in_full_batches_without_a_row_twice():
    policy = Policy.load("tiny")
    (stream,) = stream_of(DEMOS, 1.0, 2)(policy)
    steps = [stream.step(index, 1).numbers for index in range(12)]
    assert all(len(set(step)) == 2 for step in steps)
    for lap in range(6):
        assert len({*steps[2 * lap], *steps[2 * lap + 1]}) == 4
    assert {n for step in steps for n in step} == set(range(5))  # what one lap leaves over comes in another
    assert stream.step(3, 1).numbers == steps[3]
    (wide,) = stream_of(DEMOS, 1.0, 50)(policy)
    assert sorted(wide.step(0, 1).numbers) == list(range(5))


def test_long_texts_are_learned_in_pieces_and_nothing_is_cut_off():
    policy = Policy.load("tiny")
    texts = Groups.from_rows([{"prompt": [], "responses": ["abcdefghij"]}, {"prompt": [], "responses": ["k"]}])
    pieces = encode_texts(texts, policy.chat, 4)
    whole = policy.chat.encode_text("abcdefghij")
    assert [i for piece in pieces for i in (*piece.prompt_ids, *piece.responses[0])] == whole
    assert [len(piece.responses[0]) for piece in pieces] == [3, 3, 1]
    assert {piece.index for piece in pieces} == {0}


# -- pairs between prompts -----------------------------------------------------------------------------------------


def test_pairs_between_prompts_stay_in_one_micro_batch_and_give_the_same_gradient():
    """Responses 0, 2 and 5 answer different prompts; 8 pairs would be made from the ranks otherwise."""
    pairs = [(0, 2), (5, 7), (2, 4)]
    whole = one_step(PAIRS, ranking, {"loss": Term()}, pairs=pairs)
    single = one_step(PAIRS, ranking, {"loss": Term()}, pairs=pairs, max_tokens=1)
    close(single.gradients, whole.gradients, 1e-5)
    data = make_round(Policy.load("tiny"), PAIRS, pairs)
    assert data.units == [[0, 1, 2, 3]]  # 0-2 joins groups 0 and 1, 2-4 joins 1 and 2, 5-7 joins 2 and 3
    for world in (1, 4):  # more processes than units: some are idle, and none gets half a unit
        (step,) = data.steps(0, 1, 10**6, (0,), world)
        assert [len(part) for part in step.micro if part] == [4]
    apart = make_round(Policy.load("tiny"), PAIRS, [(0, 2), (4, 6)])
    assert apart.units == [[0, 1], [2, 3]]
    steps = apart.steps(1, 1, 1, (0,))
    assert sorted(sorted(step.numbers) for step in steps) == [[0, 1], [2, 3]]


def test_pair_sums_of_two_prompts_are_those_of_their_own_responses():
    policy = Policy.load("tiny")
    data = make_round(policy, PAIRS, [(1, 6)])
    tensors, group = assemble(policy, data, data.collate([0, 3]), frozenset({"chosen_logprobs"}))
    alone = make_round(policy, PAIRS)
    first, _ = assemble(policy, alone, alone.collate([0]), frozenset({"chosen_logprobs"}))
    last, _ = assemble(policy, alone, alone.collate([3]), frozenset({"chosen_logprobs"}))
    assert group is not None
    assert group.tolist() == [0]
    torch.testing.assert_close(tensors["chosen_logprobs"], first["rejected_logprobs"], rtol=0, atol=1e-4)
    torch.testing.assert_close(tensors["rejected_logprobs"], last["chosen_logprobs"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("pair", [(0, 8), (3, 3), (-1, 2)])
def test_a_pair_outside_the_round_is_refused(pair):
    data = make_round(Policy.load("tiny"), PAIRS, [pair])
    with pytest.raises(DataError, match="not a pair"):
        _ = data.pairs


# -- labels and the mean over the vocabulary -------------------------------------------------------------------------


def test_labels_reach_the_loss_with_unknown_told_apart():
    rows = [
        {"prompt": "a", "responses": ["x", "y"], "labels": [True, False]},
        {"prompt": "b", "responses": ["z"]},
    ]
    policy = Policy.load("tiny")
    data = make_round(policy, Groups.from_rows(rows))
    tensors, _ = assemble(policy, data, data.collate([1, 0]), frozenset({"labels", "logprobs"}))
    assert tensors["labels"].tolist() == [-1.0, 1.0, 0.0]


def test_mean_logprobs_are_the_mean_over_the_vocabulary():
    policy = Policy.load("tiny", trainable=True)
    data = make_round(policy, DEMOS)
    batch = data.collate([0])
    tensors = policy.tensors(batch, ("logprobs", "mean_logprobs"), temperature=0.7)
    ids = torch.tensor([data.encoded[0].prompt_ids + data.encoded[0].responses[0]])
    logits = policy.model(ids).logits[0].float() / 0.7
    start = len(data.encoded[0].prompt_ids) - 1
    expected = logits.log_softmax(-1).mean(-1)[start : start + len(data.encoded[0].responses[0])]
    torch.testing.assert_close(tensors["mean_logprobs"][0], expected, rtol=0, atol=1e-5)
    tensors["mean_logprobs"].sum().backward()
    assert any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in policy.parameters())


# -- improve: annotator, measure, laps, reference on line ------------------------------------------------------------


def letters(meta, response, finished):
    return sum(c.isalpha() for c in response) / (len(response) or 1)


@dataclass(frozen=True)
class Learns(PolicyOptimizer):
    """Learns from pairs; keeps what it was given."""

    loss: object = ranking
    samples_per_prompt: int = 2
    learning_rate: float = 1e-2

    def prepare(self, groups, state, *, measure, max_new_tokens):
        ranked = groups if groups[0]["ranks"] else rank_by_reward(groups, groups.reward_names()[0])
        found = measure(ranked, "logprobs", "ref_logprobs")
        gap = (found["logprobs"] - found["ref_logprobs"]) * found["response_mask"]
        return Batch(ranked, metrics={"gap": float(gap.abs().max()), "most": float(max_new_tokens)})


class Longest(Annotator):
    """The longer response is better."""

    def annotate(self, groups, seed=0):
        def rank(row):
            lengths = [len(r) for r in row["responses"]]
            return {"ranks": [1 + sum(other > n for other in lengths) for n in lengths]}

        return {"preference": groups.map_rows(rank)}

    def key(self):
        return "longest"


LETTERS = FunctionReward(letters)
SAYINGS = Groups.from_prompts([f"say {i}" for i in range(5)])


def source_of(policy, optimizer, *, reward=LETTERS, annotator=None, max_missing=0.05, **changes):
    """The rounds by which `policy` is improved; the models among `changes` take their place beside it."""
    models = {"behaviour": policy, "reference": Reference(Policy.load("tiny"))}
    models |= {key: changes.pop(key) for key in ("reference", "value_model") if key in changes}
    made = {
        "losses": [bound(optimizer.loss)],
        "sampler": Sampler(max_new_tokens=8),
        "prompts": SAYINGS,
        "setting": Setting(seed=(0, "stage"), max_tokens=200),
        "max_response_tokens": 64,
    } | changes
    judging = Judging(made["setting"], reward, annotator, max_missing)
    return improvement(optimizer, models=Models(policy, **models), judging=judging, **made)


def test_measure_gives_logprobs_of_any_groups_and_no_gap_before_the_first_step():
    policy = Policy.load("tiny", trainable=True)
    source = source_of(policy, Learns())
    source.lesson(source.collect(0), 0)
    assert source.last["gap"] == 0.0
    assert source.last["most"] == 8.0
    found = source.known.measure(PAIRS, "logprobs")
    data = make_round(policy, PAIRS)
    with torch.no_grad():
        expected = policy.tensors(data.collate(range(4)))["logprobs"]
    mask = found["response_mask"]
    torch.testing.assert_close(found["logprobs"][mask], expected[mask[:, : expected.shape[1]]], rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="cannot give"):
        source.known.measure(PAIRS, "advantages")


def test_an_annotator_ranks_each_round_and_no_reward_is_needed():
    policy = Policy.load("tiny", trainable=True)
    source = source_of(policy, Learns(), reward=None, annotator=Longest())
    data = source.lesson(source.collect(0), 0).data
    for row in data.groups:
        lengths = [len(r) for r in row["responses"]]
        assert (row["ranks"][0] < row["ranks"][1]) == (lengths[0] > lengths[1])


def test_sampling_without_reward_or_annotator_is_told():
    with pytest.raises(ConfigError, match="a reward or an annotator"):
        source_of(Policy.load("tiny", trainable=True), Learns(), reward=None)


def test_a_method_that_learns_from_scores_is_told_that_an_annotator_gives_ranks():
    @dataclass(frozen=True)
    class Scored(Learns):
        def prepare(self, groups, state, *, reward_name):
            return Batch(groups)

    with pytest.raises(ConfigError, match="learns from scores"):
        source_of(Policy.load("tiny"), Scored(), reward=None, annotator=Longest())
    source_of(Policy.load("tiny"), Scored(), annotator=Longest())


def test_missing_rewards_are_counted_over_the_whole_round():
    """Of 10 responses at first none is missing; of the 2 sampled anew one: 1 of 12, not 1 of 2."""
    asked = []

    def sometimes(meta, response, finished):
        asked.append(response)
        return None if len(asked) == 11 else 1.0

    @dataclass(frozen=True)
    class Choosy(Learns):
        def keep(self, groups):
            return [len(asked) > 10 or i > 0 for i in range(len(groups))]

    source = source_of(Policy.load("tiny", trainable=True), Choosy(), reward=FunctionReward(sometimes), max_missing=0.1)
    source.collect(0)
    assert len(asked) == 12


def test_samples_cannot_be_shared_by_rounds_that_compare_with_their_sampler():
    @dataclass(frozen=True)
    class Ratios(Learns):
        sample_every: int = 2

        def prepare(self, groups, state, *, logprobs):
            return Batch(groups)

    with pytest.raises(ConfigError, match="sample_every"):
        source_of(Policy.load("tiny"), Ratios(rounds=2))


def test_an_annotator_of_two_dimensions_is_told():
    class Two(Longest):
        def annotate(self, groups, seed=0):
            return {"a": groups, "b": groups}

    source = source_of(Policy.load("tiny", trainable=True), Learns(), reward=None, annotator=Two())
    with pytest.raises(ConfigError, match="one dimension"):
        source.collect(0)


@pytest.mark.parametrize(("per_round", "laps"), [(0, 1), (2, 3), (5, 1)])
def test_rounds_zero_is_one_lap_over_the_prompts(per_round, laps):
    source = source_of(Policy.load("tiny"), Learns(rounds=0, prompts_per_round=per_round))
    assert source.count == laps
    drawn = {row["prompt_id"] for index in range(laps) for row in source.collect.round_prompts(index)}
    assert len(drawn) == 5


def referenced(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs):
    return ranking(chosen_logprobs - ref_chosen_logprobs, rejected_logprobs - ref_rejected_logprobs)


@dataclass(frozen=True)
class Given(PolicyOptimizer):
    """Learns from the comparisons that it is given."""

    loss: object = referenced
    samples_per_prompt: int = 0
    batch_size: int = 2
    learning_rate: float = 1e-2
    mix: float = 0.0

    def prepare(self, groups, state):
        return Batch(groups)

    def streams(self):
        return {"mix": Stream(weight=self.mix, batch_size=2)} if self.mix else {}


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_reference_kept_and_online_give_the_same_bits(tmp_path, lora):
    """In the first epoch the micro-batches are the same ones; another reference than the policy's start."""
    digests = []
    for how in ("kept", "online"):
        with Run(tmp_path / how, quiet=True) as run:
            policy = run.policy("tiny", lora=lora)
            other = run.improve(policy, PAIRS, optimizer=Given(loss=ranking), name="other").policy
            made = run.improve(policy, PAIRS, optimizer=Given(), reference=other, reference_logprobs=how, name="made")
            model = Policy.load(made.policy.model_folder)
            digests.append([p.clone() for p in model.parameters()])
            start = Policy.load(policy.model_folder)
    assert all(torch.equal(a, b) for a, b in zip(*digests, strict=True))
    assert len(digests[0]) != len(list(start.parameters())) or not all(
        torch.equal(a, b) for a, b in zip(digests[0], start.parameters(), strict=True)
    )


def test_streams_are_brought_by_name_or_refused(tmp_path):
    with Run(tmp_path, quiet=True) as run:
        policy = run.policy("tiny", lora=None)
        mixed = Given(loss=ranking, mix=0.5)
        with pytest.raises(ConfigError, match="streams"):
            run.improve(policy, PAIRS, optimizer=mixed, name="none")
        with pytest.raises(ConfigError, match="streams"):
            run.improve(policy, PAIRS, optimizer=Given(loss=ranking), streams={"mix": DEMOS}, name="surplus")
        made = run.improve(policy, PAIRS, optimizer=mixed, streams={"mix": DEMOS}, name="mixed")
        assert "mix" in (made.policy.path / "metrics.jsonl").read_text()


# -- small ones ------------------------------------------------------------------------------------------------------


def test_soft_preference_golden_and_limits():
    """p = .6, d = 1 by hand: .6 log(1+e^-1) + .4 log(1+e)."""
    difference = torch.tensor([1.0, -3.0, 0.0], dtype=torch.float64, requires_grad=True)
    soft = preference_cross_entropy(difference, 0.6)
    assert float(soft[0].detach()) == pytest.approx(0.713261688, abs=1e-9)
    torch.testing.assert_close(preference_cross_entropy(difference, 1.0), logistic_ranking(difference))
    (gradient,) = torch.autograd.grad(preference_cross_entropy(difference, 0.5).sum(), difference)
    assert float(gradient[2]) == 0.0
    assert torch.isfinite(preference_cross_entropy(torch.tensor([1e4, -1e4]), 0.3)).all()


def test_ranks_by_reward_tie_and_leave_out_what_is_missing():
    rows = [{"prompt": "a", "responses": ["1", "2", "3"]}, {"prompt": "b", "responses": ["1", "2"]}]
    groups = Groups.from_rows(rows).with_rewards("r", [[1.0, 3.0, 1.0], [None, 2.0]])
    ranked = rank_by_reward(groups, "r")
    assert [row["ranks"] for row in ranked] == [[2, 1, 2]]
    part = Groups.from_rows(rows[:1]).with_rewards("r", [[1.0, None, 5.0]])
    assert [(row["responses"], row["ranks"]) for row in rank_by_reward(part, "r")] == [(["1", "3"], [2, 1])]


def test_new_ranks_take_nothing_over_from_the_old_ones():
    """A soft label of 0.95 for A must not become one for B."""
    row = {"prompt": "a", "responses": ["A", "B"], "ranks": [1, 2], "rating": "better", "preference_prob": 0.95}
    groups = Groups.from_rows([{**row, "meta": {"margin": 2.0, "topic": "x"}}]).with_rewards("r", [[0.0, 1.0]])
    (ranked,) = rank_by_reward(groups, "r")
    assert ranked["ranks"] == [2, 1]
    assert (ranked["rating"], ranked["preference_prob"], ranked["meta"]) == (None, None, '{"topic":"x"}')


def test_the_best_responses_stand_in_their_order():
    groups = Groups.from_rows([{"prompt": "a", "responses": ["1", "2", "3"]}, {"prompt": "b", "responses": ["4"]}])
    scored = groups.with_rewards("r", [[1.0, 3.0, 3.0], [None]])
    assert [row["responses"] for row in best_responses(scored, "r", 2)] == [["2", "3"]]
    assert [row["responses"] for row in best_responses(scored, "r", 1)] == [["2"]]


def test_a_diagnostic_without_an_element_is_left_out_and_not_zero():
    rows: list = []
    terms = {"loss": Term()}
    ones = Groups.from_rows([{"prompt": "a", "responses": ["x"]}])
    one_step(ones, nll, terms, rows=rows, extras=extra_objectives({"gap": bound(chosen_nll)}, terms))
    assert "gap" not in rows[0]
    assert rows[0]["loss"] > 0


def test_what_an_extra_loss_is_made_of_counts_in_the_key(tmp_path):
    """The same name, another function: the stage is made anew."""

    def built(factor):
        @dataclass(frozen=True)
        class Further(Given):
            loss: object = ranking

            def terms(self):
                return {"loss": Term(), "more": Term()}

            def extra_losses(self):
                return {"more": lambda chosen_logprobs: factor * chosen_logprobs}

        return Further()

    digests = []
    for factor in (0.0, 50.0):
        with Run(tmp_path, quiet=True) as run:
            policy = run.policy("tiny", lora=None)
            made = run.improve(policy, PAIRS, optimizer=built(factor), name="made")
            digests.append(made.policy.key)
    assert digests[0] != digests[1]


def test_the_first_score_given_leads_whatever_its_name(tmp_path):
    with Run(tmp_path, quiet=True) as run:
        policy = run.policy("tiny", lora=None)
        made = run.evaluate(policy, DEMOS, {"z": letters, "a": lambda response: 0.0}, answers="given", name="order")
        lines = (made.path / "evaluation.jsonl").read_text().splitlines()
    assert list(json.loads(lines[0])["scores"]) == ["z", "a"]


def test_given_answers_are_scored_as_they_are(tmp_path):
    with Run(tmp_path, quiet=True) as run:
        policy = run.policy("tiny", lora=None)
        made = run.evaluate(policy, DEMOS, {"letters": letters}, answers="given", name="given")
        assert made.result["metrics"]["letters"]["mean"] == 1.0
        with pytest.raises(DataError, match="no answer"):
            run.evaluate(policy, DEMOS.without_responses(), {"letters": letters}, answers="given", name="bare")
        with pytest.raises(ConfigError, match="reference"):
            run.evaluate(policy, DEMOS, {"letters": letters}, answers="given", reference=policy, name="kl")
        with pytest.raises(ConfigError, match="answers"):
            run.evaluate(policy, DEMOS, {"letters": letters}, answers="none", name="odd")
