"""Kernel discrepancies, dependence and information beside hyppo, dcor, ennemi and others.

A peer that is not installed leaves a gap.
"""

import functools
import importlib
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.spatial
import scipy.stats
from sklearn.feature_selection import mutual_info_regression
from sklearn.neighbors import NearestNeighbors

from divjax import discrepancy, information, kernels
from divjax.fdiv.neighbor_search import nearest_points
from experiments.benchmarks.measure import Table, alone, seconds


def _installed(name: str) -> Any:
    """A module of a peer, or None."""
    if importlib.util.find_spec(name.split(".")[0]) is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _in_python(function: Callable[[], Any], repeats: int = 3) -> float:
    """The best time of a function of another package; the first call may compile."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def _row(what: str, ours: float, peer: str, theirs: float | None, **settings: Any) -> dict:
    ratio = theirs and theirs / ours
    return {"what": what, **settings, "divjax ms": 1e3 * ours, "peer": peer} | {
        "peer ms": theirs and 1e3 * theirs,
        "ratio": ratio,
    }


def pair_measures(n: int) -> list[dict]:
    """Measures of all pairs, beside computing as many kernel matrices and nothing else."""
    x, y = jax.random.normal(jax.random.key(0), (2, n, 16))
    kernel = kernels.Gaussian(4.0)
    three = jax.jit(lambda x, y: [jnp.sum(kernel(*pair)) for pair in ((x,), (y,), (x, y))])
    two = jax.jit(lambda x, y: [jnp.sum(kernel(rows)) for rows in (x, y)])
    matrices = {3: seconds(three, x, y, repeats=5), 2: seconds(two, x, y, repeats=5)}
    measures = {
        "mmd": (3, lambda: discrepancy.mmd(x, y, kernel=kernel)),
        "energy_distance": (3, lambda: discrepancy.energy_distance(x, y)),
        "cauchy_schwarz": (3, lambda: discrepancy.cauchy_schwarz(x, y, kernel=kernel)),
        "hsic": (2, lambda: information.hsic(x, y, kernel_x=kernel, kernel_y=kernel)),
        "distance_covariance": (2, lambda: information.distance_covariance(x, y)),
    }
    return [
        _row(name, seconds(call, repeats=5), f"{count} kernel matrices", matrices[count], n=n, d=16)
        for name, (count, call) in measures.items()
    ]


def memory(n: int) -> list[dict]:
    """Time and peak memory of a process that computes one number of very many rows."""
    calls = {
        "mmd": "discrepancy.mmd(x, y, kernel=kernels.Gaussian(4.0))",
        "energy_distance": "discrepancy.energy_distance(x, y)",
        "hsic": "information.hsic(x, y, kernel_x=kernels.Gaussian(4.0), "
        "kernel_y=kernels.Gaussian(4.0))",
        "distance_covariance": "information.distance_covariance(x, y)",
    }
    setup = (
        "import jax\nfrom divjax import discrepancy, information, kernels\n"
        f"x, y = jax.random.normal(jax.random.key(0), (2, {n}, 16))"
    )
    return [
        {"what": name, "n": n, "d": 16} | alone(setup, f"value = float({call})", "value=value")
        for name, call in calls.items()
    ]


def independence_tests(n: int, num_permutations: int) -> list[dict]:
    """A thousand permutations of HSIC and of distance covariance."""
    x, y = jax.random.normal(jax.random.key(0), (2, n, 2))
    key, rows = jax.random.key(1), []
    hyppo = _installed("hyppo.independence")

    def theirs(name: str) -> float | None:
        if hyppo is None:
            return None
        test = getattr(hyppo, name)()
        held = np.asarray(x, float), np.asarray(y, float)
        run = lambda: test.test(*held, reps=num_permutations, workers=1, auto=False)
        return _in_python(run, repeats=1)

    hsic = functools.partial(information.hsic_test, key, x, y, num_permutations=num_permutations)
    distances = functools.partial(
        information.distance_covariance_test, key, x, y, num_permutations=num_permutations
    )
    tests: dict[str, tuple[Callable[..., Any], str]] = {
        "hsic_test, exact": (hsic, "Hsic"),
        "hsic_test, rank 50": (functools.partial(hsic, rank=50), "Hsic"),
        "distance_covariance_test": (distances, "Dcorr"),
    }
    for name, (test, peer) in tests.items():
        ours = seconds(lambda test=test: test().p_value, repeats=3)
        rows.append(_row(name, ours, f"hyppo {peer}", theirs(peer), n=n, N=num_permutations))
    return rows


def on_the_line(n: int) -> list[dict]:
    """One feature each, by sorting."""
    x, y = jax.random.normal(jax.random.key(0), (2, n, 1))
    ours = seconds(lambda: information.distance_covariance(x, y), repeats=3)
    dcor, theirs = _installed("dcor"), None
    if dcor is not None:
        held = [np.asarray(rows[:, 0], float) for rows in (x, y)]
        theirs = _in_python(lambda: dcor.distance_covariance_sqr(*held, method="mergesort"))
    rows = [_row("distance_covariance", ours, "dcor, merge sort", theirs, n=n)]
    ours = seconds(lambda: discrepancy.energy_distance(x, y), repeats=3)
    held = [np.asarray(rows[:, 0], float) for rows in (x, y)]
    theirs = _in_python(lambda: scipy.stats.energy_distance(*held))
    return [*rows, _row("energy_distance", ours, "SciPy", theirs, n=n)]


def neighbors(sizes: tuple[int, ...], dims: tuple[int, ...], k: int = 3) -> list[dict]:
    """The k nearest points of each row."""
    rows = []
    for n in sizes:
        for d in dims:
            x = jax.random.normal(jax.random.key(0), (n, d))
            search = jax.jit(lambda x: nearest_points(x, None, k).index)
            ours = seconds(search, x, repeats=3)
            held = np.asarray(x, float)
            if d < 16:
                query = lambda held=held: scipy.spatial.KDTree(held).query(held, k + 1)
                rows.append(
                    _row("nearest_points", ours, "SciPy, KDTree", _in_python(query, 1), n=n, d=d)
                )
            else:
                brute = NearestNeighbors(n_neighbors=k + 1, algorithm="brute")
                query = lambda held=held, brute=brute: brute.fit(held).kneighbors(held)
                theirs = _in_python(query, 1)
                rows.append(_row("nearest_points", ours, "scikit-learn, brute", theirs, n=n, d=d))
    return rows


def mutual_informations(n: int) -> list[dict]:
    """KSG by three neighbours: two features each, one each."""
    z = jax.random.normal(jax.random.key(0), (n, 4))
    y = z[:, 2:] + z[:, :2]
    return [*_one_pair(z[:, :2], y), *_one_pair(z[:, :1], y[:, :1])]


def _one_pair(x: jax.Array, y: jax.Array) -> list[dict]:
    ours = seconds(
        lambda: information.mutual_information(x, y, method=information.KSG()).value, repeats=3
    )
    a, b = (np.asarray(rows, float) for rows in (x, y))
    infomeasure, ennemi = _installed("infomeasure"), _installed("ennemi")
    of = lambda module, call: module and _in_python(call, 1)
    theirs = {
        "infomeasure": of(
            infomeasure, lambda: infomeasure.mutual_information(a, b, approach="ksg", k=3)
        )
    }
    # The others take one feature each.
    if x.shape[1] == 1:
        theirs["ennemi"] = of(ennemi, lambda: ennemi.estimate_mi(b[:, 0], a[:, 0], k=3))
        by_scikit_learn = lambda: mutual_info_regression(a, b[:, 0], n_neighbors=3)
        theirs["scikit-learn"] = _in_python(by_scikit_learn, 1)
    shape = {"n": x.shape[0], "d": x.shape[1] + y.shape[1]}
    return [
        _row("mutual_information", ours, peer, found, **shape) for peer, found in theirs.items()
    ]


def screening(n: int, count: int) -> list[dict]:
    """The information of each of many features about a target, by the same estimate."""
    z = np.random.default_rng(0).normal(size=(n, count))
    target = z[:, :1] + z[:, 1:2] ** 2 + np.random.default_rng(1).normal(size=(n, 1))
    x, y = jnp.asarray(z, jnp.float32), jnp.asarray(target, jnp.float32)
    method = information.KSG()
    of_features = lambda: information.mutual_information_screening(x, y, method=method).value
    by_scikit_learn = lambda: mutual_info_regression(z, target[:, 0], n_neighbors=3)
    # Scikit-learn's are not negative.
    apart = float(np.abs(np.maximum(of_features(), 0) - by_scikit_learn()).max())
    ours, theirs = seconds(of_features, repeats=3), _in_python(by_scikit_learn, 1)
    row = _row("mutual_information_screening", ours, "scikit-learn", theirs, n=n, features=count)
    return [row | {"largest difference": apart}]


def many_problems(count: int, n: int) -> list[dict]:
    """Many small MMDs, one after the other within one program."""
    x, y = jax.random.normal(jax.random.key(0), (2, count, n, 4))
    kernel = kernels.Gaussian(2.0)
    mapped = jax.jit(
        lambda x, y: jax.lax.map(lambda pair: discrepancy.mmd(*pair, kernel=kernel), (x, y))
    )
    ours = seconds(mapped, x, y, repeats=3)
    held = np.asarray(x, float), np.asarray(y, float)

    def by_scipy() -> list[float]:
        distances = functools.partial(scipy.spatial.distance.cdist, metric="sqeuclidean")
        mean = lambda a, b: np.exp(-distances(a, b) / 8).mean()
        return [mean(a, a) + mean(b, b) - 2 * mean(a, b) for a, b in zip(*held, strict=True)]

    rows = [_row("mmd", ours, "NumPy and cdist", _in_python(by_scipy, 1), problems=count, n=n)]
    hyppo, theirs = _installed("hyppo.ksample"), None
    if hyppo is not None:
        statistic = hyppo.MMD(bias=True).statistic
        theirs = _in_python(lambda: [statistic(*pair) for pair in zip(*held, strict=True)], 1)
    return [*rows, _row("mmd", ours, "hyppo, statistic alone", theirs, problems=count, n=n)]


def tables(quick: bool) -> Iterator[Table]:
    """The tables of this part."""
    n = 256 if quick else 4096
    yield f"Measures of pairs beside kernel matrices (n = {n})", lambda: pair_measures(n)
    if not quick:
        yield "Fifty thousand rows alone in a process", lambda: memory(50_000)
    size, count = (100, 99) if quick else (1000, 1000)
    yield "Tests of independence", lambda: independence_tests(size, count)
    line = 1000 if quick else 1_000_000
    yield "Numbers on a line", lambda: on_the_line(line)
    sizes, dims = ((200,), (2, 16)) if quick else ((10_000, 100_000), (1, 2, 3))
    yield "Nearest neighbours", lambda: neighbors(sizes, dims)
    if not quick:
        yield "Nearest neighbours in many dimensions", lambda: neighbors((10_000,), (16, 64))
    of_pairs = 200 if quick else 10_000
    yield "Mutual information", lambda: mutual_informations(of_pairs)
    shape = (200, 5) if quick else (2000, 100)
    yield "Many features about one target", lambda: screening(*shape)
    problems = (5, 64) if quick else (500, 256)
    yield "Many small problems", lambda: many_problems(*problems)
