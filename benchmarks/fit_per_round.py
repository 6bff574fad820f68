"""What one `Trainer.fit` per round would cost: milliseconds a round, on the tiny model, in one process.

`python benchmarks/fit_per_round.py` prints the least and the median of a few repetitions, for rounds that are epochs of
one fit (as in `alignkit/engine/improve.py`) and for a fit each. Each round takes one step on what it was given.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from alignkit.engine.fit import fit
from alignkit.engine.learner import Learner
from alignkit.engine.lesson import Lesson, RoundLoop
from alignkit.engine.losses import nll
from alignkit.engine.training_data import TrainingData
from alignkit.groups import Groups
from alignkit.models import Policy
from alignkit.optimizers import Term, Training
from alignkit.registry.host import PluginHost

ROUNDS, REPETITIONS = 30, 7
DEMOS = Groups.from_rows({"prompt": f"p {i}", "responses": ["x" * (1 + i % 4)]} for i in range(4))


@dataclass
class Repeated:
    """The same lesson in every round."""

    lesson: Lesson
    count: int

    def rounds(self) -> RoundLoop:
        for _ in range(self.count):
            yield self.lesson
            yield False


def seconds(per_fit: int) -> float:
    """Of `ROUNDS` rounds, with so many of them in each fit."""
    policy = Policy.load("tiny", trainable=True)
    data, _ = TrainingData.of(policy, DEMOS, max_prompt_tokens=500, max_response_tokens=500)
    rounds = Repeated(Lesson(data, data.steps(0, 1, 10**6, (0,))), per_fit)
    loss = PluginHost(allow=()).build("loss", nll)
    learner = Learner(policy, loss, {"loss": Term()}, Training(), rounds)
    started = time.perf_counter()
    for _ in range(ROUNDS // per_fit):
        learner.loop = rounds.rounds()
        fit(learner, precision="32-true", trainer={"accelerator": "cpu"})
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    for name, per_fit in (("rounds of one fit", ROUNDS), ("a fit per round", 1)):
        seconds(per_fit)
        times = [seconds(per_fit) / ROUNDS * 1e3 for _ in range(REPETITIONS)]
        print(f"{name}: {min(times):.1f} ms a round at least, {statistics.median(times):.1f} at the median")


if __name__ == "__main__":
    main()
