"""How long a command takes to answer: seconds until its first line is there and until it ends, wall and CPU.

    python benchmarks/start_up.py

Medians of five with the least and the greatest, in turn, so that a busy moment does not fall on one command alone; each
in a process of its own, one thread, after one time that does not count. The goals: the help of a recipe in 0.5 s, the
first line of a run within 1 s.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

COMMANDS = (
    "--help",
    "plugins",
    "runs",
    "run llama2 --help",
    "run method --help",
    "run rlaif --help",
    "run llama2 --policy tiny --plan",
    "plugins --components",
)


def measured(command: str, folder: str) -> tuple[float, float, float]:
    """(seconds to the first line, seconds to the end, CPU seconds)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    arguments = [sys.executable, "-m", "alignkit.cli", *command.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=folder, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first = time.perf_counter() - started
        process.stdout.read()
    if process.returncode:
        raise SystemExit(f"alignkit {command} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return first, time.perf_counter() - started, cpu


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="how often each is measured (default: 5)")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {command: [] for command in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(options.repeats + 1):
            for command in COMMANDS:
                numbers = measured(command, folder)
                found[command] += [numbers] if index else []
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}, load {os.getloadavg()[0]:.1f}\n")
    print("| `alignkit …` | first line, s | end, s | CPU, s |\n|---|---|---|---|")
    for command, rows in found.items():
        first, end, cpu = (shown([row[k] for row in rows]) for k in range(3))
        print(f"| `{command}` | {first} | {end} | {cpu} |")


if __name__ == "__main__":
    main()
