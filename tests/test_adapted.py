"""A layer and its adapter in one pass are what peft computes in several, and what is more than that is left to peft."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from alignkit.models import adapted, products


class Two(nn.Module):
    """Two linear layers with a bend between them, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 4, bias=False)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def pair(dtype=torch.float64, **options):
    """The same adapted model twice: as peft has it, and routed."""
    models = []
    for routed in (False, True):
        torch.manual_seed(3)
        config = LoraConfig(r=2, lora_alpha=6, target_modules=["up", "down"], init_lora_weights=False, **options)
        model = get_peft_model(Two().to(dtype), config, autocast_adapter_dtype=False).train()
        if routed:
            products.route(model)
            adapted.route(model)
        models.append(model)
    return models


def outcome(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    y.float().pow(2).sum().backward()
    return y, {"x": x.grad, **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6), (6,)])
@pytest.mark.parametrize("base_trains", [False, True])
def test_values_and_every_gradient_are_pefts(shape, base_trains):
    theirs, ours = pair()
    for model in (theirs, ours):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(base_trains or "lora_" in name)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (y, gradients), (again, same) = outcome(theirs, x), outcome(ours, x)
    torch.testing.assert_close(again, y, rtol=1e-12, atol=1e-12)
    assert gradients.keys() == same.keys()
    assert len(gradients) == 1 + 4 + 3 * base_trains
    for name in gradients:
        torch.testing.assert_close(same[name], gradients[name], rtol=1e-12, atol=1e-12, msg=name)
    assert torch.autograd.gradcheck(
        adapted.adapted,
        [
            torch.randn(s, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(i))
            for i, s in enumerate([(3, 6), (4, 6), (4,), (2, 6), (4, 2)])
        ]
        + [0.7],
    )


def test_under_autocast_it_is_pefts_up_to_the_types_rounding():
    theirs, ours = pair(torch.float32)
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16), products.casts_kept():
        (y, gradients), (again, same) = outcome(theirs, x), outcome(ours, x)
    assert again.dtype is y.dtype is torch.bfloat16
    torch.testing.assert_close(again, y, rtol=3e-2, atol=3e-2)
    for name in gradients:
        assert same[name].dtype is gradients[name].dtype
        difference = (same[name].float() - gradients[name].float()).norm()
        assert difference < 0.03 * gradients[name].float().norm(), name


def test_another_adapter_none_and_a_folded_one_are_what_peft_makes_of_them():
    theirs, ours = pair()
    x = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for model in (theirs, ours):
        torch.manual_seed(9)
        config = LoraConfig(r=3, lora_alpha=1, target_modules=["up"], init_lora_weights=False)
        model.add_adapter("second", config, autocast_adapter_dtype=False)
        adapted.route(ours)
    seen = []
    for model in (theirs, ours):
        found = [model(x)]
        with model.disable_adapter():
            found.append(model(x))
        model.set_adapter("second")
        found.append(model(x))
        model.base_model.set_adapter(["default", "second"])
        found.append(model(x))
        model.merge_adapter()
        found.append(model(x))
        seen.append(found)
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)
    assert all((seen[1][i] - seen[1][j]).abs().max() > 1e-3 for i in range(4) for j in range(i))


@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}], ids=["dropout", "dora", "bias"]
)
def test_what_is_more_than_two_matrices_is_left_to_peft(options, monkeypatch):
    theirs, ours = pair(**options)
    monkeypatch.setattr(adapted, "adapted", None)  # called, it would fail
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for model in (theirs, ours):
        torch.manual_seed(5)
        found.append(model(x))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_a_plain_adapter_takes_one_pass_and_other_types_do_not(monkeypatch):
    calls = []
    plain = adapted.adapted
    monkeypatch.setattr(adapted, "adapted", lambda *given: calls.append(given[0].shape) or plain(*given))
    _, ours = pair(torch.float32)
    ours(torch.zeros(4, 6))
    assert [tuple(shape) for shape in calls] == [(4, 6), (4, 10)]
    for layer in (ours.base_model.model.up, ours.base_model.model.down):
        layer.base_layer.to(torch.bfloat16)
    del calls[:]
    ours(torch.zeros(4, 6, dtype=torch.bfloat16))
    assert calls == []


def test_a_model_without_adapters_is_left_alone():
    model = Two()
    adapted.route(model)
    assert [type(module) for module in model.children()] == [nn.Linear, nn.Linear]
