"""What a small round costs beside the model's arithmetic: milliseconds a round of methods on a model of 10,848 weights.

    python benchmarks/round_overhead.py --json after.json
    PYTHONPATH=$(echo OLDER/plugins/*/src | tr ' ' ':'):OLDER python benchmarks/round_overhead.py --json before.json
    python benchmarks/round_overhead.py --table before.json after.json

Rounds of 2 tokens; the cost of one is that of a stage of 1 + R rounds less that of a stage of one, over R: CPU seconds
of this process and wall seconds, one thread. The cells are measured in turn, the whole several times, and medians are
shown with the least and the greatest, so that a busy moment of the machine does not fall on one cell alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import alignkit
from alignkit import Groups, Run, use

SHAPES = ((2, 2), (2, 16), (2, 64), (32, 4), (128, 2))
METHODS: dict[str, dict[str, Any]] = {
    "rloo": {"kl_coef": 0.5},
    "ppo": {"epochs": 1},
    "grpo": {},
    "online_dpo": {},
}
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<user> ' + m['content'] + ' <end>' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<assistant> ' + m['content'] + ' <end>' }}"
    "{% else %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def save_model(folder: Path) -> None:
    """A Llama of one layer, 32 wide, over eight words."""
    words = ["<pad>", "<end>", "<user>", "<assistant>", "a", "b", "c", "d"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words[:4]])
    special = {"eos_token": "<end>", "pad_token": "<pad>", "unk_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **special)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=False, initializer_range=0.3,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def letters(response: str) -> float:
    """The reward: how long the text is."""
    return float(len(response))


def stage(model: Path, folder: Path, method: str, shape: tuple[int, int], rounds: int) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of `improve` with so many rounds of rows x samples."""
    rows, samples = shape
    words = ["a", "b", "c", "d"]
    prompts = Groups.from_prompts(" ".join(words[(i >> 2 * k) % 4] for k in range(4)) for i in range(rows))
    settings = {"rounds": rounds, "samples_per_prompt": samples, "prompts_per_round": 0, "batch_size": 0}
    with Run(folder, quiet=True, max_tokens=1 << 16, trainer={"accelerator": "cpu"}) as run:
        v0 = run.policy(model, lora=None)
        began, wall = time.process_time(), time.perf_counter()
        run.improve(
            v0, prompts, optimizer=use(method, **settings, **METHODS[method]), reward=letters, reference=v0,
            sampler=use("default", batch_size=4096), max_new_tokens=2, name="v1",
        )  # fmt: skip
        return time.process_time() - began, time.perf_counter() - wall


def cells(methods: list[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    return ((method, shape) for method in methods for shape in SHAPES)


def measure(methods: list[str], rounds: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """ "method rows x samples" -> {"cpu", "wall"}: milliseconds a round, one number for each repetition."""
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        save_model(root / "model")
        for method in methods:
            stage(root / "model", root / f"warm-{method}", method, SHAPES[0], 1)
        for repeat in range(repeats):
            for method, shape in cells(methods):
                name = f"{method} {shape[0]} x {shape[1]}"
                one = stage(root / "model", root / f"{name} {repeat} one", method, shape, 1)
                many = stage(root / "model", root / f"{name} {repeat} many", method, shape, 1 + rounds)
                each = [(b - a) / rounds * 1000 for a, b in zip(one, many, strict=True)]
                entry = found.setdefault(name, {"cpu": [], "wall": []})
                for kind, value in zip(("cpu", "wall"), each, strict=True):
                    entry[kind].append(round(value, 1))
                print(f"{name}: {each[0]:.0f} ms of CPU, {each[1]:.0f} ms", flush=True)
    return found


def machine() -> str:
    """The machine in words: its kind and its cores, and not its name."""
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), one thread, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def table(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Medians of both, side by side, as Markdown."""
    lines = [
        f"Before: {before['machine']}, load {before['load']}. After: {after['machine']}, load {after['load']}.",
        "",
        "| method, rows x samples | CPU ms before | CPU ms after | wall ms before | wall ms after |",
        "|---|---|---|---|---|",
    ]
    for name, new in after["ms"].items():
        old = before["ms"].get(name)
        columns = [shown(side[kind]) if side else "" for kind in ("cpu", "wall") for side in (old, new)]
        lines.append(f"| {name} | {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rounds", type=int, default=20, help="rounds beyond the first")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go")
    parser.add_argument("--table", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help="print two such files")
    options = parser.parse_args()
    if options.table:
        print(table(*(json.loads(path.read_text(encoding="utf-8")) for path in options.table)))
        return
    warnings.filterwarnings("ignore")
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    print(f"alignkit in {Path(alignkit.__file__).parent}", flush=True)
    found = measure(options.methods, options.rounds, options.repeats)
    load = "/".join(f"{value:.0f}" for value in os.getloadavg())
    result = {"machine": machine(), "load": load, "rounds": options.rounds, "ms": found}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table({"machine": "nothing", "load": "none", "ms": {}}, result))


if __name__ == "__main__":
    main()
