"""What a stage's work is given: where it writes, its seed, what it may use. Not the run: it could know too much."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.meter import Advance, Meter
from alignkit.registry.host import PluginHost
from alignkit.run_folder import StageRecord

if TYPE_CHECKING:
    import torch

    from alignkit.stages.handles import PolicyHandle


@dataclass(frozen=True)
class Place:
    """The place in which one stage does its work.

    Args:
        folder: to write into; empty at first.
        name: of the stage.
        seed: of the run.
        precision: as Lightning names it.
        max_tokens: cells of one micro-batch.
        trainer: further arguments of `lightning.Trainer`.
        host: the plugins.
        find_device: gives the device on which models run that Lightning does not place.
        meter: counts what the work costs.
        rank: of this process.
        world: processes.
        say: says a line that stays.
        tick: shows progress that is overwritten.
        logs: folder of the run in which loggers that are named by a word write.
        lineage: gives the records of the stages that a key was made from, oldest first.
    """

    folder: Path
    name: str
    seed: int
    precision: str
    max_tokens: int
    trainer: Mapping[str, Any]
    host: PluginHost
    find_device: Callable[[], torch.device]
    meter: Meter = field(default_factory=Meter)
    rank: int = 0
    world: int = 1
    say: Callable[[str], None] = print
    tick: Callable[[Advance], None] = print
    logs: Path | None = None
    lineage: Callable[[str], Sequence[StageRecord]] = lambda key: ()

    @property
    def path(self) -> tuple[int, str]:
        """Path of the stage's random numbers: (run seed, stage name)."""
        return self.seed, self.name

    @cached_property
    def device(self) -> torch.device:
        """Where models run that Lightning does not place."""
        return self.find_device()

    def load(self, policy: PolicyHandle) -> Any:
        """The live policy, frozen, where and as this run computes."""
        with self.meter.phase("load"):
            return policy.load(dtype=self.dtype).to(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights that are loaded."""
        from alignkit.models.loading import dtype_of

        return dtype_of(self.precision)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Under it models compute as the steps of this run's training do: what is sampled, scored and measured outside
        a fit is so too."""
        if self.precision != "bf16-mixed":  # of the true ones, models are loaded in the type
            yield
            return
        import torch

        from alignkit.models.products import casts_kept

        with torch.autocast(self.device.type, dtype=torch.bfloat16), casts_kept():
            yield

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0
