"""Everything runs where it is put: a round of every method on a pretended GPU, which refuses tensors of two devices."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from alignkit import Groups, LoRA, Policy, Run
from alignkit.models import forward, ways
from alignkit.models.slots import Slots
from alignkit.registry.host import default_host
from alignkit.sampling import Sampler
from alignkit.testing import DEMOS, PAIRS, PROMPTS, TEXTS, PretendedGPU, letters, pretended_gpu, save_states
from alignkit.testing.conformance import Given, find
from alignkit.testing.conformance.loss_data import draw, total
from alignkit.testing.conformance.method_runs import GIVEN, small

RANKINGS = Groups.from_rows(
    {"prompt": f"p{i}", "responses": ["a" * (i + 1), "b", "cc" * (4 - i)], "ranks": [1, 2, 3]} for i in range(4)
)
"""Four rankings of three."""
RATED = Groups.from_rows(
    {
        "prompt": f"p{i}",
        "responses": ["yes" * (i + 1), "no" * (4 - i)],
        "ranks": [1, 2],
        "rating": "better",
        "meta": {"margin": 0.5, "preference_prob": 0.9, "safe": [True, i % 2 == 0]},
    }
    for i in range(4)
)
"""Four comparisons with all that may be said of one."""
METHODS = [record.name for record in default_host().components("optimizer")]
"""Every method that is registered, so that a new one is tried too."""
VERDICTS = ("hir",)
"""Those that learn from a program's verdict, between 0 and 1, and refuse a model's score."""
LOSSES = [record.name for record in default_host().components("loss")]


@pytest.fixture
def gpu() -> Iterator[PretendedGPU]:
    with pretended_gpu() as made:
        yield made


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model's folder."""
    with pretended_gpu(), Run(tmp_path_factory.mktemp("scorer") / "run", quiet=True) as run:
        made = run.train_reward(run.policy("tiny"), PAIRS, loss="pairwise_ranking", heldout_fraction=0.25)
        return made.handle.path / "model"


# -- the pretended GPU itself ------------------------------------------------------------------------------------------


FORGOTTEN: dict[str, Callable[..., Any]] = {
    "sum": lambda x, ids, linear: x + torch.ones(4),
    "product": lambda x, ids, linear: x @ torch.ones(4, 2),
    "weights": lambda x, ids, linear: linear(x),
    "numbers": lambda x, ids, linear: torch.cat([x.sum().reshape(1), torch.zeros(1)]),
    "stacked": lambda x, ids, linear: torch.stack([x.sum(), torch.zeros(())]),
    "mask": lambda x, ids, linear: x.masked_fill(torch.zeros(3, 4, dtype=torch.bool), 0.0),
    "where": lambda x, ids, linear: torch.where(x > 0, x, torch.zeros(4)),
    "indices of the GPU into the CPU": lambda x, ids, linear: torch.zeros(5)[ids.to("cuda")],
    "gather": lambda x, ids, linear: x.gather(1, torch.zeros(3, 1, dtype=torch.long)),
    "embedding": lambda x, ids, linear: functional.embedding(ids, x),
    "in place": lambda x, ids, linear: torch.zeros(3, 4).add_(x),
    "written": lambda x, ids, linear: torch.zeros(5).index_put_((ids,), x[:2, 0]),
    "array": lambda x, ids, linear: x.numpy(),
    "loss": lambda x, ids, linear: functional.cross_entropy(x, torch.tensor([0, 1, 2])),
}
"""What fails on a GPU: of a matrix there, and of indices and a layer that were left on the CPU."""


@pytest.mark.parametrize("name", list(FORGOTTEN))
def test_what_a_gpu_refuses_is_refused(gpu, name):
    with pytest.raises((RuntimeError, TypeError), match=r"same device|to numpy"):
        FORGOTTEN[name](torch.randn(3, 4).to("cuda"), torch.tensor([0, 2]), torch.nn.Linear(4, 4))


def test_what_a_gpu_does_is_done(gpu):
    x, ids = torch.randn(3, 4).to("cuda"), torch.tensor([0, 2])
    linear = torch.nn.Linear(4, 4).to("cuda")
    linear(x).square().sum().backward()
    assert gpu.operations > 0
    made = [
        x * torch.tensor(2.0),
        x[ids],
        x.masked_fill(x > 0, torch.tensor(1.0)),
        torch.zeros(2, device=x.device),
        x.new_tensor([1.0]),
        functional.one_hot(x.argmax(-1)),
        copy.deepcopy(linear).weight,
        linear.weight.grad,
        torch.zeros(3, 4, device="cuda").copy_(torch.ones(3, 4)),
        x.cpu().to(x),
    ]
    assert [each.device.type for each in made] == ["cuda"] * len(made)
    here = [x.cpu(), ids, torch.tensor(x.tolist()), torch.zeros(3, 4).copy_(x), torch.from_numpy(x.cpu().numpy())]
    assert [each.device.type for each in here] == ["cpu"] * len(here)
    assert x.cpu().tolist() == x.tolist()


def test_what_has_no_memory_is_on_no_device(gpu):
    with torch.device("meta"):
        made = torch.ones(3)
    assert [each.device.type for each in (made, made.to(torch.float64), made + 1)] == ["meta"] * 3
    assert torch.empty_like(made, device="cuda").device.type == "cuda"


def test_a_gradient_returns_to_where_its_tensor_is(gpu):
    x = torch.ones(3, requires_grad=True)
    (2 * x.to("cuda")).sum().backward()
    assert x.grad is not None
    assert (x.grad.device.type, x.grad.tolist()) == ("cpu", [2.0] * 3)


def test_what_python_does_in_a_backward_pass_is_watched(gpu):
    class Careless(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            assert grad.device.type == "cuda"
            return grad * torch.ones(3)

    x = torch.ones(3).to("cuda").requires_grad_()
    with pytest.raises(RuntimeError, match="same device"):
        Careless.apply(x).sum().backward()


# -- everything on it --------------------------------------------------------------------------------------------------


def improved(run: Run, name: str, scorer: Path, lora: LoRA | None, settings: Any = None, **options: Any) -> Any:
    """One round of a method, small."""
    [subject] = find(f"optimizer:{name}", run.host, Given(settings={f"optimizer:{name}": settings or {}}))
    method = small(subject, epochs=2)
    policy = run.policy("tiny", lora=lora)
    rows = PROMPTS if method.samples_per_prompt else GIVEN
    reward: Any = letters if name in VERDICTS else run.reward_model(scorer)
    return run.improve(
        policy,
        rows,
        optimizer=method,
        reward=reward if method.samples_per_prompt else None,
        reference=policy,
        max_new_tokens=8,
        **options,
    )


@pytest.fixture
def placed(gpu, monkeypatch, tmp_path) -> Iterator[Run]:
    """A run on the GPU, where nothing may be refused, not even where the error would be caught; how a model is read is
    found out there."""
    for module, known in ((ways, "_KNOWN"), (ways, "_SLOTS"), (forward, "_PROBED")):
        monkeypatch.setattr(module, known, {})
    torch.use_deterministic_algorithms(True)  # what is not written to holds NaN
    try:
        with Run(tmp_path / "run", quiet=True, max_tokens=120) as run:
            assert run.device.type == "cuda"
            yield run
    finally:
        torch.use_deterministic_algorithms(False)
    assert gpu.refused == []
    assert gpu.operations > 1000


@pytest.mark.parametrize("name", METHODS)
def test_a_round_of_every_method(placed, scorer, name):
    """With a reference that is a state of the policy."""
    assert improved(placed, name, scorer, LoRA(r=2)).result["steps"] > 0


@pytest.mark.parametrize(
    "name", [name if name in ("dpo", "rloo") else pytest.param(name, marks=pytest.mark.full) for name in METHODS]
)
def test_a_round_of_every_method_all_of_whose_weights_are_trained(placed, scorer, name):
    """With a reference that is a model of its own: it is one place in the core; two methods stand for all."""
    assert improved(placed, name, scorer, None).result["steps"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"value_model": "separate"},
        {"checkpointing": True, "heldout": PROMPTS},
        {"reference_logprobs": "online"},
        {"streams": {"ptx": TEXTS}, "settings": {"ptx_coef": 1.0, "ptx_batch_size": 2}},
        {"settings": {"importance_cap": 2.0, "value_learning_rate": 1e-3}},
    ],
    ids=lambda options: " ".join(options),
)
def test_what_a_round_may_have_beside_it(placed, scorer, options):
    assert improved(placed, "ppo", scorer, None, **options).result["steps"] > 0


@pytest.mark.parametrize(
    ("loss", "rows"),
    [
        ("margin_ranking", RATED),
        ("margin_ranking_with_safety", RATED),
        ("soft_ranking", RATED),
        ("kwise_ranking", RANKINGS),
        ("plackett_luce", RANKINGS),
        ("best_of_k", RANKINGS),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_reward_models(placed, loss, rows):
    """Of comparisons with ratings, margins, soft labels and safety labels, and of rankings; then they score."""
    policy = placed.policy("tiny", lora=LoRA(r=2))
    made = placed.train_reward(policy, rows, loss=loss, heldout_fraction=0.25, batch_size=2)
    assert len(made.score(DEMOS).values) == len(DEMOS)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(gpu, name):
    loss = default_host().build("loss", name)
    given = draw(loss.tensor_names, default_host().provided_tensors())
    there = replace(given.changed(lambda _, value: value.to("cuda")), mask=given.mask.to("cuda")).with_gradients()
    here, found = total(loss, [given.with_gradients()]), total(loss, [there])
    if found is not None:
        found.backward()
        assert found.device.type == "cuda"
        assert found.item() == here.item()
    assert gpu.refused == []


def test_demonstrations(placed):
    policy = placed.policy("tiny")
    for train in ("last", "all"):
        placed.sft(policy, TEXTS, train=train, heldout_fraction=0.4, batch_size=2, name=train)


def test_an_evaluation(placed, scorer):
    """Of a policy that has learned a little, with the KL to where it began, and whatever is measured on answers."""
    before = placed.policy("tiny")
    after = placed.sft(before, TEXTS, batch_size=2, learning_rate=1e-3)
    scores = {"letters": letters, "model": placed.reward_model(scorer)}
    metrics = ["perplexity", "self_bleu", "distinct"]
    made = placed.evaluate(after, PROMPTS, scores, n=2, reference=before, max_new_tokens=8, metrics=metrics)
    assert made.metrics["kl"]["mean"] != 0


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(greedy=True), Sampler(batch_size=3)])
def test_samples(placed, sampler):
    sampler = replace(sampler, max_new_tokens=6)
    policy = placed.policy("tiny", lora=LoRA(r=2))
    assert len(placed.sample(policy, PROMPTS, 3, sampler=sampler)) == len(PROMPTS)


def test_a_model_is_read_there_in_the_ways_that_are_fast(gpu, monkeypatch):
    """What fails while the ways are found out is no error: another way is taken, in silence."""
    for module, known in ((ways, "_KNOWN"), (ways, "_SLOTS"), (forward, "_PROBED")):
        monkeypatch.setattr(module, known, {})
    policy = Policy.load("tiny").to("cuda")
    with policy.reading() as reader:
        assert isinstance(reader, Slots)
        assert reader.device.type == "cuda"
        reader.together = False  # as families do whose trunk cannot be parted
        reader.admit([[1, 2, 3], [4]], 2)
    assert ways.ways_of(policy.model, "tiny") == ways.Ways(positions=policy.ways.positions)
    assert policy.shares_prompts
    assert gpu.refused == []


def test_an_adapter_is_read_to_where_its_base_is(gpu, tmp_path):
    """And not to a GPU that peft finds: a policy that is still on the CPU, and a state that is added to it there."""
    folder = save_states(tmp_path) / "sft"
    policy = Policy.load(folder)
    assert policy.add_state("reference", folder)
    assert {p.device.type for p in policy.parameters()} == {"cpu"}
    assert gpu.operations == 0


def test_the_numbers_are_those_of_the_processor(tmp_path, scorer):
    """The same round here and there: the same samples, and weights up to rounding."""
    found = []
    for place in (contextlib.nullcontext, pretended_gpu):
        with place(), Run(tmp_path / place.__name__, quiet=True, max_tokens=120) as run:
            made = improved(run, "ppo", scorer, None)
            rows = made.rollouts.groups
        found.append(
            ([row["response_ids"] for row in rows], load_file(made.policy.path / "model" / "model.safetensors"))
        )
    (ids, weights), (others, there) = found
    assert ids == others
    for name, wanted in weights.items():
        torch.testing.assert_close(there[name], wanted, rtol=0, atol=1e-4)
