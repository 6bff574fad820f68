"""Hindsight instruction relabelling: what is relabelled how, the three terms, and what a round learns from."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from alignkit_hir import (
    HIR,
    Hindsight,
    distinct,
    instruction_contrast,
    label_smoothed_nll,
    paired,
    relabelled_rows,
)
from alignkit_hir.relabelling import WRONG, Asked, Relabelled, Sample, correctness, instructions, verifiable
from alignkit_tasks import embedded as task
from alignkit_tasks.suites import CORRECT, embedded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from alignkit import Batch, DataError, Groups, PluginError, Policy, Run, use
from alignkit.testing import default_host, learned_sequences, tensors_of

DTYPES = [torch.float64, torch.float32]
quick = settings(max_examples=60, deadline=None)


def close(actual: torch.Tensor, expected: Any, dtype: torch.dtype, tolerance: float = 1e-9) -> None:
    tolerance = tolerance if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=dtype), rtol=tolerance, atol=tolerance)


# -- the terms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_label_smoothing_is_cross_entropy_with_a_mixed_target(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 3, 7, dtype=dtype, generator=torch.Generator().manual_seed(0))
    taken = torch.tensor([[0, 3, 6], [2, 2, 1]])
    logprobs = logits.log_softmax(-1)
    mine = label_smoothed_nll(logprobs.gather(-1, taken[..., None])[..., 0], logprobs.mean(-1))
    torchs = F.cross_entropy(logits.transpose(1, 2), taken, label_smoothing=0.2, reduction="none")
    close(mine, torchs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("mean_chosen", "mean_rejected", "value"),
    [(-1.0, -2.0, 0.513261688), (-2.0, -1.0, 1.113261688), (-1.5, -1.5, math.log(2)), (-1.0, -1001.0, 200.0)],
)
def test_contrast_golden_values(dtype: torch.dtype, mean_chosen: float, mean_rejected: float, value: float) -> None:
    """.8 log(1 + e^-d) + .2 log(1 + e^d) for d = 1, -1, 0, 1000."""
    lengths = torch.tensor([1, 5])
    sums = [mean * lengths.to(dtype) for mean in (mean_chosen, mean_rejected)]
    close(instruction_contrast(*sums, lengths, lengths), [value, value], dtype, 1e-8)


def test_contrast_is_the_papers_ratio_of_probabilities() -> None:
    p, q = math.exp(-0.7), math.exp(-1.9)
    expected = -0.9 * math.log(p / (p + q)) - 0.1 * math.log(q / (p + q))
    sums, lengths = torch.tensor([-0.7, -1.9], dtype=torch.float64) * 4, torch.tensor([4])
    close(instruction_contrast(sums[:1], sums[1:], lengths, lengths, label_smoothing=0.1), [expected], torch.float64)


def test_contrast_falls_until_the_difference_is_the_smoothed_log_odds() -> None:
    """With eps = .2 the best difference is log(.8 / .2), where the gradient is zero: it does not push for ever."""
    difference = torch.tensor([math.log(4)], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    instruction_contrast(difference, 0 * one, one, one).sum().backward()
    assert difference.grad is not None
    close(difference.grad, [0.0], torch.float64)


def padded_mean_contrast(logprobs: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What the reference computes: the mean over all positions, where those that are padding count as log-prob 0."""
    p, q = ((tensor * mask).mean(-1).exp() for tensor in (logprobs, other))
    return -0.8 * (p / (p + q)).log() - 0.2 * (q / (p + q)).log()


def our_contrast(logprobs: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    lengths = mask.sum(-1)
    return instruction_contrast((logprobs * mask).sum(-1), (other * mask).sum(-1), lengths, lengths)


def padding_invariant(contrast: Any) -> bool:
    """Whether a response's contrast stays what it was when a longer one stands beside it."""
    logprobs, other = -torch.rand(2, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 3
    mask = torch.arange(9) < torch.tensor([[3], [9]])
    beside, alone = contrast(logprobs, other, mask)[0], contrast(logprobs[:1, :3], other[:1, :3], mask[:1, :3])[0]
    return bool(torch.isclose(beside, alone, rtol=1e-12))


def test_padding_does_not_change_the_contrast() -> None:
    assert padding_invariant(our_contrast)


def test_a_port_of_the_references_mean_over_padding_would_be_noticed() -> None:
    assert not padding_invariant(padded_mean_contrast)


def test_in_the_engine_a_longer_neighbour_changes_nothing() -> None:
    policy = Policy.load("tiny", trainable=False)
    short = paired([rows_for("short", "ab", "cd")])
    both = paired([rows_for("short", "ab", "cd"), rows_for("long", "abcdefgh" * 5, "cd")])
    values = [contrast_of(policy, batch)[0] for batch in (short, both)]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-5)


def rows_for(question: str, response: str, other: str) -> list[dict[str, Any]]:
    asked = Asked([{"role": "user", "content": question}], {})
    what = Relabelled(asked, asked.reworded(f"{question} {other}"))
    return relabelled_rows({"responses": [response], "tags": [], "tokenizer": None, "iteration": None}, what)


def contrast_of(policy: Policy, batch: Batch) -> torch.Tensor:
    names = ("chosen_logprobs", "rejected_logprobs", "chosen_lengths", "rejected_lengths")
    tensors = tensors_of(policy, batch.groups, *names, pairs=batch.pairs)
    return instruction_contrast(*(tensors[name] for name in names)).detach()


def test_the_supervised_term_is_a_mean_over_the_responses_that_follow_their_instruction() -> None:
    """Not over their contrasts too, which carry no weight in it."""
    policy = Policy.load("tiny", trainable=False)
    batch = paired([rows_for("a", "xyz", "not"), rows_for("b", "xy", "not")])
    mask = torch.tensor([[bool(label)] * 4 for row in batch.groups for label in row["labels"]])
    assert HIR().terms()["loss"].mask == HIR().terms()["entropy_bonus"].mask == "hindsight_mask"
    assert learned_sequences(policy, batch.groups, "hindsight_mask", mask) == 2
    assert learned_sequences(policy, batch.groups, "response_mask") == 4


# -- relabelling by correctness ----------------------------------------------------------------------------------------


def sample(text: str, response: str = "r", score: float | None = None, finished: bool = True, **meta: Any) -> Sample:
    return Sample(Asked([{"role": "user", "content": text}], meta), response, finished, score)


def test_a_right_answer_keeps_its_instruction_and_a_wrong_one_was_asked_to_be_wrong() -> None:
    text = f"{CORRECT}\n\n1 + 1?"
    right, wrong = (correctness(sample(text, score=score)) for score in (1.0, 0.0))
    assert right is not None
    assert wrong is not None
    assert right.achieved.text == text
    assert right.other is not None
    assert right.other.text == wrong.achieved.text == f"{WRONG}\n\n1 + 1?"
    assert wrong.other == right.achieved


def test_without_the_instruction_in_the_prompt_the_wrong_one_is_added() -> None:
    wrong = correctness(sample("1 + 1?", score=0.2))
    assert wrong is not None
    assert wrong.other is not None
    assert (wrong.other.text, wrong.achieved.text) == ("1 + 1?", f"1 + 1?\n\n{WRONG}")


def test_a_threshold_says_from_where_on_an_answer_is_right() -> None:
    found = [correctness(sample("q", score=0.6), threshold) for threshold in (0.6, 0.61)]
    assert [what is not None and what.achieved.text == "q" for what in found] == [True, False]


def test_a_missing_score_relabels_nothing_and_a_reward_models_score_is_refused() -> None:
    assert correctness(sample("q")) is None
    for score in (-0.3, 1.7):
        with pytest.raises(DataError, match=r"a program's verdict is in \[0, 1\].*verifiable reward"):
            correctness(sample("q", score=score))


# -- relabelling of the embedded task's instructions -------------------------------------------------------------------

RESPONSES = [
    "A hot oven and fresh yeast give your bread a fine crust.",
    "honestly, it is the friend of a simple life!",
    "Honestly, use 2 of them, and then 3 more, always in the morning.",
    "It is hard, since you need time and patience for it, and a good teacher!",
]


def text_samples() -> list[Sample]:
    rows = task.prompts("train", 120)
    return [
        Sample(Asked(row["messages"], row["meta"]), RESPONSES[i % len(RESPONSES)], True) for i, row in enumerate(rows)
    ]


def followed(asked: Asked, response: str) -> list[bool]:
    return [task.CHECKS[kind](response, argument) == 1 for kind, argument in asked.meta["instructions"]]


def test_what_is_achieved_is_followed_and_what_is_other_is_not() -> None:
    seen = [(each, instructions(each)) for each in text_samples()]
    told = [(each, what) for each, what in seen if what is not None]
    assert len(told) > 50
    for each, what in told:
        assert all(followed(what.achieved, each.response))
        assert what.achieved.meta["instructions"]
        assert what.other is None or not all(followed(what.other, each.response))
        assert len(what.achieved.messages) == len(each.asked.messages)
        assert what.achieved.messages[0] == each.asked.messages[0]


def test_a_satisfied_instruction_keeps_its_text_and_an_unsatisfied_one_becomes_the_contrast() -> None:
    kept, changed = 0, 0
    for each in text_samples():
        what = instructions(each)
        if what is None:
            continue
        if all(followed(each.asked, each.response)):
            assert what.achieved == each.asked
            kept += 1
        else:
            assert what.other == each.asked
            assert what.achieved.text != each.asked.text
            assert what.achieved.text.split(".")[0].split("?")[0] == each.asked.text.split(".")[0].split("?")[0]
            satisfied = [
                pair
                for pair, ok in zip(each.asked.meta["instructions"], followed(each.asked, each.response), strict=True)
                if ok
            ]
            assert all(pair in what.achieved.meta["instructions"] for pair in satisfied)
            changed += 1
    assert min(kept, changed) > 10


def test_relabelled_prompts_read_as_if_they_had_been_asked() -> None:
    """Wording, meta and order are those of the task's own prompts."""
    for each in text_samples():
        what = instructions(each)
        for asked in (what.achieved, what.other) if what is not None else ():
            if asked is None:
                continue
            wordings = [task.INSTRUCTIONS[kind][0].format(argument) for kind, argument in asked.meta["instructions"]]
            assert asked.text.endswith(" ".join(wordings))
            assert asked.meta["ask"] == asked.text
            order = [list(task.INSTRUCTIONS).index(kind) for kind, _ in asked.meta["instructions"]]
            assert order == sorted(order)


def test_the_same_sample_is_always_relabelled_alike_and_samples_differ() -> None:
    row = next(row for row in task.prompts("train", 200) if row["meta"]["instructions"] == [["max_words", "8"]])
    long = "honestly a simple and happy life is always {} times as much for us and for you all!"
    samples = [Sample(Asked(row["messages"], row["meta"]), long.format(k), True) for k in range(20)]
    first, again = ([instructions(each) for each in samples] for _ in range(2))
    assert first == again
    kinds = {what.achieved.meta["instructions"][0][0] for what in first if what is not None}
    assert kinds == {"lowercase", "exclaim", "no_commas", "starts", "keyword", "digits"}


def test_noise_and_prompts_without_instructions_are_left_out() -> None:
    rows = {bool(row["meta"]["instructions"]): row for row in task.prompts("train", 60)}
    assert instructions(Sample(Asked(rows[True]["messages"], rows[True]["meta"]), "xq xq xq", True)) is None
    assert instructions(Sample(Asked(rows[False]["messages"], rows[False]["meta"]), RESPONSES[0], True)) is None


@quick
@given(st.text(max_size=60))
def test_a_relabelling_never_fails_on_what_a_model_may_write(response: str) -> None:
    for row in task.prompts("train", 8):
        verifiable(Sample(Asked(row["messages"], row["meta"]), response, False))


def test_instructions_are_relabelled_whatever_the_reward_says() -> None:
    """As in the recipe llama2, where the score is a reward model's."""
    for each in text_samples()[:20]:
        assert verifiable(Sample(each.asked, each.response, True, score=-7.0)) == instructions(each)


def test_the_tiny_kind_is_judged_by_its_own_program_whatever_the_reward_says() -> None:
    row = task.tiny_prompts("train", 1)[0]
    good = Sample(Asked(row["messages"], row["meta"]), row["meta"]["topic"] * 2 + "xyz", True, score=-7.0)
    what = verifiable(good)
    assert what is not None
    assert what.achieved == good.asked


# -- a round -----------------------------------------------------------------------------------------------------------


def mask_of(groups: Groups, *_: str) -> dict[str, torch.Tensor]:
    count = groups.num_responses
    return {"response_mask": torch.ones(count, 5, dtype=torch.bool)}


def sampled(*rows: tuple[str, list[str], list[float | None]]) -> Groups:
    return Groups.from_rows(
        {
            "prompt": question,
            "responses": texts,
            "response_ids": [[1, 2]] * len(texts),
            "finished": [text != "cut" for text in texts],
            "tokenizer": "t",
            "meta": {"answer": "2"},
            "rewards": {"r": scores},
        }
        for question, texts, scores in rows
    )


def prepare(groups: Groups, state: Any = None, **fields: Any) -> Batch:
    method = HIR(**fields)
    return method.prepare(groups, state or method.initial_state(), reward_name="r", measure=mask_of)


def responses(batch: Batch) -> list[tuple[str, str, bool]]:
    return [
        (row["prompt"][-1]["content"], text, label)
        for row in batch.groups
        for text, label in zip(row["responses"], row["labels"], strict=True)
    ]


def test_each_response_stands_under_both_instructions_and_its_text_is_unchanged() -> None:
    batch = prepare(sampled(("q", ["2", "3", "4"], [1.0, 0.0, 0.0])))
    wrong = f"q\n\n{WRONG}"
    assert set(responses(batch)) == {
        *(("q", "2", True), ("q", "3", False), ("q", "4", False)),
        *((wrong, "2", False), (wrong, "3", True), (wrong, "4", True)),
    }
    assert len(batch.groups) == 2  # each prompt is computed once
    assert batch.groups[0]["response_ids"] == [[1, 2]] * 3
    assert batch.groups[0]["prompt_id"] != batch.groups[1]["prompt_id"]


def test_pairs_join_one_response_under_two_instructions_the_achieved_one_first() -> None:
    batch = prepare(sampled(("q", ["2", "3"], [1.0, 0.0]), ("p", ["5"], [0.0])))
    flat = responses(batch)
    assert len(batch.pairs or ()) == 3
    for chosen, rejected in batch.pairs or ():
        assert flat[chosen][1] == flat[rejected][1]
        assert (flat[chosen][2], flat[rejected][2]) == (True, False)
        assert flat[chosen][0].removesuffix(WRONG).strip() == flat[rejected][0].removesuffix(WRONG).strip()


def test_only_responses_under_their_own_instruction_are_imitated() -> None:
    batch = prepare(sampled(("q", ["2", "3"], [1.0, 0.0])))
    labels = [label for _, _, label in responses(batch)]
    assert batch.tensors["hindsight_mask"].any(-1).tolist() == labels


def test_what_was_cut_off_and_what_has_no_score_is_left_out() -> None:
    groups = sampled(("q", ["2", "cut", "3"], [1.0, 0.0, None]))
    assert {text for _, text, _ in responses(prepare(groups))} == {"2"}
    assert prepare(groups).metrics["verifiable"] == pytest.approx(1 / 3)
    assert {text for _, text, _ in responses(prepare(groups, require_finished=False))} == {"2", "cut"}


def test_a_response_drawn_twice_counts_once() -> None:
    batch = prepare(sampled(("q", ["2", "2", "3"], [1.0, 1.0, 0.0])))
    assert len(batch.pairs or ()) == 2
    rows = [rows_for("q", "a", "x"), rows_for("q", "b", "x"), rows_for("q", "a", "x")]
    assert [r[0]["responses"] for r in distinct(rows)] == [["a"], ["b"]]


def test_metrics_of_a_round() -> None:
    batch = prepare(sampled(("q", ["2", "3", "4", "cut"], [1.0, 0.0, 0.0, 0.0])))
    assert batch.metrics == {"followed": 1 / 3, "verifiable": 3 / 4, "contrasted": 1.0, "replayed": 0.0}


def test_earlier_rounds_are_learned_from_again_the_newest_first_and_no_more_than_asked_for() -> None:
    first = prepare(sampled(("q", ["2", "3"], [1.0, 0.0])), replay=3)
    second = prepare(sampled(("p", ["4", "5"], [0.0, 0.0])), first.state, replay=3)
    assert {text for _, text, _ in responses(second)} == {"2", "3", "4", "5"}
    assert second.metrics["replayed"] == 2
    third = prepare(sampled(("o", ["6"], [0.0])), second.state, replay=3)
    assert {text for _, text, _ in responses(third)} == {"6", "4", "5", "2"}
    json.dumps(third.state)
    again = prepare(sampled(("q", ["2"], [1.0])), first.state)
    assert len(again.pairs or ()) == 2  # a response drawn again is not learned from twice
    none = prepare(sampled(("p", ["4"], [0.0])), prepare(sampled(("q", ["2"], [1.0])), replay=0).state, replay=0)
    assert none.metrics["replayed"] == 0


def test_a_round_without_anything_to_verify_is_one_clear_error() -> None:
    with pytest.raises(DataError, match=r"of 2 responses a program can verify nothing.*relabel=a function"):
        prepare(sampled(("q", ["2", "3"], [None, None])))
    with pytest.raises(DataError, match=r"a program's verdict is in \[0, 1\]"):
        prepare(sampled(("q", ["2", "3"], [-3.0, 2.0])))


def test_a_function_of_ones_own_may_relabel() -> None:
    def length(each: Sample) -> Relabelled:
        return Relabelled(each.asked.reworded(f"{each.asked.text} In {len(each.response)} letters."), each.asked)

    batch = prepare(sampled(("q", ["2", "33"], [None, None])), relabel=length)
    assert {prompt for prompt, _, label in responses(batch) if label} == {"q In 1 letters.", "q In 2 letters."}
    assert batch.metrics["followed"] == 0.0


def test_settings_are_checked_before_any_work() -> None:
    host = default_host()
    assert host.build("optimizer", "hir(relabel=instructions)").samples_per_prompt == 4
    for wrong in ("hir(relabel=nothing)", "hir(replay=-1)", "hir(contrastive_smoothing=2.0)"):
        with pytest.raises(PluginError, match=r"hir: (relabel|contrastive_smoothing)"):
            host.build("optimizer", wrong)


def test_the_transform_gives_demonstrations() -> None:
    groups = Hindsight(reward="r")(sampled(("q", ["2", "3"], [1.0, 0.0])))
    assert [(row["prompt"][-1]["content"], row["responses"]) for row in groups] == [
        ("q", ["2"]),
        (f"q\n\n{WRONG}", ["3"]),
    ]
    assert isinstance(default_host().build("transform", "hindsight(reward='r')"), Hindsight)


# -- runs --------------------------------------------------------------------------------------------------------------


def test_right_and_wrong_answers_each_come_when_they_are_asked_for(tmp_path: Any) -> None:
    """Also to prompts that it has not seen; and the contrast ends where its gradient is zero, at the entropy of .2."""
    rows = [{"prompt": f"p{i}", "responses": ["ab", "zz"], "rewards": {"r": [1.0, 0.0]}} for i in range(8)]
    asked = [f"p{i}{ending}" for ending in ("", f"\n\n{WRONG}") for i in (0, 8, 9)]
    method = use("hir", samples_per_prompt=0, rounds=1, epochs=10, batch_size=8, learning_rate=5e-3)
    with Run(tmp_path, quiet=True) as run:
        made = run.improve(run.policy("tiny"), Groups.from_rows(rows), optimizer=method)
        answers = run.sample(made.policy, Groups.from_prompts(asked), 1, temperature=0.05, max_new_tokens=4)
    assert [row["responses"][0] for row in answers.groups] == ["ab"] * 3 + ["zz"] * 3
    steps = [json.loads(line) for line in (made.policy.path / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["contrast"] == pytest.approx(math.log(2), abs=0.05)
    assert steps[-1]["contrast"] == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2), abs=0.01)


def has_a_letter(response: str) -> float:
    return float(any("a" <= letter <= "z" for letter in response))


def test_rounds_sample_relabel_and_learn(tmp_path: Any) -> None:
    prompts = Groups.from_prompts([f"p{i}" for i in range(4)])
    method = use("hir", rounds=2, epochs=1, learning_rate=3e-3, require_finished=False, relabel=use("correctness"))
    with Run(tmp_path, quiet=True) as run:
        made = run.improve(run.policy("tiny"), prompts, optimizer=method, reward=has_a_letter, max_new_tokens=4)
    rows = [json.loads(line) for line in (made.policy.path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["round"], row["replayed"]) for row in rows] == [(0, 0.0), (1, 16.0)]
    assert rows[0]["reward_mean"] == pytest.approx(rows[0]["followed"])
    assert {"contrast", "entropy_bonus", "entropy", "loss", "verifiable"} <= set(rows[0])
    assert all(row["contrast"] < 1 < row["entropy_bonus"] for row in rows)


def test_samples_drawn_elsewhere_are_relabelled_offline(tmp_path: Any) -> None:
    suite = embedded(kind="tiny", prompts=8, heldout=8)
    with Run(tmp_path, quiet=True) as run:
        v0 = run.policy("tiny")
        drawn = run.sample(v0, suite.prompts, 2, max_new_tokens=6)
        method = use("hir", samples_per_prompt=0, rounds=1, epochs=1, require_finished=False)
        v1 = run.improve(v0, drawn, optimizer=method, reward=suite.scores["gold"], max_new_tokens=6)
    assert (v1.policy.path / "metrics.jsonl").read_text()


def test_the_entropy_is_raised_and_the_others_fall() -> None:
    weights = {name: term.weight for name, term in HIR(entropy_coef=0.01, contrastive_coef=2.0).terms().items()}
    assert weights == {"loss": 1.0, "contrast": 2.0, "entropy_bonus": -0.01}
    assert set(HIR().extra_losses()) == {"contrast", "entropy_bonus"}
