"""What a run would cost before anything is spent."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from alignkit.stages.cost import Cost


@dataclass(frozen=True)
class Planned:
    """One line of the plan.

    Args:
        name: the stage.
        verb: its verb.
        cached: whether it is there already.
        cost: its estimate.
        changed: what differs from the newest stage of that name.
    """

    name: str
    verb: str
    cached: bool
    cost: Cost
    changed: Sequence[str] = ()


DTYPES = {"bf16-mixed": "bfloat16", "bf16-true": "bfloat16", "16-true": "float16", "64-true": "float64"}


def type_of(precision: str) -> str:
    """In which type the products of a precision are computed."""
    return DTYPES.get(precision, "float32")


@functools.cache
def measured_flops(precision: str = "32-true", device: str = "", seconds: float = 0.15) -> float:
    """Floating-point operations per second that matrix products reach on this machine, measured once per process.

    The best of some products, so that what else the machine does counts little; no random number is drawn for it.

    Args:
        precision: of the run.
        device: where; default the GPU where there is one.
        seconds: that it may take, one product and the warming up at least.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sizes = (1024, 4096) if device.startswith("cuda") else (128, 384, 768)
    best, began = 0.0, time.perf_counter()
    for size in sizes:  # the larger one reaches more, where it does not take too long: a type may be an emulated one
        if best and 4 * 2.0 * size**3 / best > seconds:
            break
        a = torch.full((size, size), 0.5, device=device, dtype=getattr(torch, type_of(precision)))
        for again in range(2 if size < sizes[-1] else 1000):
            started = time.perf_counter()
            a @ a
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            best = max(best, 2.0 * size**3 / (time.perf_counter() - started))
            if again and time.perf_counter() - began > seconds:
                break
    return best


def table(rows: Sequence[Planned], precision: str) -> str:
    """The plan as text: stages, cached or not, tokens, memory, disk and time."""
    rate = measured_flops() * 0.4  # the share of them that small models reach: 0.3 to 0.6 measured on two CPU cores
    head = (
        f"{'stage':<32} {'verb':<13} {'state':<8} {'sampled':>9} {'trained':>9} {'memory':>8} {'disk':>8} {'time':>7}"
    )
    lines, total, unknown = [head, "-" * len(head)], 0.0, 0
    for row in rows:
        seconds = 0.0 if row.cached else row.cost.flops() / rate
        unseen = not row.cached and row.cost.of_unknown_size
        total, unknown = total + seconds, unknown + unseen
        lines.append(
            f"{row.name:<32} {row.verb:<13} {'cached' if row.cached else 'to do':<8} {row.cost.generated:>9,} "
            f"{row.cost.trained:>9,} {_bytes(row.cost.memory(precision)):>8} "
            f"{_bytes(row.cost.disk):>8} {'?' if unseen else _time(seconds):>7}"
        )
        lines += [f"    changed: {line}" for line in row.changed]
    lines.append(f"{'in all, at most':<32} {'':<13} {'':<8} {'':>9} {'':>9} {'':>8} {'':>8} {_time(total):>7}")
    if unknown:
        lines.append(f"?: {unknown} stages of a model whose size is not known before it is loaded; not in the sum")
    return "\n".join(lines)


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} m" if seconds >= 60 else f"{seconds:.0f} s"
