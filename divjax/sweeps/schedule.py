"""When which cells run: chunks of a program, several at a time, in the threads of this process."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeAlias

import jax
import numpy as np

from divjax.sweeps.compilation import Program

__all__ = ["Chunk", "missing_cells", "run_cells"]

# The first of the cells and the results of each leaf, stacked.
Chunk: TypeAlias = tuple[int, list[np.ndarray]]

# Seconds between two reports. A report costs milliseconds, a chunk that is lost so many seconds.
_SECONDS = 1.0


def missing_cells(num_cells: int, done: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The gaps (start, stop) among cells that are done, as intervals of their numbers.

    Example:
        >>> missing_cells(10, [(2, 4), (6, 10)])
        [(0, 2), (4, 6)]
    """
    # Intervals may overlap, where two processes have worked in one folder.
    gaps, reached = [], 0
    for start, stop in sorted([*done, (num_cells, num_cells)]):
        if start > reached:
            gaps.append((reached, start))
        reached = max(reached, stop)
    return gaps


def run_cells(
    program: Program, gaps: Sequence[tuple[int, int]], batch_size: int | None
) -> Iterator[Chunk]:
    """Run the cells of all gaps, and give their results in chunks as they end, in any order.

    Args:
        program: of these cells.
        gaps: intervals (start, stop) of cells.
        batch_size: the cells of a chunk, or None for those of about a second.
    """
    # A program of one cell after another leaves the other processors idle. A batched one keeps its
    # device busy by itself: a second call waits there while the first one's results are fetched.
    workers = _num_processors() if program.any_count else 2
    # Several processes must run the same chunks in the same order.
    workers = workers if jax.process_count() == 1 else 1
    largest = min(program.capacity, batch_size or program.capacity)
    waiting, remaining = list(gaps), sum(stop - start for start, stop in gaps)
    # How long cells take is known once one has run.
    count = largest if batch_size or not program.any_count else 1

    def timed(start: int, count: int) -> tuple[Chunk, int, float]:
        # Timed in its thread: waiting for the others is no part of it.
        begun = time.perf_counter()
        outputs = program.run(start, count)
        return (start, outputs), count, time.perf_counter() - begun

    running: set[Future[tuple[Chunk, int, float]]] = set()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while waiting or running:
                # Every worker has a chunk, of as many cells as take about a second.
                while waiting and len(running) < workers:
                    start, stop = waiting.pop(0)
                    # A chunk never spans two gaps, so that its cells have consecutive numbers.
                    size = min(count, stop - start)
                    if start + size < stop:
                        waiting.insert(0, (start + size, stop))
                    remaining -= size
                    running.add(pool.submit(timed, start, size))
                # Chunks end in any order; each is passed on at once, to be written.
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    chunk, size, seconds = future.result()
                    if batch_size is None and program.any_count:
                        # As many cells as take a second, by the last chunk. Near the end half of an
                        # even share, so that all processors stop together.
                        fitting = int(_SECONDS * size / max(seconds, 1e-6))
                        count = max(1, min(largest, fitting, -(-remaining // (2 * workers))))
                    yield chunk
        finally:
            # An interrupted sweep waits for the chunks that run, and starts no others.
            pool.shutdown(wait=True, cancel_futures=True)


def _num_processors() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
