"""The cost of a flow's step: against the number of objectives, against blackjax, and at scale.

Each table is measured in one run on one machine; the ratios travel, the milliseconds do not. Times
are the best of several repetitions of a compiled scan, divided by its steps.
"""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import optax

from divjax import flows, kernels, problems
from divjax.core import pairwise
from experiments.benchmarks.measure import Table, alone, seconds

try:
    import blackjax
except ImportError:  # a peer that is not installed is skipped by name
    blackjax = None

TARGETS = problems.two_component_targets()
FIXED, MEDIAN = kernels.Gaussian(bandwidth=1.0), kernels.Gaussian(bandwidth=kernels.Median())
LEARNING_RATE = 0.03


def cloud(n: int, d: int = 2) -> jax.Array:
    """The particles every measurement starts from."""
    return 3 * jax.random.normal(jax.random.key(0), (n, d))


def our_run(
    kernel: kernels.Gaussian, num_objectives: int, num_steps: int, velocity: Any = flows.SVGD
):
    """A run of `num_steps` of ours on the first few targets, recording once."""
    flow = flows.Flow(
        tuple(flows.KL(target.log_prob) for target in TARGETS[:num_objectives]),
        velocity=velocity(kernel),
        optimizer=optax.adam(LEARNING_RATE),
    )

    def final(x: jax.Array) -> jax.Array:
        run = flow.run(jax.random.key(0), x, num_steps=num_steps, record_every=num_steps)
        return run.particles

    return final


def blackjax_run(num_steps: int):
    """The same run by blackjax: one target, its kernel, its median rule, scanned and compiled."""
    assert blackjax is not None
    svgd = blackjax.vi.svgd
    log_prob_gradient = jax.grad(TARGETS[0].log_prob)
    optimizer = optax.adam(LEARNING_RATE)
    move = svgd.build_kernel(optimizer)

    def step(state, _):
        state = move(state, log_prob_gradient, svgd.rbf_kernel)
        return svgd.update_median_heuristic(state), None

    def final(x: jax.Array) -> Any:
        state = svgd.init(x, {"length_scale": jnp.asarray(2.0)}, optimizer)
        # The whole state: were just the particles wanted, the last median would never be computed.
        return jax.lax.scan(step, state, length=num_steps)[0]

    return final


def step_costs(sizes: tuple[int, ...], budget: float) -> list[dict]:
    """Milliseconds a step for four targets in the plane, by rule, method and particles."""
    rows = []
    for n in sizes:
        row: dict = {"n": n}
        for name, kernel in (("fixed", FIXED), ("median", MEDIAN)):
            for velocity in (flows.SVGD, flows.Blob):
                steps = max(10, int(budget * 2e8 / (n * n + 1e5)))
                elapsed = seconds(our_run(kernel, 4, steps, velocity), cloud(n), repeats=5)
                row[f"{velocity.__name__} {name} ms"] = 1e3 * elapsed / steps
        rows.append(row)
    return rows


def objective_costs(n: int, budget: float) -> list[dict]:
    """A step with K = 4 objectives against one with K = 1."""
    steps = max(20, int(budget * 2e8 / (n * n)))
    rows = []
    for name, kernel in (("fixed", FIXED), ("median", MEDIAN)):
        one, four = (
            1e3 * seconds(our_run(kernel, k, steps), cloud(n), repeats=9) / steps for k in (1, 4)
        )
        rows.append({"n": n, "bandwidth": name, "K=1 ms": one, "K=4 ms": four, "ratio": four / one})
    return rows


def against_blackjax(sizes: tuple[int, ...], budget: float) -> list[dict]:
    """An SVGD step on one target with the median rule, ours against blackjax's."""
    if blackjax is None:
        return [{"skipped": "blackjax is not installed"}]
    rows = []
    for n in sizes:
        ours_steps = max(10, int(budget * 2e8 / (n * n + 1e5)))
        peer_steps = max(1, ours_steps // 40) if n > 100 else ours_steps
        ours = seconds(our_run(MEDIAN, 1, ours_steps), cloud(n), repeats=5) / ours_steps
        peer = (
            seconds(jax.jit(blackjax_run(peer_steps)), cloud(n), repeats=3 if n <= 1000 else 2)
            / peer_steps
        )
        rows.append(
            {"n": n, "ours ms": 1e3 * ours, "blackjax ms": 1e3 * peer, "ratio": peer / ours}
        )
    return rows


def at_scale(n: int, d: int) -> list[dict]:
    """One step in a process of its own: time with compilation, and peak memory."""
    rows = []
    for name in ("Gaussian(bandwidth=1.0)", "Gaussian(bandwidth=kernels.Median())"):
        setup = f"""
import jax, jax.numpy as jnp, optax
from divjax import flows, kernels
x = jax.random.normal(jax.random.key(0), ({n}, {d}))
target = flows.KL(lambda z: -0.5 * jnp.sum((z - 1) ** 2))
flow = flows.Flow((target,), velocity=flows.SVGD(kernels.{name}), optimizer=optax.sgd(0.1))
step = lambda x: flow.run(jax.random.key(0), x, num_steps=1)
"""
        found = alone(
            setup, "result = jax.block_until_ready(step(x))", "finite=bool(result.finite)"
        )
        rows.append({"n": n, "d": d, "kernel": name, **found})
    return rows


def dense_against_blocks(n: int, d: int) -> list[dict]:
    """Largest relative difference between a dense step and one by small blocks."""
    x, rows = cloud(n, d), []
    name_of_budget = "BLOCK_ENTRIES_" + ("CPU" if jax.default_backend() == "cpu" else "ACCELERATOR")
    for name, kernel in (("fixed", FIXED), ("median", MEDIAN)):
        ends = []
        for entries in (n * n, n * n // 16):
            with mock.patch.object(pairwise, name_of_budget, entries):
                ends.append(our_run(kernel, 4, 5)(x))
        difference = jnp.max(jnp.abs(ends[0] - ends[1])) / jnp.max(jnp.abs(ends[0]))
        rows.append({"n": n, "d": d, "bandwidth": name, "difference": float(difference)})
    return rows


def tables(quick: bool = False) -> Iterator[Table]:
    """All tables: titles, and functions that measure the rows."""
    budget, sizes = (0.1, (50, 300)) if quick else (2.0, (50, 1000, 4000))
    yield "Four targets in the plane, milliseconds a step", lambda: step_costs(sizes, budget)
    yield (
        "Four objectives against one (bar: at most 1.3)",
        lambda: objective_costs(300 if quick else 1000, budget),
    )
    yield (
        "SVGD with the median rule against blackjax (bar: 4 at n = 50, 20 beyond)",
        lambda: against_blackjax(sizes, budget),
    )
    yield (
        "Dense against blocks (the same result)",
        lambda: dense_against_blocks(300 if quick else 2000, 2),
    )
    yield (
        "One step by blocks (bar: 4 GB at n = 100 000)",
        lambda: at_scale(3_000 if quick else 100_000, 10),
    )
