"""What a stage would cost, told before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass

BYTES = {"bf16-true": 2, "16-true": 2, "64-true": 8}
"""Of a weight, where it is not 4."""


@dataclass(frozen=True)
class Cost:
    """The estimated work of a stage.

    Args:
        generated: tokens sampled, at most.
        trained: tokens through forward and backward.
        forwarded: tokens through a forward pass alone (scoring, reference).
        parameters: weights of the model at work.
        trainable: whether optimizer state is held.
        disk: bytes written, at most.
    """

    generated: int = 0
    trained: int = 0
    forwarded: int = 0
    parameters: int = 0
    trainable: bool = False
    disk: int = 0

    def flops(self) -> float:
        """2 N per token forward and 4 N backward (Kaplan et al. 2020, section 2.1)."""
        return 2.0 * self.parameters * (self.generated + self.forwarded + 3 * self.trained)

    @property
    def of_unknown_size(self) -> bool:
        """Whether a model is at work of which nobody knows yet how many weights it has."""
        return not self.parameters and bool(self.generated or self.trained)

    def memory(self, precision: str) -> int:
        """Bytes of weights, gradients and AdamW's moments (see `FloatAdamW`); activations come on top."""
        width = BYTES.get(precision, 4)
        copy = 8 if width < 4 else 0  # in float32, and its gradient
        return self.parameters * (width + (width + 2 * max(width, 4) + copy if self.trainable else 0))
