"""Measuring one call: its seconds once compiled, and its memory in a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["Table", "alone", "seconds"]

# A title, and a function that measures the rows.
Table = tuple[str, Callable[[], list[dict[str, Any]]]]

# The kernel's own high-water mark: `getrusage` would count the parent's memory too. Linux alone.
_ALONE = """
import json, pathlib, re, time
{setup}
start = time.perf_counter()
{call}
elapsed = time.perf_counter() - start
peak = re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())
print(json.dumps(dict(seconds=elapsed, gigabytes=int(peak[1]) / 2**20, {report})))
"""


def seconds(function: Callable[..., Any], *args: Any, repeats: int) -> float:
    """The best time of several calls after a first one, which compiles."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def alone(setup: str, call: str, report: str) -> dict[str, Any]:
    """Time of a call, compilation included, and peak memory of a process that does nothing else.

    Args:
        setup: statements before the clock starts.
        call: statements that are timed.
        report: keyword arguments, `name=expression, …`, to be returned besides.
    """
    script = _ALONE.format(setup=setup, call=call, report=report)
    process = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    return json.loads(process.stdout)
