"""A run in several processes: started side by side (torchrun), one writes, all agree."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.errors import ConfigError


def here() -> tuple[int, int]:
    """(rank of this process, number of processes), as the launcher says."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def refuse_alone(trainer: Mapping[str, Any], world: int) -> None:
    """Refuse processes that a launcher started side by side and that would each train on everything.

    Args:
        trainer: arguments of `lightning.Trainer`.
        world: processes.

    Raises:
        ConfigError: naming the arguments that deal the work out.
    """
    if world <= 1:
        return
    devices, nodes = trainer.get("devices", 1), int(trainer.get("num_nodes", 1))
    counted = len(devices) if isinstance(devices, (list, tuple)) else int(devices) if _is_count(devices) else None
    if counted is not None and counted * nodes == world:
        return
    if counted is None and trainer.get("strategy", "auto") != "auto":  # "auto", -1: Lightning asks the machine
        return
    raise ConfigError(
        f"{world} processes were started, and trainer= names {devices} device{'s' if counted != 1 else ''}",
        where="Run",
        effect="Each process would train on everything, by itself.",
        remedy=f'pass trainer={{"strategy": "ddp", "devices": {max(world // nodes, 1)}}}, or start one process',
    )


def _is_count(devices: Any) -> bool:
    return (isinstance(devices, int) and devices > 0) or (isinstance(devices, str) and devices.isdigit())


def join_processes(world: int) -> None:
    """Join the process group that the launcher set up; nothing to do for one process."""
    if world <= 1:
        return
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        # Long, since the others wait while the first one does what only one need do.
        dist.init_process_group(backend, timeout=datetime.timedelta(days=1))


def first(value: Any, world: int) -> Any:
    """What the first process says."""
    return value if world <= 1 else broadcast(value)


def barrier(world: int) -> None:
    """Wait for all processes."""
    if world > 1:
        import torch.distributed as dist

        dist.barrier()


def broadcast(value: Any) -> Any:
    """What the first process holds, on all of them."""
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_dealt(mine: Sequence[Any], world: int) -> list[Any]:
    """The rows of all processes, in the order they had before they were dealt out one by one."""
    parts = _gathered(list(mine))
    total = sum(len(part) for part in parts)
    return [parts[i % world][i // world] for i in range(total)]


def summed(mine: Sequence[int]) -> list[int]:
    """The sums over all processes, number by number; exact however large."""
    return [sum(column) for column in zip(*_gathered(list(mine)), strict=True)]


def highest(mine: Mapping[str, int], world: int) -> dict[str, int]:
    """The highest over all processes, name by name."""
    if world <= 1:
        return dict(mine)
    parts = _gathered(dict(mine))
    return {name: max(part[name] for part in parts if name in part) for part in parts for name in part}


def _gathered(mine: Any) -> list[Any]:
    import torch.distributed as dist

    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return parts
