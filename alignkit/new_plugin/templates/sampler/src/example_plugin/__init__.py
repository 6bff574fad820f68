"""A decoding rule: tokens that are far less likely than the likeliest one are never drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from alignkit.plugin import ConfigError, Register, Sampler, hookimpl


@dataclass(frozen=True)
class ExampleComponent(Sampler):
    """No token less likely than `share` times the likeliest one.

    Args:
        share: in (0, 1]; 1 leaves the likeliest alone.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ConfigError(f"share={self.share} must be in (0, 1]", where="example_component")

    def warp(self, logprobs: Tensor) -> Tensor:
        floor = logprobs.max(dim=-1, keepdim=True).values + math.log(self.share)
        return logprobs.masked_fill(logprobs < floor, -math.inf)


@hookimpl
def register_samplers(register: Register) -> None:
    register("example_component", ExampleComponent)
