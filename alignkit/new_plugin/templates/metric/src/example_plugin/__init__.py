"""A metric: the share of answers that ask back."""

from __future__ import annotations

import torch

from alignkit.plugin import Mean, MetricSpec, Register, hookimpl


class ExampleComponent(Mean):
    """Share of answers that end with a question mark, with an interval over prompts.

    Args:
        mark: what they end with.
    """

    spec = MetricSpec("share of answers that ask back", "it rises: the model evades", unit="share", better="down")
    per_prompt = True

    def __init__(self, mark: str = "?") -> None:
        super().__init__()
        self.mark = mark

    def update(self, responses: list[str]) -> None:  # type: ignore[override]
        super().update(torch.tensor([response.rstrip().endswith(self.mark) for response in responses]))


@hookimpl
def register_metrics(register: Register) -> None:
    register("example_component", ExampleComponent)
