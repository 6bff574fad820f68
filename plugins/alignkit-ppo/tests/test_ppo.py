"""PPO: the loss, the shaping of rewards, the coefficient of the KL (float64 and float32)."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_ppo import PPO, Llama2PPO, adapted_kl_coef, ppo, token_rewards
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit import Batch, ConfigError, DataError, Groups, LoRA, Policy, Run, use
from alignkit.plugin import masked_mean
from alignkit.testing import first_gradients

DTYPES = [torch.float64, torch.float32]
NAMES = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns")
quick = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10_000)


def close(actual: torch.Tensor, expected: Any, dtype: torch.dtype = torch.float64) -> None:
    tolerance = 1e-8 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=dtype), rtol=tolerance, atol=tolerance)


def loss_inputs(seed: int, shape: tuple[int, int] = (3, 4)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name in NAMES}


def make_round(
    seed: int, lengths: tuple[int, ...] = (3, 1, 4), width: int = 4
) -> tuple[Groups, dict[str, torch.Tensor]]:
    """A round of one group per response, with random tensors; what the mask hides is NaN."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    logprobs, ref, values = torch.randn(3, len(lengths), 4, dtype=torch.float64, generator=generator)
    tensors = {"logprobs": logprobs, "ref_logprobs": ref, "values": values}
    tensors = {k: torch.nn.functional.pad(v, (0, width - 4)).masked_fill(~mask, math.nan) for k, v in tensors.items()}
    tensors |= {
        "rewards": torch.randn(len(lengths), dtype=torch.float64, generator=generator),
        "present": torch.ones(len(lengths), dtype=torch.bool),
        "response_mask": mask,
        "ends_with_eos": torch.ones(len(lengths), dtype=torch.bool),
    }
    return Groups.from_rows({"prompt": f"p{i}", "responses": [f"r{i}"]} for i in range(len(lengths))), tensors


def prepare(optimizer: PPO, seed: int = 0, state: dict[str, Any] | None = None, **changes: torch.Tensor) -> Batch:
    groups, tensors = make_round(seed)
    return optimizer.prepare(groups, state or {}, **{**tensors, **changes})


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("advantage", "expected"), [(1.0, [-0.5, -0.8, -1, -1.2, -1.2]), (-1.0, [0.8, 0.8, 1, 1.2, 1.5])]
)
def test_policy_loss_golden(dtype: torch.dtype, advantage: float, expected: list[float]) -> None:
    ratio = torch.tensor([[0.5, 0.8, 1, 1.2, 1.5]], dtype=dtype)
    zero = torch.zeros_like(ratio)
    terms = ppo(ratio.log() - 1, zero - 1, zero + advantage, zero, zero, zero)
    close(terms["policy_loss"], [expected], dtype)
    close(terms["ratio"], ratio, dtype)
    clipped = [0, 0, 0, 0, 1] if advantage > 0 else [1, 0, 0, 0, 0]
    assert terms["clip_fraction"][0, [0, 2, 4]].tolist() == [clipped[0], 0, clipped[4]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_value_loss_golden(dtype: torch.dtype) -> None:
    values = torch.tensor([[0.5, 0.5, 0.5, 1.5, 1.5]], dtype=dtype)
    returns = torch.tensor([[0, 1, 2, 0, 2]], dtype=dtype)
    zero = torch.zeros_like(values)
    terms = ppo(zero, zero, zero, values, zero + 1, returns)
    close(terms["value_loss"], [[0.32, 0.125, 1.125, 1.125, 0.32]], dtype)
    assert terms["value_clip_fraction"].tolist() == [[1, 0, 0, 0, 1]]
    unclipped = ppo(zero, zero, zero, values, zero + 1, returns, value_clip_range=None)
    close(unclipped["value_loss"], 0.5 * (values - returns) ** 2, dtype)


def test_before_the_first_step_the_ratio_is_exactly_one() -> None:
    inputs = loss_inputs(0)
    inputs["old_logprobs"] = inputs["logprobs"].clone()
    terms = ppo(**inputs)
    assert torch.equal(terms["ratio"], torch.ones(3, 4, dtype=torch.float64))
    assert torch.equal(terms["policy_loss"], -inputs["advantages"])
    assert not terms["clip_fraction"].any()
    assert not terms["approx_kl"].any()


def plain_terms(row: dict[str, float], eps: float, eps_v: float) -> tuple[float, float, float]:
    """One token in plain Python: policy loss, value loss, approximate KL."""
    ratio = math.exp(row["logprobs"] - row["old_logprobs"])
    inside = min(max(ratio, 1 - eps), 1 + eps)
    near = min(max(row["values"], row["old_values"] - eps_v), row["old_values"] + eps_v)
    policy = -min(row["advantages"] * ratio, row["advantages"] * inside)
    value = max((row["values"] - row["returns"]) ** 2, (near - row["returns"]) ** 2) / 2
    return policy, value, ratio - 1 - math.log(ratio)


@quick
@given(seeds, st.floats(0.05, 0.5), st.floats(0.05, 0.5))
def test_against_plain_python(seed: int, eps: float, eps_v: float) -> None:
    inputs = loss_inputs(seed, (1, 5))
    terms = ppo(**inputs, clip_range=eps, value_clip_range=eps_v)
    for t in range(5):
        policy, value, kl = plain_terms({k: v[0, t].item() for k, v in inputs.items()}, eps, eps_v)
        assert terms["policy_loss"][0, t].item() == pytest.approx(policy, abs=1e-9)
        assert terms["value_loss"][0, t].item() == pytest.approx(value, abs=1e-9)
        assert terms["approx_kl"][0, t].item() == pytest.approx(kl, abs=1e-9)


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = loss_inputs(3)
    learned = {name: inputs.pop(name).requires_grad_() for name in ("logprobs", "values")}

    def total(logprobs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        terms = ppo(logprobs=logprobs, values=values, **inputs)
        return terms["policy_loss"].sum() + 0.1 * terms["value_loss"].sum()

    assert torch.autograd.gradcheck(total, tuple(learned.values()))


def test_what_the_mask_hides_changes_neither_loss_nor_gradient() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    results = []
    for hidden in (0.0, 3.5, math.nan):
        inputs = {k: v.masked_fill(~mask, hidden) for k, v in loss_inputs(4).items()}
        logprobs = inputs.pop("logprobs").requires_grad_()
        loss = masked_mean(ppo(logprobs=logprobs, **inputs)["policy_loss"], mask)
        loss.backward()
        assert logprobs.grad is not None
        results.append((loss.detach(), logprobs.grad.masked_fill(~mask, 0)))
        if not math.isnan(hidden):
            assert not logprobs.grad[~mask].any()
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_diagnostics_carry_no_gradient() -> None:
    inputs = loss_inputs(5)
    terms = ppo(
        **{**inputs, "logprobs": inputs["logprobs"].requires_grad_(), "values": inputs["values"].requires_grad_()}
    )
    assert {name for name, term in terms.items() if term.requires_grad} == {"policy_loss", "value_loss"}
    assert {name for name, term in PPO().terms().items() if term.weight} == {"policy_loss", "value_loss"}
    assert set(PPO().terms()) == set(terms)


# -- the shaping -------------------------------------------------------------------------------------------------------


@quick
@given(seeds, st.floats(0, 1), st.sampled_from(["last", "after_eos"]))
def test_the_score_is_used_exactly_once(seed: int, beta: float, score_at: Any) -> None:
    _, t = make_round(seed)
    kl, mask = t["logprobs"] - t["ref_logprobs"], t["response_mask"]
    rewards = token_rewards(t["rewards"], kl, mask, beta, score_at)
    torch.testing.assert_close(rewards.sum(1) + beta * kl.where(mask, 0).sum(1), t["rewards"], rtol=1e-9, atol=1e-9)


def test_kl_is_taken_off_and_where_there_is_none_only_the_score_is_left() -> None:
    kl, mask = torch.tensor([[0.5, 1.0, 9.0]]), torch.tensor([[1, 1, 0]])
    close(token_rewards(torch.tensor([2.0]), kl, mask, 0.1), [[-0.05, 1.9, 0.0]], torch.float32)
    assert token_rewards(torch.tensor([2.0]), kl * 0, mask, 0.1).tolist() == [[0.0, 2.0, 0.0]]


def test_a_policy_equal_to_its_reference_has_no_kl_at_all() -> None:
    _, t = make_round(0)
    metrics = prepare(PPO(), ref_logprobs=t["logprobs"]).metrics
    assert metrics["kl_per_sequence"] == metrics["kl_per_token"] == metrics["kl_per_token_k3"] == 0.0


def advantages_by_definition(
    t: dict[str, torch.Tensor], i: int, o: PPO, score: float
) -> tuple[list[float], list[float]]:
    """One response in plain Python: advantages before whitening, and returns."""
    n = int(t["response_mask"][i].sum())
    logprobs, ref, values = (t[k][i, :n].tolist() for k in ("logprobs", "ref_logprobs", "values"))
    rewards = [-o.kl_coef * (a - b) for a, b in zip(logprobs, ref, strict=True)]
    rewards[-1] += score
    delta = [rewards[k] + o.gamma * (values[k + 1] if k + 1 < n else 0) - values[k] for k in range(n)]
    decay = o.gamma * o.gae_lambda
    advantages = [sum(decay ** (s - k) * delta[s] for s in range(k, n)) for k in range(n)]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


@settings(max_examples=10, deadline=None)
@given(seeds, st.floats(0, 1), st.floats(0.5, 1), st.floats(0, 1))
def test_prepare_against_plain_python(seed: int, beta: float, gamma: float, lam: float) -> None:
    optimizer = PPO(kl_coef=beta, gamma=gamma, gae_lambda=lam, whiten_advantages="none")
    groups, t = make_round(seed)
    batch = optimizer.prepare(groups, {}, **t)
    assert batch.groups is groups
    for i in range(3):
        expected = advantages_by_definition(t, i, optimizer, t["rewards"][i].item())
        for name, values in zip(("advantages", "returns"), expected, strict=True):
            close(batch.tensors[name][i], values + [0.0] * (4 - len(values)))


def test_advantages_are_whitened_over_the_tokens_of_the_round_and_returns_are_not() -> None:
    batch, plain = prepare(PPO()), prepare(PPO(whiten_advantages="none"))
    _, t = make_round(0)
    shown = batch.tensors["advantages"][t["response_mask"]]
    assert shown.mean().item() == pytest.approx(0, abs=1e-12)
    assert shown.var(unbiased=False).item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(batch.tensors["returns"], plain.tensors["returns"])


def test_padding_changes_nothing() -> None:
    for optimizer in (PPO(), PPO(whiten_rewards=True, whiten_scores=True, gamma=0.9)):
        narrow, wide = make_round(1), make_round(1, width=7)
        a, b = (optimizer.prepare(groups, {}, **t) for groups, t in (narrow, wide))
        for name in a.tensors:
            close(b.tensors[name][:, :4], a.tensors[name])
            assert not b.tensors[name][:, 4:].any()


def test_monte_carlo_returns_do_not_depend_on_the_value_model() -> None:
    optimizer = PPO(gae_lambda=1.0, gamma=1.0)
    _, t = make_round(2)
    other = t["values"] * 3 + 1
    close(prepare(optimizer, 2).tensors["returns"], prepare(optimizer, 2, values=other).tensors["returns"])


def test_scores_are_whitened_before_the_kl_is_taken_off() -> None:
    """Any affine change of the reward leaves Llama 2's shaping as it is; without whitening it does not."""
    _, t = make_round(3)
    scaled = t["rewards"] * 7 - 2
    for optimizer, same in ((Llama2PPO(), True), (PPO(), False)):
        a, b = prepare(optimizer, 3).tensors["returns"], prepare(optimizer, 3, rewards=scaled).tensors["returns"]
        assert torch.allclose(a, b, atol=1e-6) == same
    assert prepare(Llama2PPO(), 3).metrics["score_std"] == pytest.approx(1, abs=1e-6)


def test_whitening_rewards_scales_them_and_keeps_their_mean() -> None:
    optimizer = PPO(whiten_rewards=True, gae_lambda=1.0, kl_coef=0.0)
    _, t = make_round(4)
    returns = prepare(optimizer, 4).tensors["returns"]
    tokens = [0.0] * 8
    for place, score in zip((2, 3, 7), t["rewards"].tolist(), strict=True):
        tokens[place] = score
    mean = sum(tokens) / 8
    deviation = math.sqrt(sum((x - mean) ** 2 for x in tokens) / 8 + 1e-8)
    white = [(x - mean) / deviation + mean for x in tokens]
    close(returns[:, 0], [sum(white[:3]), white[3], sum(white[4:])])


def test_a_score_after_eos_reaches_it_discounted_once_more() -> None:
    _, t = make_round(5)
    fields = {"kl_coef": 0.0, "whiten_advantages": "none", "gae_lambda": 0.5, "gamma": 0.9}
    ended = torch.tensor([True, True, True])
    late = prepare(PPO(score_at="after_eos", **fields), 5, ends_with_eos=ended)
    for i, n in enumerate((3, 1, 4)):  # the longest too, whose next token lies outside the batch
        eos = 0.45 * t["rewards"][i] - t["values"][i, n - 1]
        close(late.tensors["advantages"][i, n - 1], eos)
    assert not late.tensors["advantages"][~t["response_mask"]].any()
    assert not late.tensors["returns"][~t["response_mask"]].any()
    cut = prepare(PPO(score_at="after_eos", **fields), 5, ends_with_eos=~ended)
    for name in ("advantages", "returns"):  # nothing ended: there is no token after
        close(cut.tensors[name], prepare(PPO(**fields), 5).tensors[name])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [2.0, -3.0]),
        ({"missing_eos_replacement": -1.0}, [2.0, -1.0]),
        ({"missing_eos_penalty": 1.0}, [2.0, -4.0]),
        ({"missing_eos_replacement": -1.0, "whiten_scores": True}, [1.0, -1.0]),
        ({"missing_eos_penalty": 1.0, "whiten_scores": True}, [1.0, -2.0]),
    ],
)
def test_a_response_without_eos(fields: dict[str, Any], expected: list[float]) -> None:
    scores = PPO(**fields).final_scores(torch.tensor([2.0, -3.0]), torch.tensor([True, False]))
    assert scores.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_response_without_reward_is_dropped_and_its_siblings_stay() -> None:
    _, t = make_round(6)
    groups = Groups.from_rows([{"prompt": "p", "responses": ["a", "b"]}, {"prompt": "q", "responses": ["c"]}])
    t["rewards"][1], t["present"][1] = 1e9, False
    batch = PPO().prepare(groups, {}, **t)
    assert [row["responses"] for row in batch.groups] == [["a"], ["c"]]
    assert batch.tensors["advantages"].shape == (2, 4)
    alone = {name: tensor[[0, 2]] for name, tensor in t.items()}
    expected = PPO().prepare(batch.groups, {}, **alone)
    assert all(torch.equal(batch.tensors[name], expected.tensors[name]) for name in expected.tensors)
    assert (batch.metrics["responses"], batch.metrics["dropped_responses"]) == (2, 1)


def test_a_round_without_any_reward_is_refused() -> None:
    with pytest.raises(DataError, match="Learning from nothing"):
        prepare(PPO(), present=torch.zeros(3, dtype=torch.bool))


def test_metrics_are_plain_numbers() -> None:
    metrics = prepare(PPO()).metrics
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    _, t = make_round(0)
    kl = (t["logprobs"] - t["ref_logprobs"]).where(t["response_mask"], 0)
    assert metrics["kl_per_sequence"] == pytest.approx(kl.sum().item() / 3)
    assert metrics["kl_per_token"] == pytest.approx(kl.sum().item() / 8)
    assert metrics["explained_variance"] <= 1


# -- the coefficient of the KL, early stop, configuration --------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0, 0.148464), (3, 0.1469437286), (6, 0.1469437286), (7, 0.1481976485), (20, 0.1497151924)],
)
def test_kl_controller_golden(kl: float, expected: float) -> None:
    """The golden column is one trajectory: each round starts from the coefficient that the last one left."""
    beta = 0.15
    for now in (0, 3, 6, 7, 20):
        beta = adapted_kl_coef(beta, now, 6.0, 512, 10_000.0)
        if now == kl:
            break
    assert beta == pytest.approx(expected, abs=1e-9)


def test_the_coefficient_is_steered_through_the_state() -> None:
    optimizer = PPO(kl_coef=0.15, kl_target=6.0)
    state = optimizer.initial_state()
    assert state == {"kl_coef": 0.15}
    state = optimizer.update({**state, "kept": 1}, {"kl_per_sequence": 0.0, "responses": 512.0})
    assert state == {"kl_coef": pytest.approx(0.148464), "kept": 1}
    assert prepare(optimizer, state=state).metrics["kl_coef"] == pytest.approx(0.148464)
    assert adapted_kl_coef(0.15, 0.0, 6.0, 10**6, 10_000.0) == pytest.approx(0.12)


def test_a_fixed_coefficient_ignores_what_an_earlier_run_left() -> None:
    optimizer = PPO(kl_coef=0.02)
    assert optimizer.initial_state() == {}
    assert optimizer.beta({"kl_coef": 0.9}) == 0.02
    assert optimizer.update({"kl_coef": 0.9}, {}) == {"kl_coef": 0.9}


def test_the_coefficient_goes_on_in_the_next_version_where_the_state_is_handed_on(tmp_path: Path) -> None:
    steered = PPO(rounds=2, prompts_per_round=4, batch_size=4, epochs=1, kl_coef=0.15, kl_target=6.0, kl_horizon=20.0)
    prompts = Groups.from_prompts([f"p{i}" for i in range(4)])
    begun, given = [], None
    with Run(tmp_path, quiet=True) as run:
        v0 = policy = run.policy("tiny", lora=None)
        for name in ("v1", "v2"):
            made = run.improve(
                policy,
                prompts,
                optimizer=steered,
                reward=length,
                reference=v0,
                max_new_tokens=3,
                state=given,
                name=name,
            )
            policy, given = made.policy, made.state
            begun.append(json.loads((policy.path / "metrics.jsonl").read_text().splitlines()[0])["kl_coef"])
            begun.append(made.state["kl_coef"])
        with pytest.raises(ConfigError, match="has none as it is set"):
            run.improve(policy, prompts, optimizer=PPO(), reward=length, reference=v0, state=given, name="v3")
    assert begun[0] == 0.15
    assert begun[2] == begun[1] < 0.15
    assert begun[3] < begun[2]


def test_a_round_ends_early_on_its_kl() -> None:
    assert not PPO().stop_epochs({"approx_kl": 99.0})
    assert PPO(target_kl=0.02).stop_epochs({"approx_kl": 0.021})
    assert not PPO(target_kl=0.02).stop_epochs({"approx_kl": 0.019})


def test_ranges_of_the_optimizer_reach_its_loss() -> None:
    assert PPO().loss == use("alignkit-ppo/ppo", clip_range=0.2, value_clip_range=0.2)
    assert PPO(clip_range=0.1, value_clip_range=None).loss == use(
        "alignkit-ppo/ppo", clip_range=0.1, value_clip_range=None
    )
    assert PPO(loss=use("mine")).loss == use("mine")
    assert PPO(loss=use("ppo"), clip_range=0.3).loss == PPO(clip_range=0.3).loss
    assert replace(PPO(), kl_coef=0.1).loss == PPO().loss
    with pytest.raises(ConfigError, match="clip_range is given by the loss and the optimizer"):
        PPO(loss=use("ppo", clip_range=0.3))


@pytest.mark.parametrize(
    "fields",
    [
        {"gamma": 1.1},
        {"gae_lambda": -0.1},
        {"clip_range": 0.0},
        {"kl_coef": -0.1},
        {"kl_target": 0.0},
        {"missing_eos_penalty": -1.0},
        {"missing_eos_penalty": 1.0, "missing_eos_replacement": -1.0},
        {"whiten_advantages": "minibatch"},
        {"score_at": "first"},
    ],
)
def test_what_no_source_means_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PPO(**fields)


def test_llama2_numbers() -> None:
    o = Llama2PPO()
    assert (o.kl_coef, o.clip_range, o.learning_rate, o.schedule) == (0.01, 0.2, 1e-6, "constant")
    assert (o.betas, o.eps, o.weight_decay, o.max_grad_norm) == ((0.9, 0.95), 1e-5, 0.1, 1.0)
    assert (o.prompts_per_round, o.batch_size, o.epochs, o.whiten_scores) == (512, 64, 1, True)
    assert o.on_policy
    assert o.logprob_temperature == o.temperature


# -- the pretraining mix -----------------------------------------------------------------------------------------------

TEXTS = Groups.from_rows(
    {"prompt": [], "responses": [text]} for text in ("rain falls", "the sea is wide and cold", "a")
)


def first_gradient(folder: Path, **fields: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(gradients of the first step before clipping, its metrics)."""
    optimizer = PPO(rounds=1, prompts_per_round=4, batch_size=4, epochs=1, learning_rate=1e-3, **fields)
    prompts = Groups.from_prompts(["a", "b", "c", "d"])
    with first_gradients() as seen, Run(folder, quiet=True) as run:
        v0 = run.policy("tiny", lora=None)
        mix = {"ptx": TEXTS} if optimizer.ptx_coef else None
        v1 = run.improve(
            v0, prompts, optimizer=optimizer, reward=length, reference=v0, max_new_tokens=6, streams=mix, name="v1"
        ).policy
    row = json.loads((v1.path / "metrics.jsonl").read_text().splitlines()[0])
    return seen, row


def length(response: str) -> float:
    return float(len(response))


def test_the_gradient_of_a_mixed_step_is_the_sum_of_both(tmp_path: Path) -> None:
    alone, _ = first_gradient(tmp_path / "ppo")
    mixed, row = first_gradient(tmp_path / "mix", ptx_coef=2.5, ptx_batch_size=3)
    policy = Policy.load("tiny", trainable=True)
    ids = [policy.chat.encode_text(text["responses"][0]) for text in TEXTS]
    nll = torch.stack([-plain_logprobs(policy, text).sum() for text in ids if len(text) > 1]).sum()
    mean = nll / sum(len(text) - 1 for text in ids)  # over the tokens of all texts; a lone first token is not learned
    mean.backward()
    assert row["ptx"] == pytest.approx(mean.item(), rel=1e-4)
    theirs = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    for name, both in mixed.items():
        expected = alone[name] + 2.5 * theirs.get(name, torch.zeros_like(both))
        torch.testing.assert_close(both, expected, rtol=1e-3, atol=1e-6)
    assert max(float((mixed[n] - alone[n]).abs().max()) for n in alone) > 0.01


def plain_logprobs(policy: Policy, ids: list[int]) -> torch.Tensor:
    """log pi of every token of a text but the first [T - 1], by the model's own forward."""
    tokens = torch.tensor([ids])
    logits = policy.model(input_ids=tokens).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]


def test_a_coefficient_of_zero_is_ppo_alone(tmp_path: Path) -> None:
    plain, row = first_gradient(tmp_path / "ppo")
    zero, zero_row = first_gradient(tmp_path / "zero", ptx_coef=0.0, ptx_batch_size=3)
    assert PPO().streams() == {}
    assert zero_row == row
    assert "ptx" not in row
    assert all(torch.equal(plain[name], zero[name]) for name in plain)


def test_a_mix_needs_its_texts(tmp_path: Path) -> None:
    run, prompts = Run(tmp_path, quiet=True), Groups.from_prompts(["a"])
    v0 = run.policy("tiny", lora=None)
    with pytest.raises(ConfigError, match="ptx"):
        run.improve(v0, prompts, optimizer=PPO(ptx_coef=27.8), reward=length, reference=v0)
    run.close()


def mine(logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"policy_loss": -(logprobs - old_logprobs).exp() * advantages}


@pytest.mark.parametrize(("target", "steps"), [(None, 4), (1e-12, 2), (100.0, 4)])
def test_movement_is_measured_beside_a_loss_that_does_not_measure_it(
    target: float | None, steps: int, tmp_path: Path
) -> None:
    """The first step moves nothing, before it; the second shows by how much the first has moved."""
    optimizer = PPO(rounds=1, epochs=4, loss=mine, vf_coef=0.0, target_kl=target, learning_rate=1e-3, warmup_ratio=0.0)
    with Run(tmp_path / "r", quiet=True) as run:
        v0 = run.policy("tiny", lora=LoRA(r=2))
        made = run.improve(
            v0, Groups.from_prompts(["a", "b"]), optimizer=optimizer, reference=v0, max_new_tokens=4, reward=long
        )
        rows = [json.loads(line) for line in (made.policy.path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == steps
    assert ("step_kl" in rows[0]) == (target is not None)
    if target is not None:
        assert rows[0]["step_kl"] == 0.0 < rows[1]["step_kl"]


def test_movement_is_that_of_the_loss_where_it_is_ppo() -> None:
    assert not PPO(target_kl=0.1).extra_losses()
    assert PPO(target_kl=0.1).stop_epochs({"approx_kl": 0.2})
    assert not PPO(target_kl=0.1).stop_epochs({"approx_kl": 0.05})


def long(response: str) -> float:
    return float(len(response))


@pytest.mark.parametrize("clip_range", [2.0, -0.1, math.inf, math.nan])
def test_a_clip_range_is_a_share(clip_range: float) -> None:
    with pytest.raises(ConfigError, match="clip_range"):
        PPO(clip_range=clip_range)


def test_it_learns_from_its_own_samples_alone():
    with pytest.raises(ConfigError, match="of its own samples"):
        PPO(samples_per_prompt=0)


@pytest.mark.parametrize("limit", [None, 0.2])
def test_a_value_that_stays_within_its_range_is_not_clipped(limit: float | None) -> None:
    """V_old + (V - V_old) is V but for rounding, and that is on either side of the return."""
    generator = torch.Generator().manual_seed(0)
    old, returns = 0.04 * torch.randn(400, 1, generator=generator), torch.zeros(400, 1)
    values = 0.01 * torch.randn(400, 1, generator=generator)
    zeros = torch.zeros_like(old)
    assert bool((((old + (values - old) - returns) ** 2) > (values - returns) ** 2).any())
    found = ppo(zeros, zeros, zeros, values, old, returns, value_clip_range=limit)["value_clip_fraction"]
    assert float(found.sum()) == 0.0
    moved = ppo(zeros, zeros, zeros, old + 1.0, old, old + 2.0, value_clip_range=0.2)["value_clip_fraction"]
    assert float(moved.mean()) == 1.0
