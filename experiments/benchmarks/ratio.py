"""The cost of ratios and neighbours: sweeps in one compilation, whole estimates, and memory."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.neural_network import MLPClassifier

from divjax import problems
from divjax.ratio import ClassifierRatio
from divjax.ratio.heads import Network
from divjax.ratio.protocols import Fold, Rows
from experiments.benchmarks.measure import Table, alone, seconds

NUM_FOLDS, NUM_SEEDS = 5, 5


def _network(hidden: tuple[int, ...], num_steps: int, learning_rate: jax.typing.ArrayLike):
    return Network(
        hidden=hidden,
        num_steps=num_steps,
        batch_size=64,
        num_checks=10,
        learning_rate=learning_rate,
    )


def sweep(
    num_settings: int, num_rows: int, num_steps: int, networks: Sequence[tuple[int, ...]]
) -> list[dict]:
    """All settings × seeds × folds of a small network under one jit, against loops of fits.

    The loops are timed on a few fits and multiplied: one compiled fit of one network a call, a
    compiled cross-fit of five networks a call, and scikit-learn's network with the same layers,
    rows, batches and steps.
    """
    rows = []
    p, q = problems.gaussian_shift(2, 0.125).sample(jax.random.key(0), num_rows)
    rates = jnp.logspace(-3.5, -1.5, num_settings)
    keys = jax.random.split(jax.random.key(1), NUM_SEEDS)
    count = num_settings * NUM_SEEDS * NUM_FOLDS
    parts = []
    for part in (slice(num_rows * 4 // 5), slice(num_rows * 4 // 5, num_rows)):
        even = jnp.full(len(p[part]), 1 / len(p[part]), p.dtype)
        parts.append(Rows(p[part], q[part], even, even))
    fold = Fold(*parts)
    for hidden in networks:

        def one_network(rate, key, hidden=hidden):
            head = _network(hidden, num_steps, rate)
            return jnp.mean(head(head.fit(key, fold), p))

        def cross_fit(rate, key, hidden=hidden):
            method = ClassifierRatio(_network(hidden, num_steps, rate), num_folds=NUM_FOLDS)
            return method.fit(key, p, q).kl().value

        single, whole = jax.jit(one_network), jax.jit(cross_fit)
        together = jax.jit(jax.vmap(jax.vmap(cross_fit, (None, 0)), (0, None)))
        ours = seconds(together, rates, keys, repeats=3)
        loop = seconds(lambda s=single: [s(r, keys[0]) for r in rates[:20]], repeats=3) / 20
        folds = seconds(lambda w=whole: [w(r, keys[0]) for r in rates[:20]], repeats=3) / 20
        peer = _scikit_learn(np.asarray(p), np.asarray(q), hidden, num_steps)
        rows.append(
            {
                "network": " × ".join(map(str, hidden)),
                "fits": count,
                "one jit s": ours,
                "loop of fits s": loop * count,
                "ratio": loop * count / ours,
                "loop of cross-fits s": folds * count / NUM_FOLDS,
                "their ratio": folds * count / NUM_FOLDS / ours,
                "scikit-learn s": peer * count,
                "its ratio": peer * count / ours,
            }
        )
    return rows


def _scikit_learn(p: np.ndarray, q: np.ndarray, hidden: tuple[int, ...], num_steps: int) -> float:
    """Seconds of one fit of as many batches of 64 rows."""
    x = np.concatenate([p, q])
    labels = np.repeat([1, 0], [len(p), len(q)])
    options: dict[str, Any] = {"batch_size": 64, "learning_rate_init": 2e-3, "random_state": 0}
    network = MLPClassifier(hidden, **options)
    batches = 0
    start = time.perf_counter()
    while batches < num_steps:
        network.partial_fit(x, labels, classes=[0, 1])
        batches += -(-len(x) // 64)
    return (time.perf_counter() - start) * num_steps / batches


def use_case(num_rows: int, num_seeds: int) -> list[dict]:
    """Use case 1 of arXiv 2405.07822, KL and JS by the default estimator, seed after seed."""
    samples = [
        problems.random_gaussians(seed).sample(jax.random.key(seed), num_rows)
        for seed in range(num_seeds)
    ]

    def estimate():
        fits = [ClassifierRatio().fit(jax.random.key(7), p, q) for p, q in samples]
        return [(fit.kl().value, fit.js().value) for fit in fits]

    found = seconds(estimate, repeats=2)
    return [{"rows a side": num_rows, "seeds": num_seeds, "seconds": found}]


def neighbors(n: int, d: int) -> list[dict]:
    """One estimate of KL by nearest neighbours in a process of its own, and SciPy's trees."""
    draw = f"""
import numpy as np
rng = np.random.default_rng(0)
x, y = (rng.normal(size=({n}, {d})).astype(np.float32) + shift for shift in (0.3, 0))
"""
    ours = alone(
        draw + "import jax; from divjax import fdiv",
        "kl = jax.jit(fdiv.knn_kl, static_argnums=2)(x, y, 5).value.block_until_ready()",
        "kl=float(kl)",
    )
    tree = alone(
        draw + "from scipy.spatial import cKDTree",
        "within, across = cKDTree(x).query(x, 6)[0][:, 5], cKDTree(y).query(x, 5)[0][:, 4]\n"
        f"kl = {d} * np.mean(np.log(across / within)) + np.log({n} / ({n} - 1))",
        "kl=float(kl)",
    )
    return [
        {"n": n, "d": d, "by": name, "KL nats": found["kl"]}
        | {unit: found[unit] for unit in ("seconds", "gigabytes")}
        for name, found in (("divjax", ours), ("SciPy's cKDTree", tree))
    ]


def tables(quick: bool = False) -> Iterator[Table]:
    """All tables: titles, and functions that measure the rows."""
    grid = (2, 100, 20, [(8,)]) if quick else (64, 500, 200, [(8,), (16, 16), (32, 32)])
    yield (
        "Settings by seeds by folds in one jit (bar: 5 times a loop of fits)",
        lambda: sweep(*grid),
    )
    yield (
        "Use case 1 warm (bar: 10 s for five seeds)",
        lambda: use_case(*((200, 1) if quick else (6000, 5))),
    )
    yield (
        "KL by neighbours (bar: 2 GB at n = 50 000)",
        lambda: neighbors(1000 if quick else 50_000, 16),
    )
