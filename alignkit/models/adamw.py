"""AdamW whose weights and moments are float32, whatever the weights of the model are kept in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

LOW = (torch.bfloat16, torch.float16)
"""Kept in these, a weight of 0.1 moves by 5e-4 or not at all, and a small gradient's square is 0."""

FUSED = ("cpu", "cuda")
"""Devices on which a step is one pass."""


class FloatAdamW(torch.optim.AdamW):
    """AdamW that keeps a float32 copy of every weight of a lower precision, and learns in the copy.

    Weights in float32 or above are learned in place, as `torch.optim.AdamW` does. Of the others a step rounds the copy
    into the model: what is too small to show after one step adds up. Per such weight that takes 12 bytes (copy and two
    moments) and, between the first backward pass and the step, 4 for the gradient.

    A step is one pass over weights, gradients and moments (`fused`) where torch has that for the device, rather than a
    dozen: an eighth of the time on a CPU (benchmarks/results/speed.md). It rounds otherwise in the last bit.

    Args:
        groups: parameter groups.
        options: of `torch.optim.AdamW`.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        self.copies: list[tuple[nn.Parameter, nn.Parameter]] = []
        learned = [{**group, "params": [self._learned(p) for p in group["params"]]} for group in groups]
        fused = all(p.device.type in FUSED and p.is_floating_point() for group in learned for p in group["params"])
        super().__init__(learned, **{"fused": fused, **options})

    def _learned(self, parameter: nn.Parameter) -> nn.Parameter:
        """What is learned in the place of a model's parameter."""
        if parameter.dtype not in LOW:
            if parameter.device.type == "cpu" and type(parameter.data) is Tensor:
                # Weights that were loaded lie in their file's memory, of which the first step would copy page by page:
                # twenty times as long as a step (benchmarks/results/speed.md).
                parameter.data = parameter.data.clone()
            return parameter
        copy = nn.Parameter(parameter.detach().float())
        self.copies.append((parameter, copy))
        return copy

    @torch.no_grad()
    def gather(self) -> None:
        """Take over the gradients of a backward pass: they are summed over the passes of a step in float32."""
        for parameter, copy in self.copies:
            if parameter.grad is not None:
                copy.grad = parameter.grad.float() if copy.grad is None else copy.grad.add_(parameter.grad)
                parameter.grad = None

    def with_gradient(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """What is learned in the place of these, in their order, as far as it has a gradient."""
        copies = {id(parameter): copy for parameter, copy in self.copies}
        return [p for p in (copies.get(id(each), each) for each in parameters) if p.grad is not None]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        found = super().step(closure)
        for parameter, copy in self.copies:
            parameter.copy_(copy)
        return found
