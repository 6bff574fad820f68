"""A run in several processes: started side by side (torchrun), one writes, all agree."""

from __future__ import annotations

import atexit
import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
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


def refuse_sharded(trainer: Mapping[str, Any], world: int) -> None:
    """Refuse a strategy under which no process holds the whole model.

    Args:
        trainer: arguments of `lightning.Trainer`.
        world: processes.

    Raises:
        ConfigError: naming the one that works.
    """
    strategy = trainer.get("strategy", "auto")
    if world <= 1 or strategy == "auto":
        return
    whole = [strategy] if isinstance(strategy, str) else [each.__name__.lower() for each in type(strategy).__mro__]
    if not any(name.startswith("ddp") for name in whole):
        raise ConfigError(
            f"strategy {strategy if isinstance(strategy, str) else type(strategy).__name__}",
            where="Run",
            effect="Each process samples and scores with the whole model, and sums the gradients of all of it.",
            remedy='use "ddp"; what a model needs of memory goes down with LoRA and max_tokens',
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
        atexit.register(_leave)


def _leave() -> None:
    """End the process group before the interpreter does: its threads, left to themselves, may abort the process."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


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


BUCKET = 25_000_000
"""Numbers that are summed by one exchange."""


def sum_gradients(parameters: Sequence[Any]) -> None:
    """Sum gradients over all processes, in place; what one process has a gradient for, each has one for afterwards.

    Args:
        parameters: what is learned, the same on all processes and in the same order.
    """
    import torch
    import torch.distributed as dist

    there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(there, op=dist.ReduceOp.MAX)
    learned = [parameter for parameter, some in zip(parameters, there.tolist(), strict=True) if some]
    for parameter in learned:
        if parameter.grad is None:  # an expert, say, that no token of this process went to
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in learned]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Sequence[Any]) -> Iterator[list[Any]]:
    """The tensors in order, as many of one type together as `BUCKET` holds, and at least one."""
    bucket: list[Any] = []
    for tensor in tensors:
        size = sum(each.numel() for each in bucket)
        if bucket and (tensor.dtype != bucket[0].dtype or size + tensor.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


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
