"""GFLOP/s of float32 products by each of torch's two libraries, for SmolLM2's layers and its head.

    python benchmarks/products.py [--rows 96 512 2048] [--repeats 7]

Each product reads other weights than the one before, as in a model. "packed": weights laid out for oneDNN once, as
where a model is sampled from. "chosen": what `alignkit.models.products.linear` takes here. "gradient": of what came in.
Medians of turns; rates hang on what else the machine does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from alignkit.models.products import linear, onednn

SHAPES = {"576 to 1536": (1536, 576), "1536 to 576": (576, 1536), "576 to 49,152": (49152, 576)}
WEIGHTS = 40_000_000
"""Numbers of all weights that take turns: more than fit a processor's cache."""


def rates(out: int, into: int, rows: int, repeats: int) -> dict[str, float]:
    """GFLOP/s of each way."""
    weights = [torch.randn(out, into) for _ in range(max(1, WEIGHTS // (out * into)))]
    packs = [torch.ops.mkldnn._reorder_linear_weight(weight, None) for weight in weights]
    x, slope = torch.randn(rows, into), torch.randn(rows, out)
    ways: dict[str, tuple[Callable[[Tensor], Tensor], list[Tensor]]] = {
        "MKL": (lambda w: nn.functional.linear(x, w), weights),
        "oneDNN": (lambda w: onednn(x, w), weights),
        "packed": (lambda w: onednn(x, w), packs),
        "chosen": (lambda w: linear(x, w), weights),
        "gradient, MKL": (lambda w: slope @ w, weights),
        "gradient, oneDNN": (lambda w: onednn(slope, w.t()), weights),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for turn in range(repeats + 1):
            for name, (product, given) in ways.items():
                begin = time.perf_counter()
                for weight in given:
                    product(weight)
                if turn:  # the first one prepares kernels
                    seconds[name].append(time.perf_counter() - begin)
    work = 2 * rows * out * into * len(weights) / 1e9
    return {name: work / statistics.median(each) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 96, 512])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    heading = False
    for name, (out, into) in SHAPES.items():
        for rows in options.rows:
            found = rates(out, into, rows, options.repeats)
            if not heading:
                print("| product, rows | " + " | ".join(found) + " |\n" + "|---" * (len(found) + 1) + "|")
                heading = True
            print(f"| {name}, {rows} | " + " | ".join(f"{rate:.0f}" for rate in found.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
