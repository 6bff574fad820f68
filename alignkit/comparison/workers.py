"""Cells made one after another, or several at once in processes of their own: the same bytes either way."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from alignkit.comparison.cell import Cell, run_cell

Watch = Callable[[Cell, str, Any], None]
"""Told of a cell, of "begins" or "ended", and then of its record."""


def run_cells(cells: Sequence[Cell], processes: int, watch: Watch, threads: int = 1) -> dict[Cell, dict[str, Any]]:
    """Make every cell that is not there.

    Args:
        cells: in the order in which they are begun.
        processes: at once.
        watch: told of each.
        threads: of one cell: the same however many are at work, since sums depend on it.

    Returns:
        What each cell wrote down.
    """
    if processes <= 1 or len(cells) <= 1:
        return dict(_one_by_one(cells, watch, threads))
    found = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_prepare, initargs=(threads,)) as pool:
        waiting = {pool.submit(run_cell, cell): cell for cell in cells}
        for cell in cells[:processes]:
            watch(cell, "begins", None)
        try:
            for number, done in enumerate(as_completed(waiting), start=processes):
                found[waiting[done]] = done.result()
                watch(waiting[done], "ended", found[waiting[done]])
                if number < len(cells):
                    watch(cells[number], "begins", None)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def _one_by_one(cells: Sequence[Cell], watch: Watch, threads: int) -> Iterator[tuple[Cell, dict[str, Any]]]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for cell in cells:
            watch(cell, "begins", None)
            record = run_cell(cell)
            watch(cell, "ended", record)
            yield cell, record
    finally:
        torch.set_num_threads(before)


def _prepare(threads: int) -> None:
    """In a process of its own, before its first cell."""
    import torch

    torch.set_num_threads(threads)
