"""KTO: the loss, its baseline, where labels come from, and that it learns."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_dpo.kto import KTO, kl_baseline, kto, label_statistics, labelled, mismatched
from torch import Tensor

from alignkit import AlignkitError, ConfigError, DataError, Groups, Run, use
from alignkit.plugin import labels_from_ranks

both = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
NAN = math.nan


def row(prompt: str, labels: list[bool | None] | None = None, **more: Any) -> dict[str, Any]:
    count = len(labels or more.get("ranks", [0]))
    return {"prompt": prompt, "responses": [f"{prompt}{k}" for k in range(count)], "labels": labels, **more}


def responses(ratios: list[list[float]], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, reference log-probs and mask of responses with these log-ratios; NaN stands for padding."""
    ratio = torch.tensor(ratios, dtype=dtype)
    return ratio - 2.0, torch.full_like(ratio, -2.0), ~ratio.isnan()


# -- the loss ----------------------------------------------------------------------------------------------------------


@both
def test_golden(dtype: torch.dtype) -> None:
    """r = 10, z0 = 5, beta 0.1: a good one loses s(-0.5), a bad one s(0.5); at r = z0 each loses 1/2."""
    tensors = responses([[4.0, 6.0], [10.0, NAN], [5.0, NAN]], dtype)
    labels, z0 = torch.tensor([1.0, 0.0, 1.0], dtype=dtype), torch.full((3,), 5.0, dtype=dtype)
    found = kto(*tensors, labels, z0, beta=0.1)
    assert found.tolist() == pytest.approx(
        [0.3775406688, 0.6224593312, 0.5], abs=1e-9 if dtype is torch.float64 else 1e-6
    )
    weighted = kto(*tensors, labels, z0, beta=0.1, desirable_weight=2.0, undesirable_weight=3.0)
    assert weighted.tolist() == pytest.approx([2 * 0.3775406688, 3 * 0.6224593312, 1.0], abs=1e-6)


def test_the_gradient_raises_good_responses_lowers_bad_ones_and_touches_no_padding() -> None:
    logprobs, ref, mask = responses([[0.5, 1.0], [0.5, NAN], [0.0, -1.0]], torch.float64)
    logprobs.requires_grad_()
    loss = kto(logprobs, ref, mask, torch.tensor([1.0, 0.0, 0.0]).double(), torch.zeros(3).double(), beta=0.3)
    (grad,) = torch.autograd.grad(loss.sum(), logprobs)
    for k, (side, ratio) in enumerate([(1, 1.5), (-1, 0.5), (-1, -1.0)]):
        s = 1 / (1 + math.exp(side * 0.3 * ratio))
        expected = -side * 0.3 * s * (1 - s)  # of lambda - v, v = s(side beta (r - z0))
        assert grad[k][mask[k]].tolist() == pytest.approx([expected] * int(mask[k].sum()), abs=1e-12)
    assert grad[1, 1] == 0


def test_a_good_and_a_bad_response_alike_pull_equally() -> None:
    logprobs, ref, mask = responses([[0.0], [0.0]], torch.float64)
    z0 = torch.zeros(2, dtype=torch.float64)
    assert kto(logprobs, ref, mask, torch.tensor([1.0, 0.0]).double(), z0).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("far", [-5000.0, 5000.0])
def test_far_from_the_baseline_it_stays_finite(far: float) -> None:
    loss = kto(*responses([[far], [far]], torch.float32), torch.tensor([1.0, 0.0]), torch.zeros(2))
    assert sorted(loss.tolist()) == pytest.approx([0.0, 1.0])


def test_what_is_logged() -> None:
    tensors = responses([[2.0, 2.0], [1.0, NAN], [1.0, NAN]], torch.float64)
    found = label_statistics(
        *tensors, torch.tensor([1.0, 0.0, 0.0]).double(), torch.tensor([1.0] * 3).double(), beta=0.5
    )
    assert found["accuracy"].tolist() == [1.0, 0.0, 0.0]
    assert found["ties"].tolist() == [0.0, 1.0, 1.0]
    assert found["chosen_rewards"].tolist() == [[2.0], [0.5], [0.5]]
    assert found["rejected_logprobs"].tolist() == [[0.0], [-1.0], [-1.0]]


# -- the baseline ------------------------------------------------------------------------------------------------------


def test_the_baseline_is_the_mean_of_sums_never_negative_and_has_no_gradient() -> None:
    logprobs, ref, mask = responses([[1.0, 2.0], [5.0, NAN]], torch.float64)
    z0 = kl_baseline(logprobs.requires_grad_(), ref, mask)
    assert z0.item() == pytest.approx((3.0 + 5.0) / 2)
    assert not z0.requires_grad
    assert kl_baseline(*responses([[-1.0, -2.0], [1.0, NAN]], torch.float64)).item() == 0.0


def test_no_prompt_meets_its_own_responses() -> None:
    data = Groups.from_rows([row("a", [True, False]), row("a", [True]), row("b", [False]), row("c", [True])])
    found = [(r["prompt"][0]["content"], r["responses"]) for r in mismatched(data)]
    assert found == [("a", ["b0"]), ("a", ["b0"]), ("b", ["c0"]), ("c", ["a0", "a1"])]


def test_token_ids_go_along_with_the_responses() -> None:
    data = Groups.from_rows(
        [row("a", [True], response_ids=[[1, 2]], tokenizer="t"), row("b", [True], response_ids=[[3]], tokenizer="t")]
    )
    assert [(r["response_ids"], r["tokenizer"]) for r in mismatched(data)] == [([[3]], "t"), ([[1, 2]], "t")]


def test_one_prompt_leaves_nothing_to_mismatch() -> None:
    with pytest.raises(DataError, match="one prompt in all"):
        mismatched(Groups.from_rows([row("a", [True]), row("a", [False])]))


# -- labels ------------------------------------------------------------------------------------------------------------


def test_labels_that_are_all_there_pass_as_they_are() -> None:
    data = Groups.from_rows([row("a", [True, False]), row("b", [False])])
    assert labelled(data) is data


def test_ranks_give_labels_where_there_are_none() -> None:
    data = Groups.from_rows(
        [row("a", ranks=[2, 1]), row("b", ranks=[1, 1]), row("c", ranks=[3, 1, 2]), row("d", [None, True])]
    )
    found = {r["prompt"][0]["content"]: dict(zip(r["responses"], r["labels"], strict=True)) for r in labelled(data)}
    assert found == {"a": {"a0": False, "a1": True}, "c": {"c0": False, "c1": True}, "d": {"d1": True}}
    assert labels_from_ranks([]) == []


def test_no_label_at_all_is_told() -> None:
    with pytest.raises(DataError, match="nothing to learn from"):
        labelled(Groups.from_rows([row("a"), row("b", ranks=[1, 1])]))


# -- a round -----------------------------------------------------------------------------------------------------------


def measured(ratios: list[list[float]], asked: list[Any] | None = None) -> Any:
    def measure(groups: Groups, *names: str) -> dict[str, Tensor]:
        if asked is not None:
            asked.append(([r["responses"] for r in groups], names))
        logprobs, ref, mask = responses(ratios, torch.float32)
        return {"logprobs": logprobs, "ref_logprobs": ref, "response_mask": mask}

    return measure


def test_a_round_measures_its_baseline_on_mismatched_pairs() -> None:
    data, asked = Groups.from_rows([row("a", [True, True]), row("b", [False])]), list[Any]()
    batch = KTO(loss="kto(desirable_weight=2.0)").prepare(
        data, {}, measure=measured([[1.0, 1.0], [4.0, NAN], [0.0, 0.0]], asked)
    )
    assert asked == [([["b0"], ["a0", "a1"]], ("logprobs", "ref_logprobs"))]
    assert batch.tensors["kl_baseline"].tolist() == [2.0, 2.0, 2.0]
    assert batch.tensors["desirable"].tolist() == [[True], [True], [False]]
    assert batch.tensors["undesirable"].tolist() == [[False], [False], [True]]
    assert batch.metrics == {"kl_baseline": 2.0, "label_balance": 4.0}
    assert set(batch.tensors) == set(KTO.provides)


def test_wrong_use_is_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match="samples_per_prompt=2"):
        KTO(samples_per_prompt=2)
    with pytest.raises(ConfigError, match="beta=0"):
        KTO(loss="kto(beta=0)")


def learn(folder: Path, data: Groups, reference: bool = True, **fields: Any) -> list[dict[str, Any]]:
    run = Run(folder, quiet=True)
    v0 = run.policy("tiny")
    optimizer = use("kto", **{"learning_rate": 3e-3, "warmup_ratio": 0.0, **fields})
    made = run.improve(v0, data, optimizer=optimizer, reference=v0 if reference else None, max_new_tokens=6)
    return [json.loads(line) for line in (made.policy.path / "metrics.jsonl").read_text().splitlines()]


UNPAIRED = Groups.from_rows(
    {"prompt": f"say {i}", "responses": ["yes " * (1 + i % 3) if i % 3 else "no no"], "labels": [bool(i % 3)]}
    for i in range(8)
)


def test_it_learns_from_single_labels(tmp_path: Path) -> None:
    steps = learn(tmp_path, UNPAIRED, prompts_per_round=0, batch_size=0, epochs=6)
    first, last = steps[0], steps[-1]
    assert (first["loss"], first["ties"], first["accuracy"], first["kl_baseline"]) == (0.5, 1.0, 0.0, 0.0)
    assert (last["accuracy"], last["ties"]) == (1.0, 0.0)
    assert last["chosen_rewards"] > 0 > last["rejected_rewards"]
    assert last["chosen_logprobs"] - first["chosen_logprobs"] == pytest.approx(last["chosen_rewards"] / 0.1, abs=1e-3)
    assert first["label_balance"] == pytest.approx(5 / 3)


def test_a_lap_sees_every_prompt_once_and_measures_anew_each_round(tmp_path: Path) -> None:
    steps = learn(tmp_path, UNPAIRED, prompts_per_round=3, batch_size=3)
    assert [s["round"] for s in steps] == [0, 1, 2]
    assert steps[0]["kl_baseline"] == 0.0


def test_a_baseline_above_zero_reaches_the_loss(tmp_path: Path) -> None:
    """With good labels alone everything becomes likelier, responses to other prompts too."""
    good = UNPAIRED.map_rows(lambda _: {"labels": [True]})
    steps = learn(tmp_path, good, prompts_per_round=8, batch_size=0, rounds=3, epochs=4)
    assert steps[-1]["kl_baseline"] > 0.1
    assert steps[4]["loss"] > steps[3]["loss"]  # the same weights, nearly, judged by a higher baseline


def test_without_a_reference_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(AlignkitError, match="needs a reference"):
        learn(tmp_path, UNPAIRED, reference=False)
