"""Scoring groups with a reward model."""

from __future__ import annotations

from pathlib import Path

import torch

from alignkit.data.encode import encode_groups
from alignkit.engine.training_data import TrainingData
from alignkit.groups import Groups
from alignkit.models import RewardModel
from alignkit.rewards import Scores, clean_score

DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of weights under a Lightning precision (mixed precisions keep float32 weights)."""
    return DTYPES.get(precision, torch.float32)


class Scorer:
    """Scores responses with a reward model, prompts computed once.

    Args:
        model: the reward model.
        max_tokens: padded cells of a micro-batch.
        max_length: longest prompt and longest response, each.
    """

    def __init__(self, model: RewardModel, max_tokens: int = 4096, max_length: int = 1024) -> None:
        self.model, self.max_tokens, self.max_length = model, max_tokens, max_length

    @classmethod
    def load(
        cls, folder: str | Path, max_tokens: int = 4096, precision: str = "32-true", device: str = "cpu"
    ) -> Scorer:
        """The scorer of a reward model in a folder."""
        return cls(RewardModel.load(folder, dtype=dtype_of(precision)).to(device), max_tokens)

    def score(self, groups: Groups) -> Scores:
        """Raw scores of all responses; a response that cannot be encoded is missing, with the reason."""
        encoded, problems = encode_groups(
            groups, self.model.chat, max_prompt_tokens=self.max_length, max_response_tokens=self.max_length
        )
        values: list[list[float | None]] = [[None] * len(row["responses"]) for row in groups]
        reasons: list[list[str | None]] = [["not encoded"] * len(row["responses"]) for row in groups]
        for problem in problems:
            if problem.row is not None:
                reasons[problem.row] = [str(problem)] * len(reasons[problem.row])
        data = TrainingData(groups, list(encoded), shared=self.model.shares_prompts, pad_id=self.model.chat.pad_id)
        with self.model.scoring():
            for numbers in data.micro_batches(list(range(len(encoded))), self.max_tokens):
                batch = data.collate(numbers).to(self.model.device)
                scores = self.model.scores(batch).tolist()
                for score, number, group in zip(scores, batch.responses.tolist(), batch.groups.tolist(), strict=True):
                    row, k = encoded[group].index, number - data.first_response[group]
                    values[row][k], reasons[row][k] = clean_score(score)
        return Scores(values, reasons)
