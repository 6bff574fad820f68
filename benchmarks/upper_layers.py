"""What is saved where prompts begin alike and adapters are on the upper layers: SmolLM2's shapes, 16 comparisons.

    python benchmarks/upper_layers.py [--layers 12] [--upper 6] [--repeats 5]

The way of a reward model: 32 responses of about 20 tokens, prompts of about 30 of which the first 14 are the same, in
one packed row. "alone": adapters on all layers, each prompt read whole. "beginning": what they begin with is read
once. "upper": besides, adapters on the upper layers alone. "upper, in part": besides, all but a quarter of the texts
were read before, as where comparisons of before are learned from again beside new ones. "upper, known": all of them,
as in every epoch but the first, and by every model on the same base but one. In turns, medians of seconds, and the
largest difference of the states that are learned from, from those of "alone" (adapters that say nothing yet). Random
weights, so that nothing is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from adapters import SHAPE
from transformers import LlamaConfig, LlamaForCausalLM

from alignkit import LoRA
from alignkit.data.encode import EncodedGroup
from alignkit.models import adapted, batch, forward, lower, products
from alignkit.models.lora import adapt

ALIKE = 14
"""Tokens that all prompts begin with."""
WAYS = ("alone", "beginning", "upper", "upper, in part", "upper, known")


def comparisons(count: int) -> list[EncodedGroup]:
    """Two responses each."""
    draw = random.Random(0)

    def text(least: int, most: int) -> list[int]:
        return [draw.randrange(1, SHAPE["vocab_size"]) for _ in range(draw.randint(least, most))]

    begin = text(ALIKE, ALIKE)
    return [EncodedGroup([*begin, *text(12, 20)], [text(5, 36), text(5, 36)], None, n) for n in range(count)]


def made(layers: int, upper: int | None) -> Any:
    """The model, adapted on so many of the last layers; None: on all."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **SHAPE)).eval().requires_grad_(False)
    found = adapt(model, LoRA(r=16, layers=upper))
    products.route(found)
    adapted.route(found)
    return found


@contextlib.contextmanager
def each_prompt_whole(wanted: bool) -> Iterator[None]:
    """Within it no prompts have a beginning in common, if so wanted."""
    before = batch.LEAST_SHARED
    batch.LEAST_SHARED = 10**9 if wanted else before
    try:
        yield
    finally:
        batch.LEAST_SHARED = before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--upper", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    every, upper = made(chosen.layers, None), made(chosen.layers, chosen.upper)
    groups = comparisons(16)
    seconds: dict[tuple[str, str], list[float]] = {}
    states: dict[str, torch.Tensor] = {}
    tokens = {}
    for _ in range(chosen.repeats + 1):  # the first does not count
        for way in WAYS:
            model = every if way in WAYS[:2] else upper
            with each_prompt_whole(way == "alone"):
                row = batch.collate(groups, range(16), range(0, 32, 2), pad_id=0, packed=True)
            tokens[way] = row.tokens
            for what in ("forward", "forward and backward"):
                if way != "upper, known":
                    lower.forget()
                if way == "upper, in part":
                    with torch.no_grad():
                        before = batch.collate(groups[:12], range(12), range(0, 24, 2), pad_id=0, packed=True)
                        forward.hidden_states(model, before)
                start = time.perf_counter()
                with torch.set_grad_enabled(what != "forward"):
                    found = forward.last_hidden(forward.hidden_states(model, row), row)
                if found.requires_grad:
                    found.sum().backward()
                seconds.setdefault((way, what), []).append(time.perf_counter() - start)
                states[way] = found.detach()
    print(f"{'way':14} {'tokens':>6} {'forward':>9} {'and backward':>13} {'gap':>8}")
    for way in WAYS:
        times = [statistics.median(seconds[way, what][1:]) for what in ("forward", "forward and backward")]
        gap = float((states[way] - states["alone"]).abs().max())
        print(f"{way:14} {tokens[way]:6} {times[0]:7.2f} s {times[1]:11.2f} s {gap:8.0e}")


if __name__ == "__main__":
    main()
