"""Scoring groups with a reward model."""

from __future__ import annotations

from pathlib import Path

from alignkit.engine.training_data import TrainingData
from alignkit.groups import Groups
from alignkit.models import RewardModel
from alignkit.models.loading import dtype_of
from alignkit.rewards import Scores, clean_score

LONGEST = 1024
"""Tokens of a prompt and of a response, each, where a reward model does not say what it was trained with."""


class Scorer:
    """Scores responses with a reward model, prompts computed once.

    Args:
        model: the reward model.
        max_tokens: cells of a micro-batch.
        max_length: longest prompt and longest response, each; default what the model was trained with, else `LONGEST`.
    """

    def __init__(self, model: RewardModel, max_tokens: int = 4096, max_length: int | None = None) -> None:
        self.model, self.max_tokens = model, max_tokens
        self.max_length = max_length or model.max_length or LONGEST

    @classmethod
    def load(
        cls, folder: str | Path, max_tokens: int = 4096, precision: str = "32-true", device: str = "cpu"
    ) -> Scorer:
        """The scorer of a reward model in a folder."""
        return cls(RewardModel.load(folder, dtype=dtype_of(precision)).to(device), max_tokens)

    def score(self, groups: Groups) -> Scores:
        """Raw scores of all responses; a response that cannot be encoded is missing, with the reason."""
        most = self.max_length
        data, problems = TrainingData.of(self.model, groups, max_prompt_tokens=most, max_response_tokens=most)
        values: list[list[float | None]] = [[None] * size for size in groups.sizes()]
        reasons: list[list[str | None]] = [["not encoded"] * len(row) for row in values]
        for problem in problems:
            if problem.row is not None:
                reasons[problem.row] = [str(problem)] * len(reasons[problem.row])
        tokens = flops = 0
        with self.model.scoring():
            for numbers in data.all_micro_batches(self.max_tokens):
                batch, reading = data.collate(numbers), data.reading(numbers)
                tokens, flops = tokens + reading.tokens, flops + self.model.flops(reading, folded=True).forward
                scores = self.model.scores(batch.to(self.model.device)).tolist()
                for score, number, group in zip(scores, batch.responses.tolist(), batch.groups.tolist(), strict=True):
                    row, k = data.encoded[group].index, number - data.first_response[group]
                    values[row][k], reasons[row][k] = clean_score(score)
        return Scores(values, reasons, tokens, flops)
