"""Work done one item after another, or several at once in processes of their own: the same bytes either way."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

Watch = Callable[[T, str, Any], None]
"""Told of an item, of "begins" or "ended", and then of its result."""


def run_all(
    work: Callable[[T], R],
    items: Sequence[T],
    processes: int,
    watch: Watch[T],
    threads: int,
    lost: Callable[[T, str], R],
) -> list[R]:
    """Do the work of every item.

    Args:
        work: a function of a module, which other processes can import.
        items: in the order in which they are begun.
        processes: at once.
        watch: told of each.
        threads: of the work of one item: the same however many are at work, since sums depend on it.
        lost: gives the result of an item whose process was killed.

    Returns:
        The results, in the order of the items.
    """
    if processes <= 1 or len(items) <= 1:
        return list(_one_by_one(work, items, watch, threads))
    found: dict[int, R] = {}
    with _pool(processes, threads) as pool:
        waiting = {pool.submit(work, item): place for place, item in enumerate(items)}
        for item in items[:processes]:
            watch(item, "begins", None)
        try:
            _collect(waiting, items, processes, watch, found)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for place, item in enumerate(items):
        if place not in found:  # a process was killed, and took what was at work and what waited with it
            watch(item, "begins", None)
            found[place] = _alone(work, item, threads, lost)
            watch(item, "ended", found[place])
    return [found[place] for place in range(len(items))]


def _collect(
    waiting: dict[Future[R], int], items: Sequence[T], processes: int, watch: Watch[T], found: dict[int, R]
) -> None:
    """What ends, as it ends, until all have or a process was killed."""
    for number, done in enumerate(as_completed(waiting), start=processes):
        place = waiting[done]
        try:
            found[place] = done.result()
        except BrokenProcessPool:
            return
        watch(items[place], "ended", found[place])
        if number < len(items):
            watch(items[number], "begins", None)


def _alone(work: Callable[[T], R], item: T, threads: int, lost: Callable[[T, str], R]) -> R:
    """In a process for itself, so that it is known whose was killed."""
    with _pool(1, threads) as pool:
        try:
            return pool.submit(work, item).result()
        except BrokenProcessPool:
            return lost(item, "its process was killed (by the system when memory runs out)")


def _one_by_one(work: Callable[[T], R], items: Sequence[T], watch: Watch[T], threads: int) -> Iterator[R]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for item in items:
            watch(item, "begins", None)
            result = work(item)
            watch(item, "ended", result)
            yield result
    finally:
        torch.set_num_threads(before)


def _pool(processes: int, threads: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, initializer=_prepare, initargs=(threads, os.getpid()))


def _prepare(threads: int, parent: int) -> None:
    """In a process of its own, before its first item: it ends when the one that started it is gone."""
    import torch

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    torch.set_num_threads(threads)
