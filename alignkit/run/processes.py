"""A run in several processes: started side by side (torchrun), one writes, all agree."""

from __future__ import annotations

import datetime
from typing import Any


def join_processes(world: int) -> None:
    """Join the process group that the launcher set up; nothing to do for one process."""
    if world <= 1:
        return
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))


def agree(value: bool, world: int) -> bool:
    """What the first process says."""
    if world <= 1:
        return value
    import torch.distributed as dist

    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return bool(box[0])


def barrier(world: int) -> None:
    """Wait for all processes."""
    if world > 1:
        import torch.distributed as dist

        dist.barrier()
