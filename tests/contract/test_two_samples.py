"""Whoever takes two samples: what they may be held in, where they may lie, and what is refused."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from divjax import discrepancy, fdiv, flows, inference, kernels, ot, ratio
from divjax.fdiv import categorical, histogram
from divjax.ratio import heads
from tests.contract.edges import refused_with

KEY = jax.random.key(0)
N, M, D = 24, 20, 2
# On a lattice, so that integers hold the same numbers; spread a few units.
RNG = np.random.default_rng(0)
X = np.round(3 * RNG.normal(size=(N, D)))
Y = np.round(3 * RNG.normal(size=(M, D)) + 1)

NETWORK = {"hidden": (4,), "num_steps": 4, "num_checks": 2}


class Case(NamedTuple):
    """A function of two samples.

    Attributes:
        call: `(x, y) -> result`.
        answer: `result -> array`, the numbers that are looked at.
        flag: `result -> bool`, whether the result says that it is no answer; NaN always does.
        degree: the answer of samples s times as large is s^degree times as large; None if lengths
            are settings (a bandwidth, ε) that do not scale along.
        shifts: whether moving both samples alike leaves the answer unchanged.
        any_rows: whether rows may be of any shape and hold infinite numbers, which only a statistic
            of the user's looks at.
        slow: whether it takes seconds a call.
    """

    call: Callable[[Any, Any], Any]
    answer: Callable[[Any], Any]
    flag: Callable[[Any], Any] = lambda result: False
    degree: float | None = None
    shifts: bool = True
    any_rows: bool = False
    slow: bool = False


def _value(result: Any) -> Any:
    return result.value


def _statistics(result: Any) -> Any:
    return jnp.append(result.null, result.statistic)


def _itself(result: Any) -> Any:
    return result


def _not_converged(result: Any) -> Any:
    return not np.all(result.converged)


def _mmd(x, y):
    objective = flows.MMD(y, kernels.Gaussian(bandwidth=2.0))
    particles = jnp.asarray(x, jnp.float32)
    weights = jnp.ones(len(particles)) / max(1, len(particles))
    return objective(KEY, particles, weights, objective.init(KEY, particles))[0].value


def _fit(estimator):
    return lambda x, y: estimator.fit(KEY, x, y)


def _js(fit):
    return fit.js().value


def _squared_shift(x, y):
    return jnp.sum((x.mean(0) - y.mean(0)) ** 2)


def _moved(fit):
    """The mean displacement of a few points of the first sample."""
    points = jnp.asarray(X[:4], jnp.float32)
    return fit(points)


CASES = {
    "fdiv.knn_kl": Case(fdiv.knn_kl, _value, degree=0),
    "fdiv.gaussian.plug_in_kl": Case(fdiv.gaussian.plug_in_kl, _value, degree=0),
    "fdiv.histogram.divergence": Case(
        lambda x, y: histogram.divergence(categorical.jensen_shannon, x, y), _itself, degree=0
    ),
    "ratio.ClassifierRatio": Case(
        _fit(ratio.ClassifierRatio(heads.Linear(0.5), num_folds=2)), _js, degree=0
    ),
    "ratio.ClassifierRatio(network)": Case(
        _fit(ratio.ClassifierRatio(heads.Network(batch_size=4, **NETWORK), num_folds=2)),
        _js,
        degree=0,
        slow=True,
    ),
    "ratio.LeastSquaresRatio": Case(
        _fit(ratio.LeastSquaresRatio(heads.LeastSquares((0.5,), (0.1,)), num_folds=2)),
        _js,
        degree=0,
    ),
    "ratio.KLIEPRatio": Case(
        _fit(ratio.KLIEPRatio(heads.KLIEP((0.5,)), num_folds=2)), _js, degree=0
    ),
    "ratio.KernelMeanMatching": Case(
        lambda x, y: ratio.KernelMeanMatching(num_steps=50).fit(KEY, x, y),
        lambda fit: fit.weights,
        degree=0,
    ),
    "ratio.DivergenceBound": Case(
        _fit(ratio.DivergenceBound(num_groups=2, **NETWORK)),
        lambda fit: fit.estimate("nwj").value,
        degree=0,
    ),
    "ot.sinkhorn": Case(lambda x, y: ot.sinkhorn(x, y, epsilon=2.0), _value, _not_converged),
    "ot.sinkhorn_divergence": Case(
        lambda x, y: ot.sinkhorn_divergence(x, y, epsilon=2.0),
        lambda result: result.value,
        _not_converged,
    ),
    "ot.monge_gap": Case(
        lambda x, y: ot.monge_gap(x[: len(y)], y, epsilon=2.0), _value, _not_converged
    ),
    "ot.cost_matrix": Case(lambda x, y: ot.cost_matrix(ot.SqEuclidean(), x, y), _itself, degree=2),
    "ot.sliced_wasserstein": Case(
        lambda x, y: ot.sliced_wasserstein(KEY, x, y, num_projections=8), _itself, degree=2
    ),
    "ot.max_sliced_wasserstein": Case(
        lambda x, y: ot.max_sliced_wasserstein(KEY, x, y, num_starts=2), _value, degree=2, slow=True
    ),
    "ot.gaussian_map_from_samples": Case(
        ot.gaussian_map_from_samples, lambda fit: fit.matrix, degree=0
    ),
    "ot.EntropicMap": Case(
        _fit(ot.EntropicMap(epsilons=(0.2,), block_size=8)),
        lambda fit: fit.epsilon,
        _not_converged,
        degree=2,
    ),
    "ot.MongeMap": Case(
        _fit(ot.MongeMap(num_steps=3, num_checks=1, hidden=(4,))),
        lambda fit: fit.validation,
        _not_converged,
        slow=True,
    ),
    "ot.ICNNDual": Case(
        _fit(ot.ICNNDual((4,), start_hidden=(4,), num_steps=3, num_inner_steps=2, num_checks=1)),
        lambda fit: fit.squared_distance,
        _not_converged,
        slow=True,
    ),
    "ot.LightSchrodingerBridge": Case(
        _fit(ot.LightSchrodingerBridge(2, 0.5, num_steps=3)),
        lambda bridge: bridge.scales,
        slow=True,
    ),
    "discrepancy.mmd": Case(discrepancy.mmd, _itself, degree=0),
    "discrepancy.energy_distance": Case(discrepancy.energy_distance, _itself, degree=1),
    "discrepancy.sliced_energy_distance": Case(
        lambda x, y: discrepancy.sliced_energy_distance(KEY, x, y, num_projections=8),
        _itself,
        degree=1,
        slow=True,
    ),
    "discrepancy.cauchy_schwarz": Case(
        lambda x, y: discrepancy.cauchy_schwarz(x, y, kernel=kernels.Gaussian(2.0), debias=True),
        _itself,
    ),
    "discrepancy.conditional_cauchy_schwarz": Case(
        lambda x, y: discrepancy.conditional_cauchy_schwarz(
            x, x, y, y, kernel=kernels.Gaussian(2.0), response_kernel=kernels.Gaussian(2.0)
        ),
        _itself,
        slow=True,
    ),
    "discrepancy.characteristic_function_distance": Case(
        lambda x, y: discrepancy.characteristic_function_distance(KEY, x, y, num_frequencies=8),
        _itself,
        degree=0,
        slow=True,
    ),
    "discrepancy.mmd_estimate": Case(
        lambda x, y: discrepancy.mmd_estimate(x, y),
        lambda found: found.std_error,
        degree=0,
        slow=True,
    ),
    "discrepancy.frechet_distance": Case(discrepancy.frechet_distance, _itself, degree=2),
    "discrepancy.precision_recall": Case(discrepancy.precision_recall, jnp.stack, degree=0),
    # Particles are float32: what float64 samples keep, they have lost.
    "flows.MMD": Case(_mmd, _itself, shifts=False),
    "discrepancy.mmd_test": Case(
        lambda x, y: discrepancy.mmd_test(KEY, x, y, num_permutations=19), _statistics, degree=0
    ),
    "discrepancy.energy_test": Case(
        lambda x, y: discrepancy.energy_test(KEY, x, y, num_permutations=19), _statistics, degree=1
    ),
    "inference.permutation_test": Case(
        lambda x, y: inference.permutation_test(KEY, _squared_shift, x, y, num_permutations=19),
        lambda result: result.p_value,
        shifts=False,
        any_rows=True,
    ),
}


def answer(name: str, x: Any, y: Any) -> np.ndarray:
    return np.asarray(CASES[name].answer(CASES[name].call(x, y)))


def flagged(name: str, x: Any, y: Any) -> bool:
    result = CASES[name].call(x, y)
    numbers = np.asarray(CASES[name].answer(result))
    return bool(np.isnan(numbers).any() or CASES[name].flag(result))


REFERENCE: dict[str, np.ndarray] = {}


def reference(name: str) -> np.ndarray:
    """The answer for float32 JAX arrays, computed once."""
    if name not in REFERENCE:
        REFERENCE[name] = answer(name, jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32))
    return REFERENCE[name]


def assert_same(name: str, numbers: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    scale = np.abs(expected).max() + 1e-3
    np.testing.assert_allclose(numbers, expected, rtol=rtol, atol=rtol * scale, err_msg=name)


each_case = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.exhaustive] * c.slow) for n, c in CASES.items()]
)

HELD_IN = {
    "list": lambda rows: rows.tolist(),
    "numpy": lambda rows: rows,
    "integers": lambda rows: rows.astype(np.int64),
    "frame": lambda rows: pd.DataFrame(rows, columns=list("ab")),
}


@each_case
def test_what_samples_may_be_held_in(name):
    """Lists, NumPy float64, integers and frames hold the same samples as float32 arrays."""
    for hold in HELD_IN.values():
        assert_same(name, answer(name, hold(X), hold(Y)), reference(name), 1e-4)


COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: COMPILED.append(event) if "backend_compile" in event else None
)


@each_case
def test_a_second_call_compiles_nothing(name):
    """Called eagerly, as in a notebook."""
    reference(name)
    x, y = jnp.asarray(X + 1, jnp.float32), jnp.asarray(Y + 1, jnp.float32)
    COMPILED.clear()
    answer(name, x, y)
    assert not COMPILED


FAR = 123456789.1


@each_case
def test_numpy_far_from_zero(name):
    """1e8 spreads away, float32 is a lattice of step 8: centred before it is rounded.

    A round offset could be a number of float32, in which nothing is lost.
    """
    if not CASES[name].shifts:
        pytest.skip("depends on where the samples are")
    assert_same(name, answer(name, X + FAR, Y + FAR), reference(name), 1e-3)


@each_case
def test_whole_numbers_of_jax_far_from_zero(name):
    """Beyond 2²⁴ float32 does not hold them."""
    if not CASES[name].shifts:
        pytest.skip("depends on where the samples are")
    x, y = (jnp.asarray(rows + 2**27, jnp.int32) for rows in (X, Y))
    assert_same(name, answer(name, x, y), reference(name), 1e-3)


@each_case
def test_arrays_far_from_zero(name):
    """1e3 away, still on float32's lattice exactly."""
    if not CASES[name].shifts:
        pytest.skip("depends on where the samples are")
    x, y = (jnp.asarray(rows + 1000, jnp.float32) for rows in (X, Y))
    assert_same(name, answer(name, x, y), reference(name), 5e-3)


@each_case
@pytest.mark.parametrize("scale", [2.0**-26, 2.0**26])
def test_scale(name, scale):
    degree = CASES[name].degree
    if degree is None:
        pytest.skip("has a length of its own")
    x, y = (jnp.asarray(rows * scale, jnp.float32) for rows in (X, Y))
    assert_same(name, answer(name, x, y) / scale**degree, reference(name), 5e-3)


@each_case
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["x", "y"])
def test_what_is_not_finite_is_flagged(name, value, side):
    if np.isinf(value) and CASES[name].any_rows:
        pytest.skip("the statistic decides")
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    if side == "x":
        x = x.at[3, 1].set(value)
    else:
        y = y.at[3, 1].set(value)
    if np.isinf(value) and np.isinf(answer(name, x, y)).any():
        return
    assert flagged(name, x, y)


@each_case
def test_feature_counts(name):
    if CASES[name].any_rows:
        pytest.skip("rows of any shape")
    with pytest.raises(ValueError, match="feature"):
        CASES[name].call(jnp.asarray(X, jnp.float32), jnp.ones((M, D + 1)))


@each_case
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(name, rows):
    """None are refused; one is refused or answered, with no deeper error."""
    x = jnp.ones((rows, D))
    refusal = refused_with(lambda: CASES[name].call(x, jnp.asarray(Y, jnp.float32)))
    if refusal is None:
        assert rows
    else:
        assert any(word in refusal for word in ("row", "sample", "non-empty", "particle"))


@each_case
def test_a_vector_is_refused_with_the_conversion(name):
    if CASES[name].any_rows or "histogram" in name:
        pytest.skip("rows of any shape")
    with pytest.raises(ValueError, match=r"matrix|\[:, None\]|shape"):
        CASES[name].call(jnp.ones(N), jnp.ones(M))


@each_case
def test_text_is_refused(name):
    with pytest.raises(ValueError, match="number"):
        CASES[name].call(X.astype(str), Y.astype(str))


@each_case
def test_prints_short(name):
    result = CASES[name].call(jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32))
    if isinstance(result, jax.Array):
        return
    printed = repr(result)
    assert len(printed) < 400
    assert printed.count("\n") < 3
