"""Gradients of several processes are summed once a step, whatever each pass of each process leaves untouched."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from alignkit import Run, processes


@pytest.fixture(scope="module")
def methods() -> ModuleType:
    """What the test with two processes trains."""
    spec = importlib.util.spec_from_file_location(
        "processes_methods", Path(__file__).with_name("processes_methods_script.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lone_group() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_each_process_has_the_sum_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process is played: it has gradients of 10 for the first, third and fifth parameter."""
    shapes = [
        ((2, 3), torch.float32),
        ((4,), torch.float64),
        ((2,), torch.float32),
        ((2,), torch.float32),
        ((1,), torch.float32),
    ]
    mine = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in shapes]
    for place in (0, 1, 4):
        mine[place].grad = torch.arange(mine[place].numel(), dtype=mine[place].dtype).view(mine[place].shape)
    there = [True, False, True, False, True]
    other = [torch.full_like(p, 10.0 * some) for p, some in zip(mine, there, strict=True)]
    exchanges: list[int] = []

    def all_reduce(tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM) -> None:
        if not exchanges:
            assert op == dist.ReduceOp.MAX
            tensor.copy_(torch.maximum(tensor, torch.tensor(there, dtype=tensor.dtype)))
        else:
            assert op == dist.ReduceOp.SUM
            waiting = [g.flatten() for g, p in zip(other, mine, strict=True) if p.grad is not None]
            begun = sum(exchanges[1:])
            flat = torch.cat([each.double() for each in waiting])[begun : begun + tensor.numel()]
            tensor.add_(flat.to(tensor.dtype))
        exchanges.append(tensor.numel())

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(processes, "BUCKET", 6)
    processes.sum_gradients(mine)
    found = [None if p.grad is None else p.grad.flatten().tolist() for p in mine]
    assert found == [[10.0, 11, 12, 13, 14, 15], [0.0, 1, 2, 3], [10.0, 10.0], None, [10.0]]
    assert exchanges == [5, 6, 4, 3]  # as large as a bucket, of another type, two together


@pytest.mark.parametrize("value_model", ["head", "separate"])
def test_ddp_does_not_wait_for_what_a_pass_leaves_untouched(
    methods: ModuleType, tmp_path: Path, value_model: str, lone_group: None
) -> None:
    """A group of one process: DDP's own sum dies in it as in two."""
    found = []
    for name, trainer in (("alone", {}), ("ddp", {"strategy": "ddp", "devices": 1})):
        with Run(tmp_path / name, quiet=True, max_tokens=60, trainer={"accelerator": "cpu", **trainer}) as run:
            policy = run.policy("tiny", lora=None)
            made = methods.improved(run, policy, "v1", value_model)
        files = sorted(f for f in made.path.rglob("*.safetensors") if f.name != "metrics.safetensors")
        found.append({(f.parent.name, f.name, key): value for f in files for key, value in load_file(f).items()})
    alone, ddp = found
    assert len(alone) > 20
    assert alone.keys() == ddp.keys()
    assert all(torch.equal(value, ddp[key]) for key, value in alone.items())
