"""The cost of entropic transport beside ott-jax, POT and, where installed, GeomLoss."""

import functools
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from divjax import ot
from experiments.benchmarks.measure import Table, alone, seconds

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
    from ott.geometry import pointcloud
    from ott.solvers import linear
    from ott.tools import sinkhorn_divergence as ott_divergence


@functools.cache
def clouds(n: int, d: int, seed: int = 0) -> tuple[jax.Array, jax.Array, float]:
    """Samples x ~ N(0, I) and y ~ N(½, 1.44 I), and their mean cost ‖x − y‖²."""
    keys = jax.random.split(jax.random.key(seed))
    x, y = jax.random.normal(keys[0], (n, d)), 0.5 + 1.2 * jax.random.normal(keys[1], (n, d))
    return x, y, float(jnp.mean(ot.cost_matrix(ot.SqEuclidean(), x, y)))


def _ott(x: jax.Array, y: jax.Array, epsilon: Any, **settings: Any) -> Any:
    return linear.solve(pointcloud.PointCloud(x, y, epsilon=epsilon), **settings)


def _seconds(function: Callable[..., Any], *args: Any, limit: float = 20.0) -> float:
    """The best of as many calls as fit in a few seconds, after one that compiles."""
    jax.block_until_ready(function(*args))
    start = time.perf_counter()
    jax.block_until_ready(function(*args))
    once = time.perf_counter() - start
    repeats = int(np.clip(limit / 5 / once, 1, 20))
    return min(once, seconds(function, *args, repeats=repeats)) if repeats > 1 else once


def _row(ours: float, peers: Mapping[str, float | None], **settings: Any) -> dict[str, Any]:
    row = settings | {"divjax ms": 1e3 * ours}
    for name, found in peers.items():
        row |= {f"{name} ms": found and 1e3 * found, f"{name} ratio": found and found / ours}
    return row


def _pot(x: jax.Array, y: jax.Array, epsilon: float, num_iterations: int) -> float | None:
    """POT's `sinkhorn` in float32; the cost is built outside of the clock."""
    if not importlib.util.find_spec("ot"):
        return None
    pot = importlib.import_module("ot")
    costs = np.asarray(ot.cost_matrix(ot.SqEuclidean(), x, y))
    uniform = np.full(len(x), 1 / len(x), np.float32)
    settings = {"numItermax": num_iterations, "stopThr": 0.0, "warn": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _seconds(lambda: pot.sinkhorn(uniform, uniform, costs, epsilon, **settings))


def _geomloss(x: jax.Array, y: jax.Array, epsilon: float) -> float | None:
    if not importlib.util.find_spec("geomloss"):
        return None
    torch, geomloss = (importlib.import_module(name) for name in ("torch", "geomloss"))
    # Its cost is ½‖x − y‖², its ε the square of `blur`.
    loss = geomloss.SamplesLoss(blur=float(np.sqrt(epsilon / 2)), backend="tensorized")
    points = [torch.tensor(np.asarray(z)) for z in (x, y)]
    return _seconds(lambda: loss(*points).item())


def fixed(sizes: tuple[int, ...], d: int = 16) -> list[dict]:
    """100 iterations at ε = .05 · mean cost."""
    rows, count = [], 100

    def ours(x, y, epsilon, omega):
        solver = ot.Sinkhorn(tolerance=None, over_relaxation=omega, max_iterations=count)
        return ot.sinkhorn(x, y, epsilon=epsilon, solver=solver).value

    def theirs(x, y, epsilon):
        return _ott(x, y, epsilon, min_iterations=count, max_iterations=count).reg_ot_cost

    adaptive, plain = (jax.jit(functools.partial(ours, omega=omega)) for omega in (None, 1.0))
    theirs = jax.jit(theirs)
    for n in sizes:
        x, y, mean = clouds(n, d)
        epsilon = 0.05 * mean
        peers = {
            "divjax plain": _seconds(plain, x, y, epsilon),
            "ott": _seconds(theirs, x, y, epsilon),
            "POT": _pot(x, y, epsilon, count),
        }
        values = float(adaptive(x, y, epsilon)), float(theirs(x, y, epsilon))
        row = _row(_seconds(adaptive, x, y, epsilon), peers, n=n, d=d)
        rows.append(row | {"relative difference": abs(values[0] - values[1]) / values[1]})
    return rows


def to_tolerance(cases: list[tuple[int, int, float]], share: float = 0.01) -> list[dict]:
    """To an L1 error of the marginals at ε = .01 · mean cost."""
    rows, most = [], 20_000

    @jax.jit
    def ours(x, y, epsilon, tolerance):
        solver = ot.Sinkhorn(tolerance, max_iterations=most)
        return ot.sinkhorn(x, y, epsilon=epsilon, solver=solver)

    @jax.jit
    def theirs(x, y, epsilon, tolerance):
        return _ott(x, y, epsilon, threshold=tolerance, max_iterations=most)

    for n, d, tolerance in cases:
        x, y, mean = clouds(n, d)
        epsilon = share * mean
        args = x, y, epsilon, tolerance
        one, two = ours(*args), theirs(*args)
        settings = {
            "n": n,
            "d": d,
            "tolerance": tolerance,
            "divjax iterations": int(one.num_iterations),
            "ott iterations": int(two.n_iters),
            "both converged": bool(one.converged & two.converged),
        }
        rows.append(_row(_seconds(ours, *args), {"ott": _seconds(theirs, *args)}, **settings))
    return rows


def gradients(sizes: tuple[int, ...], d: int = 16) -> list[dict]:
    """Value and gradient in both samples, to 1e-3 at ε = .05 · mean cost."""
    rows = []
    for n in sizes:
        x, y, mean = clouds(n, d)
        ours = lambda x, y, e: ot.sinkhorn(x, y, epsilon=e).value
        theirs = lambda x, y, e: _ott(x, y, e, threshold=1e-3).reg_ot_cost
        both = [jax.jit(jax.value_and_grad(f, argnums=(0, 1))) for f in (ours, theirs)]
        found = [_seconds(f, x, y, 0.05 * mean) for f in both]
        (_, one), (_, two) = (f(x, y, 0.05 * mean) for f in both)
        gap = jnp.max(jnp.abs(one[0] - two[0])) / jnp.max(jnp.abs(two[0]))
        row = _row(found[0], {"ott": found[1]}, n=n, d=d)
        rows.append(row | {"relative difference": float(gap)})
    return rows


def many_small(count: int, n: int = 128, d: int = 16) -> list[dict]:
    """Many problems at once: 100 iterations each, and to 1e-3; the fastest way of each library."""
    x, y = (jnp.stack(z) for z in zip(*(clouds(n, d, s)[:2] for s in range(count)), strict=True))
    epsilon = 0.05 * clouds(n, d)[2]
    rows: list[dict] = []
    cases: tuple[tuple[str, ot.Sinkhorn, dict[str, Any]], ...] = (
        (
            "100 iterations",
            ot.Sinkhorn(tolerance=None, max_iterations=100),
            {"min_iterations": 100, "max_iterations": 100},
        ),
        ("to 1e-3", ot.Sinkhorn(tolerance=1e-3), {"threshold": 1e-3}),
    )
    for name, ours, theirs in cases:
        one = lambda x, y, s=ours: ot.sinkhorn(x, y, epsilon=epsilon, solver=s).value
        two = lambda x, y, s=theirs: _ott(x, y, epsilon, **s).reg_ot_cost
        mapped = jax.jit(lambda x, y, f=one: jax.lax.map(lambda pair: f(*pair), (x, y)))
        peers = {
            "divjax vmap": _seconds(jax.jit(jax.vmap(one)), x, y),
            "ott vmap": _seconds(jax.jit(jax.vmap(two)), x, y),
            "ott map": _seconds(
                jax.jit(lambda x, y, f=two: jax.lax.map(lambda pair: f(*pair), (x, y))), x, y
            ),
        }
        rows.append(_row(_seconds(mapped, x, y), peers, problems=count, n=n, until=name))
    return rows


def divergences(cases: list[tuple[int, float]], d: int = 16) -> list[dict]:
    """The Sinkhorn divergence, to 1e-3."""
    rows = []
    for n, share in cases:
        x, y, mean = clouds(n, d)
        ours = jax.jit(lambda x, y, e: ot.sinkhorn_divergence(x, y, epsilon=e).value)
        theirs = jax.jit(
            lambda x, y, e: ott_divergence.sinkhorn_divergence(
                pointcloud.PointCloud, x, y, epsilon=e, solve_kwargs={"threshold": 1e-3}
            )[0]
        )
        args = x, y, share * mean
        peers = {"ott": _seconds(theirs, *args), "GeomLoss": _geomloss(x, y, share * mean)}
        gap = abs(float(ours(*args)) - float(theirs(*args))) / float(theirs(*args))
        row = _row(_seconds(ours, *args), peers, n=n, share=share)
        rows.append(row | {"relative difference": gap})
    return rows


def memory(n: int, d: int, num_iterations: int) -> list[dict]:
    """Value and gradient by blocks, in a process of its own."""
    found = alone(
        "import jax, jax.numpy as jnp; from divjax import ot\n"
        f"x = jax.random.normal(jax.random.key(0), ({n}, {d})); y = 0.5 + 1.2 * x[::-1]\n"
        f"solver = ot.Sinkhorn(tolerance=None, max_iterations={num_iterations})\n"
        f"f = lambda x, y: ot.sinkhorn(x, y, epsilon={1.2 * d / 8}, solver=solver).value",
        "value, _ = jax.block_until_ready(jax.jit(jax.value_and_grad(f, (0, 1)))(x, y))",
        "value=float(value)",
    )
    return [{"n": n, "d": d, "iterations": num_iterations} | found]


def tables(quick: bool = False) -> Iterator[Table]:
    """All tables: titles, and functions that measure the rows."""
    yield (
        "Sinkhorn with 100 iterations (bar: 5 times ott)",
        lambda: fixed((32,) if quick else (256, 1024, 4096)),
    )
    loose = [(n, d, 1e-3) for n in (256, 1024) for d in (2, 16, 64)]
    tight = [(256, 2, 1e-5), (256, 16, 1e-5), (512, 2, 1e-5), (512, 16, 1e-5)]
    yield (
        "Sinkhorn to tolerance (bars: 5 times ott at 1e-3 and 10 times at 1e-5)",
        lambda: to_tolerance([(32, 2, 1e-3)] if quick else loose + tight),
    )
    yield (
        "Sinkhorn with gradient (bar: 4 times ott)",
        lambda: gradients((32,) if quick else (256, 1024)),
    )
    yield (
        "Many Sinkhorn problems (bar: 4 times ott)",
        lambda: many_small(*((4, 16) if quick else (64,))),
    )
    yield (
        "Sinkhorn divergence (bar: 4 times ott)",
        lambda: divergences([(32, 0.05)] if quick else [(256, 0.05), (1024, 0.05), (1024, 0.01)]),
    )
    yield (
        "Sinkhorn by blocks (bar: 3 GB at n = 50 000)",
        lambda: memory(*((500, 16, 2) if quick else (50_000, 16, 3))),
    )
