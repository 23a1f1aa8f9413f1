"""AUC and accuracy against SciPy, scikit-learn, brute force and repeated sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from divjax import inference
from divjax.inference.rank import midranks


def scores(n, m, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0.7, 1, n), rng.normal(0, 1.5, m)
    return (np.round(x), np.round(y)) if ties else (x, y)


def value_and_error(estimate):
    return jnp.stack([estimate.value, estimate.std_error])


def brute(x, y):
    """Each pair's comparison."""
    return (x[:, None] > y) + 0.5 * (x[:, None] == y)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 2e-6), (np.float64, 1e-12)])
def test_auc_is_that_of_others(ties, dtype, rtol):
    x, y = scores(70, 45, ties=ties)
    with jax.enable_x64(True):
        estimate = jax.jit(inference.auc)(jnp.asarray(x, dtype), jnp.asarray(y, dtype))
    value, std_error = estimate.value, estimate.std_error
    assert value.dtype == std_error.dtype == dtype
    mann_whitney = scipy.stats.mannwhitneyu(x, y).statistic / (70 * 45)
    np.testing.assert_allclose(value, mann_whitney, rtol=rtol)
    labels = np.repeat([1, 0], [70, 45])
    roc = sklearn.metrics.roc_auc_score(labels, np.concatenate([x, y]))
    np.testing.assert_allclose(value, roc, rtol=rtol)
    # DeLong: the placements are row and column means of all comparisons.
    pairs = brute(x, y)
    variance = pairs.mean(1).var(ddof=1) / 70 + pairs.mean(0).var(ddof=1) / 45
    np.testing.assert_allclose(std_error, np.sqrt(variance), rtol=10 * rtol)


def test_weighted_auc_is_scikit_learns_and_absent_rows_are_absent():
    x, y = scores(40, 50, 1, ties=True)
    rng = np.random.default_rng(2)
    a, b = rng.uniform(size=40), rng.uniform(size=50)
    a[::3], b[::4] = 0, 0
    with jax.enable_x64(True):
        auc = jax.jit(lambda *args: value_and_error(inference.auc(*args)))
        value, std_error = np.asarray(auc(x, y, a, b))
        garbage = np.asarray(auc(np.where(a > 0, x, np.nan), y, a, b))
        kept = np.asarray(auc(x[a > 0], y[b > 0], a[a > 0], b[b > 0]))
        mask = np.asarray(auc(x, y, 1.0 * (a > 0), 1.0 * (b > 0)))
        without = np.asarray(auc(x[a > 0], y[b > 0]))
        gradient = np.asarray(jax.jit(jax.grad(lambda a: auc(x, y, a, b)[0]))(a))
    labels, pooled = np.repeat([1, 0], [40, 50]), np.concatenate([x, y])
    expected = sklearn.metrics.roc_auc_score(labels, pooled, sample_weight=np.concatenate([a, b]))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose((value, std_error), garbage, rtol=1e-12)
    np.testing.assert_allclose((value, std_error), kept, rtol=1e-12)
    np.testing.assert_allclose(mask, without, rtol=1e-12)
    # d/da_i of Σ a_i F_i / Σ a_i.
    placements = brute(x, y) @ (b / b.sum())
    np.testing.assert_allclose(gradient, (placements - value) / a.sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estimator", ["auc", "accuracy"])
def test_standard_errors_are_the_spread_and_cover(estimator):
    """Of 600 samples of 60 and 40 scores, by which a spread is known to 3 %."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(1.0, 1, (600, 60)), rng.normal(0, 1, (600, 40))
    threshold = {"threshold": 0.5} if estimator == "accuracy" else {}
    swept = jax.jit(jax.vmap(lambda x, y: getattr(inference, estimator)(x, y, **threshold)))
    estimates = swept(x, y)
    value, std_error = estimates.value, estimates.std_error
    truth = scipy.stats.norm.cdf(1 / np.sqrt(2) if estimator == "auc" else 0.5)
    spread = np.std(value)
    assert abs(np.mean(value) - truth) < 4 * spread / np.sqrt(600)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(std_error))), spread, rtol=0.13)
    for interval in (inference.normal_interval, inference.logit_interval):
        low, high = interval(value, std_error, 0.9)
        covered = np.mean((low < truth) & (truth < high))
        assert abs(covered - 0.9) < 4 * np.sqrt(0.09 / 600) + 0.02


@pytest.mark.parametrize("sign", [1, -1])
def test_a_few_scores_without_an_error_are_no_certainty(sign):
    """Of 2000 samples of ten rows a side, 95 % intervals hold AUC and accuracy in 95 % or more."""
    shift = 2.0
    auc = scipy.stats.norm.cdf(sign * shift / np.sqrt(2))
    accuracy = scipy.stats.norm.cdf(sign * shift / 2)
    x, y = np.random.default_rng(0).normal(size=(2, 2000, 10)).astype(np.float32)
    x, y = x + sign * shift / 2, y - sign * shift / 2
    for statistic, truth in ((inference.auc, auc), (inference.accuracy, accuracy)):
        lower, upper = jax.jit(jax.vmap(lambda x, y, of=statistic: of(x, y).interval))(x, y)
        covered = np.mean((lower <= truth) & (truth <= upper))
        assert covered > 0.95 - 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_accuracy_is_scikit_learns():
    x, y = scores(40, 70, 4)
    rng = np.random.default_rng(5)
    a, b = rng.uniform(size=40), rng.uniform(size=70)
    labels, pooled = np.repeat([1, 0], [40, 70]), np.concatenate([x, y]) > 0
    with jax.enable_x64(True):
        accuracy = jax.jit(lambda *args: value_and_error(inference.accuracy(*args)))
        value, std_error = np.asarray(accuracy(x, y))
        weighted = np.asarray(accuracy(x, y, a, b))[0]
    expected = sklearn.metrics.balanced_accuracy_score(labels, pooled)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    shares = np.mean(x > 0), np.mean(y < 0)
    variance = sum(s * (1 - s) / (n - 1) for s, n in zip(shares, (40, 70), strict=True))
    np.testing.assert_allclose(std_error, np.sqrt(variance) / 2, rtol=1e-12)
    expected = (np.average(x > 0, weights=a) + np.average(y < 0, weights=b)) / 2
    np.testing.assert_allclose(weighted, expected, rtol=1e-12)


def test_extremes_are_finite_or_flagged():
    loss = lambda w: jnp.sum(value_and_error(inference.auc(jnp.ones(4), jnp.zeros(3), w)))

    @jax.jit
    def extremes():
        broken = jnp.array([jnp.nan, 1.0]), jnp.zeros(3)
        found = {
            "ordered": inference.auc(jnp.array([1.0, 2.0, jnp.inf]), jnp.array([-jnp.inf, 0.0])),
            "same": inference.auc(jnp.ones(4), jnp.ones(3)),
            "one": inference.auc(jnp.array([1.0]), jnp.zeros(3)),
            "broken auc": inference.auc(*broken),
            "broken accuracy": inference.accuracy(*broken),
        }
        found = {name: value_and_error(estimate) for name, estimate in found.items()}
        return found, jax.grad(loss)(jnp.ones(4))

    found, gradient = jax.tree.map(np.asarray, extremes())
    assert found["ordered"].tolist() == [1, 0]
    assert found["same"].tolist() == [0.5, 0]
    assert np.isnan(found["one"][1])
    assert np.isnan(found["broken auc"]).all()
    assert np.isnan(found["broken accuracy"]).all()
    assert np.isfinite(gradient).all()


def test_midranks_are_scipys():
    values = np.random.default_rng(6).integers(0, 6, 40).astype(np.float32)
    np.testing.assert_allclose(midranks(values), scipy.stats.rankdata(values))


def test_intervals_are_scipys_and_stay_inside():
    low, high = inference.normal_interval(jnp.array([1.0, 2.0]), 0.5, 0.9)
    np.testing.assert_allclose([low, high], scipy.stats.norm([1, 2], 0.5).interval(0.9), rtol=1e-6)
    value, std_error, upper = 0.65, 0.02, np.log(2)
    low, high = inference.logit_interval(value, std_error, 0.95, upper=upper)
    logit = scipy.special.logit(value / upper)
    margin = 1.959964 * std_error * upper / (value * (upper - value))
    ends = upper * scipy.special.expit([logit - margin, logit + margin])
    np.testing.assert_allclose([low, high], ends, rtol=1e-6)
    assert 0 < low < value < high < upper
    edges = inference.logit_interval(jnp.array([0.0, 1.0, -0.1]), jnp.array([0.0, 0.1, 0.2]))
    np.testing.assert_allclose(edges.lower, [0, 1 - 0.196, 0], rtol=1e-3)
    np.testing.assert_allclose(edges.upper, [0, 1, -0.1 + 0.392], rtol=1e-3)
    gradient = jax.grad(lambda v, s: sum(inference.logit_interval(v, s)), (0, 1))
    assert all(np.isfinite(gradient(v, s)).all() for v in (0.0, 1e-7, 1.0) for s in (0.0, 10.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inference.auc(jnp.zeros((2, 1)), jnp.zeros(2)), "x must be a non-empty"),
        (lambda: inference.accuracy(jnp.zeros(2), jnp.zeros(0)), "y must be a non-empty"),
        (
            lambda: inference.auc(jnp.zeros(2), jnp.zeros(2), b=jnp.ones(3)),
            r"b must have the shape of y, \(2,\); got \(3,\)",
        ),
        (
            lambda: inference.normal_interval(0.0, 1.0, 95),
            r"confidence_level must be a number in \(0, 1\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("statistic", [inference.auc, inference.accuracy])
@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize("weights", [[-5.0, 1.0, 5.0], [0.0, 0.0, 0.0], [1.0, np.nan, 1.0]])
def test_invalid_weights(statistic, side, weights):
    """Refused where they are concrete, NaN where they are traced."""
    x, weights = jnp.arange(3.0), jnp.array(weights)
    with pytest.raises(ValueError, match=f"{side} must be finite and non-negative"):
        statistic(x, x, **{side: weights})
    found = jax.jit(lambda w: statistic(x, x, **{side: w}))(weights)
    assert jnp.isnan(jnp.stack([found.value, found.std_error, *found.interval])).all()


@pytest.mark.parametrize("level", [-0.5, 0.0, 1.0, 1.5])
def test_traced_level_out_of_range(level):
    x, y = map(jnp.asarray, scores(20, 20))
    found = jax.jit(lambda level: inference.auc(x, y, confidence_level=level).interval)(level)
    assert jnp.isnan(jnp.stack(found)).all()


def test_nan_has_no_rank():
    np.testing.assert_array_equal(midranks(np.array([1.0, np.nan, 0.0])), [2.0, np.nan, 1.0])


@pytest.mark.parametrize("level", [1 - 1e-6, 1 - 1e-7, 1 - 1e-9])
def test_levels_that_float32_would_change_are_refused(level):
    """1 − level would be off by 3 %, 20 % and 100 %, and so would be quantiles in the tail."""
    with pytest.raises(ValueError, match="confidence_level must not round to"):
        inference.normal_interval(0.0, 1.0, level)
    upper = inference.normal_interval(0.0, 1.0, 1 - 1e-5).upper
    np.testing.assert_allclose(upper, scipy.stats.norm.isf(0.5e-5), rtol=1e-3)


def test_a_large_integer_threshold_is_compared_exactly():
    """One score is the threshold, the other below it."""
    t = 1_700_000_000_000_000_000
    for threshold, expected in ((t + 100, 0.75), (t + 99, 1.0), (t + 101, 0.5)):
        for given in (threshold, np.int64(threshold), np.array(threshold)):
            found = inference.accuracy(np.array([t + 100]), np.array([t - 100]), threshold=given)
            np.testing.assert_allclose(found.value, expected)
