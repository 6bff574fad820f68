"""What an adapter costs beside the model: seconds of 24 rows of 85 tokens through SmolLM2's shapes, all layers adapted.

    python benchmarks/adapters.py

Without an adapter, with one as peft computes it, and in one pass (`alignkit.models.adapted`), in turns; the median of
five, and how far the last states lie apart. Random weights, so that nothing is needed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaModel

from alignkit.models import adapted, products

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 1000,
}


def made(kind: str, layers: int) -> Any:
    """The model with its adapter, if there is one, as `kind` says it is computed."""
    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(num_hidden_layers=layers, **SHAPE)).eval().requires_grad_(False)
    products.route(model)
    if kind == "no adapter":
        return model
    found = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False))  # type: ignore[arg-type]
    products.route(found)
    if kind == "one pass":
        adapted.route(found)
    return found.eval()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    ids = torch.randint(0, SHAPE["vocab_size"], (24, 85), generator=torch.Generator().manual_seed(0))
    models = {kind: made(kind, chosen.layers) for kind in ("no adapter", "peft", "one pass")}
    seconds: dict[tuple[str, str], list[float]] = {}
    states = {}
    for _ in range(chosen.repeats + 1):  # the first does not count
        for kind, model in models.items():
            start = time.perf_counter()
            with torch.no_grad():
                states[kind] = model(ids).last_hidden_state
            seconds.setdefault((kind, "forward"), []).append(time.perf_counter() - start)
            if kind != "no adapter":
                start = time.perf_counter()
                model(ids).last_hidden_state.sum().backward()
                seconds.setdefault((kind, "forward and backward"), []).append(time.perf_counter() - start)
    for (kind, what), taken in seconds.items():
        print(f"{kind:11} {what:21} {statistics.median(taken[1:]):6.2f} s")
    print(f"largest difference of the states: {float((states['peft'] - states['one pass']).abs().max()):.1e}")


if __name__ == "__main__":
    main()
