"""What work cost: counts, floating-point operations, seconds and memory, added up where the work is done."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError, did_you_mean

COUNTS = {
    "generated_tokens": "tokens that samplers wrote, end tokens included, held-out sampling too",
    "trained_tokens": "learned tokens of the optimizer steps that were taken, those of streams included",
    "scored_tokens": "tokens that went through a model without a gradient, their prompts included",
    "reward_calls": "responses that a reward was asked for; a combination counts once",
    "judge_calls": "groups that an annotator was asked to rank",
    "optimizer_steps": "optimizer steps that were taken",
}
"""What is counted, by name."""

FLOPS = {
    "forward": "operations of forward passes: sampling, scoring, reference and training",
    "backward": "operations of backward passes",
}
"""Floating-point operations by direction; `alignkit.models.arithmetic` says how they are worked out."""

PHASES = {
    "load": "reading models from disk",
    "generate": "sampling responses",
    "score": "rewards and annotators, with the models that they load",
    "reference": "log-probs of the reference",
    "prepare": "encoding, log-probs and values before the steps, the method's `prepare`",
    "train": "optimizer steps",
    "evaluate": "metrics, intervals and tables of what was measured",
    "write": "writing what was made",
    "other": "what is left",
}
"""Where the seconds of a stage go, by name. A phase within another has its seconds to itself."""


TOKENS = {"generate": "generated_tokens", "train": "trained_tokens"}
"""The tokens of a phase, where they are not those that a model read without a gradient."""


@dataclass(frozen=True)
class Advance:
    """How far a piece of work is: a bar on a terminal, a line of text elsewhere.

    Args:
        what: is being done, as the line begins.
        done: of it.
        total: of it.
        unit: in which both are counted; "" where `what` says it.
        rate: how fast it goes, in words, or "".
        left: seconds that it still takes at this pace; None where that is not known yet.
    """

    what: str
    done: int
    total: int
    unit: str = ""
    rate: str = ""
    left: float | None = None

    def __str__(self) -> str:
        head = f"{self.what} {self.done}/{self.total}" + (f" {self.unit}" if self.unit else "")
        left = "" if self.left is None else f"{self.left:.0f} s left"
        return ", ".join(part for part in (head, self.rate, left) if part)


@dataclass
class Meter:
    """Counts, operations and seconds by name, as plain numbers.

    With several processes, counts and operations are those of one process that did all of it: what is dealt out is
    added up, and what each does again counts once. Seconds are the first process's.

    Args:
        counts: so far, of the names of `COUNTS`.
        flops: so far, of the names of `FLOPS`.
        seconds: of wall time so far, of the names of `PHASES`.
        work: by phase, what was counted in it, and its operations under "flops".
        pulse: called whenever something is counted or a phase begins, so that what shows the work can follow it.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    flops: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FLOPS, 0))
    seconds: dict[str, float] = field(default_factory=dict)
    work: dict[str, dict[str, int]] = field(default_factory=dict)
    pulse: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)
    _within: list[str] = field(default_factory=list, repr=False)
    _since: float = field(default=0.0, repr=False)

    def add(self, name: str, amount: int) -> None:
        """Count.

        Raises:
            ConfigError: a name that is not counted: it would be missing from every table.
        """
        if name not in self.counts:
            raise ConfigError(f"{name!r} is not counted{did_you_mean(name, COUNTS)}", where="Meter")
        self.counts[name] += int(amount)
        self._work(name, int(amount))

    def compute(self, forward: int, backward: int = 0) -> None:
        """Add floating-point operations."""
        self.flops["forward"] += int(forward)
        self.flops["backward"] += int(backward)
        self._work("flops", int(forward) + int(backward))

    def _work(self, name: str, amount: int) -> None:
        """Keep by phase what was counted, and let it be shown."""
        if amount:
            here = self.work.setdefault(self.now or "other", {})
            here[name] = here.get(name, 0) + amount
        self.pulse()

    @property
    def now(self) -> str:
        """The phase that is at work, or ""."""
        return self._within[-1] if self._within else ""

    @property
    def within(self) -> tuple[str, ...]:
        """The phases that are open, the outer ones first."""
        return tuple(self._within)

    def spent(self, name: str) -> int:
        """How much of a name of `COUNTS`, or of "flops" in both directions, so far."""
        return sum(self.flops.values()) if name == "flops" else self.counts[name]

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds that the block takes.

        Raises:
            ConfigError: not a name of `PHASES`.
        """
        if name not in PHASES:
            raise ConfigError(f"{name!r} is no phase{did_you_mean(name, PHASES)}", where="Meter")
        self._charge()
        self._within.append(name)
        self.pulse()
        try:
            yield
        finally:
            self._charge()
            self._within.pop()

    def _charge(self) -> None:
        """Give the seconds since the last change of phase to the one that they were spent in."""
        now = time.monotonic()
        if self._within:
            self.seconds[self._within[-1]] = self.seconds.get(self._within[-1], 0.0) + now - self._since
        self._since = now

    def to_json(self, seconds: float | None = None, peak_memory: Mapping[str, int] | None = None) -> dict[str, Any]:
        """{"counts": …, "flops": …, "seconds": …, "work": …, "peak_memory": …}, as a stage's record holds it.

        Args:
            seconds: of the stage in all; what no phase took of them is "other".
            peak_memory: see `PeakMemory`.
        """
        spent = dict(self.seconds)
        if seconds is not None:
            spent["other"] = spent.get("other", 0.0) + max(seconds - sum(spent.values()), 0.0)
        return {
            "counts": dict(self.counts),
            "flops": dict(self.flops),
            "seconds": {name: round(spent[name], 3) for name in PHASES if name in spent},
            "work": {name: dict(self.work[name]) for name in PHASES if name in self.work},
            "peak_memory": dict(peak_memory or {}),
        }


def short(amount: float) -> str:
    """A count in three figures: "12", "1.25 M"."""
    units = ("", " k", " M", " G", " T", " P")
    place = next((k for k in range(len(units)) if abs(amount) < 999.5 * 1000**k), len(units) - 1)
    return f"{amount / 1000**place:.3g}{units[place]}" if place else f"{amount:.0f}"


class PeakMemory:
    """The most memory held since this object was made, by "cpu" and, where a GPU is at work, "cuda", in bytes.

    "cpu" is the resident memory of the process. Linux keeps its high-water mark and lets it be set back; elsewhere the
    mark is that of the process's whole life. "cuda" is what PyTorch had allocated on this process's device; its peak
    statistics are set back too.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        if (cuda := _cuda()) is not None:
            cuda.reset_peak_memory_stats()

    def read(self) -> dict[str, int]:
        """Bytes by name; what the system does not tell is left out."""
        found = {"cpu": _resident_peak()}
        if (cuda := _cuda()) is not None:
            found["cuda"] = int(cuda.max_memory_allocated())
        return {name: value for name, value in found.items() if value is not None}


def _cuda() -> Any:
    """`torch.cuda` where it is in use already: asking must not be what starts it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _resident_peak() -> int | None:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    with contextlib.suppress(ImportError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
    return None
