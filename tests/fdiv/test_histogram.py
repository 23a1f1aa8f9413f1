"""Binned divergences against NumPy's histograms, SciPy, and Monte-Carlo means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.spatial.distance
import scipy.special

from divjax.fdiv import categorical, histogram

js_bits = functools.partial(categorical.jensen_shannon, base=2)


def samples(seed=0, n=400, m=300):
    rng = np.random.default_rng(seed)
    x = np.stack([rng.normal(size=n), rng.exponential(size=n), rng.integers(0, 5, n)], axis=1)
    y = np.stack([rng.normal(1, 2, m), rng.exponential(size=m), rng.integers(1, 7, m)], axis=1)
    return x, y


@pytest.mark.parametrize("spacing", ["uniform", "quantile"])
def test_edges_and_counts_are_numpys(spacing):
    x, y = samples()
    with jax.enable_x64(True):
        weights = np.random.default_rng(1).uniform(size=len(x))

        @jax.jit
        def everything(x, y, weights):
            edges = histogram.edges(x, y, num_bins=9, spacing=spacing)
            samples = (x, edges), (x, edges, weights), (x[:, 0], edges[0]), (x[:, 0], edges[0, 3:6])
            return edges, *(histogram.counts(*sample) for sample in samples)

        edges, plain, weighted, vector, inner = map(np.asarray, everything(x, y, weights))
    pooled = np.concatenate([x, y])
    for j in range(3):
        expected = (
            np.linspace(pooled[:, j].min(), pooled[:, j].max(), 10)
            if spacing == "uniform"
            else np.quantile(pooled[:, j], np.linspace(0, 1, 10))
        )
        np.testing.assert_allclose(edges[j], expected, rtol=1e-12)
        if j == 2 and spacing == "quantile":
            continue  # NumPy's bins are ambiguous where edges coincide
        bins = np.asarray(edges[j])
        np.testing.assert_array_equal(plain[j], np.histogram(x[:, j], bins)[0])
        np.testing.assert_allclose(
            weighted[j], np.histogram(x[:, j], bins, weights=weights)[0], rtol=1e-12
        )
    np.testing.assert_array_equal(
        np.sum(np.asarray(plain), axis=1), len(x)
    )  # both extremes are inside
    np.testing.assert_array_equal(vector, plain[0])
    np.testing.assert_array_equal(inner, np.histogram(x[:, 0], np.asarray(edges[0, 3:6]))[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_divergences_are_scipys(smoothing):
    x, y = samples()
    with jax.enable_x64(True):
        binned = jax.jit(
            lambda x, y: [
                *(
                    histogram.divergence(
                        d, x, y, num_bins=7, spacing="uniform", smoothing=smoothing
                    )
                    for d in (categorical.kl, js_bits)
                ),
                histogram.divergence(
                    categorical.kl, x[:, 1], y[:, 1], num_bins=7, spacing="uniform"
                ),
            ]
        )
        kl, js, alone = map(np.asarray, binned(x, y))
    for j in range(3):
        pooled = np.concatenate([x[:, j], y[:, j]])
        bins = np.linspace(pooled.min(), pooled.max(), 8)
        p, q = (np.histogram(a[:, j], bins)[0] + smoothing for a in (x, y))
        p, q = p / p.sum(), q / q.sum()
        np.testing.assert_allclose(kl[j], scipy.special.rel_entr(p, q).sum(), rtol=1e-12)
        expected = scipy.spatial.distance.jensenshannon(p, q, base=2) ** 2
        np.testing.assert_allclose(js[j], expected, rtol=1e-12)
        if j == 1 and smoothing == 0:
            np.testing.assert_allclose(alone, kl[1])
    if smoothing:
        assert np.isfinite(kl).all()


def test_bias_of_kl_is_the_formula_derived_by_hand():
    """(B − 1)/(2n) + (Σ p/q − 1)/(2m), and an eighth of (B − 1)(1/n + 1/m) for JS at p = q."""
    p, q = np.array([30.0, 50.0, 20.0, 0.0]), np.array([100.0, 60.0, 30.0, 10.0])
    expected = 2 / (2 * 100) + (np.sum(p / 100 / (q / 200)) - 1) / (2 * 200)
    with jax.enable_x64(True):
        bias = jax.jit(lambda p, q: histogram.bias(categorical.kl, p, q))
        np.testing.assert_allclose(bias(p, q), expected, rtol=1e-12)
        bias = jax.jit(lambda p, q: histogram.bias(categorical.jensen_shannon, p, q))
        np.testing.assert_allclose(bias(q, q), 2 * 3 / (8 * 200), rtol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_unbias_removes_the_mean_error(weighted):
    """Over 400 repetitions, within standard errors; the plug-in estimate is many of them off."""
    probabilities = np.array([0.35, 0.25, 0.2, 0.12, 0.08]), np.array([0.2, 0.25, 0.25, 0.15, 0.15])
    rng = np.random.default_rng(3)
    n, m, repeats = 150, 120, 400
    x, y = (
        jnp.asarray(rng.choice(5, (repeats, size), p=p) + 0.5, jnp.float32)
        for p, size in zip(probabilities, (n, m), strict=True)
    )
    # Weights independent of the points leave the target as it is, and the error larger.
    weights = jnp.asarray(rng.exponential(size=(repeats, n)) if weighted else np.ones((repeats, n)))

    @jax.jit
    @jax.vmap
    def estimate(x, y, weights):
        return [
            histogram.divergence(
                categorical.kl, x, y, bins=jnp.arange(6.0), a=weights, debias=debias
            )
            for debias in (False, True)
        ]

    plain, corrected = estimate(x, y, jnp.asarray(weights, jnp.float32))
    truth = scipy.special.rel_entr(*probabilities).sum()
    error = np.std(corrected) / np.sqrt(repeats)
    assert abs(np.mean(corrected) - truth) < 3 * error
    assert np.mean(plain) - truth > 8 * error


def test_gradients_pass_to_weights():
    x, y = (jnp.asarray(a[:, 0], jnp.float32) for a in samples())
    edges = histogram.edges(x, y, num_bins=5)

    @jax.jit
    def value(weights):
        return histogram.divergence(categorical.kl, x, y, bins=edges, a=weights)

    gradient = jax.grad(value)(jnp.ones(len(x)))
    p, q = (np.histogram(a, np.asarray(edges))[0] for a in (x, y))
    p, q = p / p.sum(), q / q.sum()
    index = np.clip(np.searchsorted(np.asarray(edges), x, side="right") - 1, 0, 4)
    with np.errstate(divide="ignore"):
        expected = (np.log(p / q) - scipy.special.rel_entr(p, q).sum())[index] / len(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_one_far_value_moves_nothing():
    """A row of a thousand moves the total variation of samples by 0.001."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(0.7, 1, 1000), rng.normal(size=1000)
    of = jax.jit(lambda x, y: histogram.divergence(categorical.jensen_shannon, x, y))
    plain = of(x, y)
    # Quadrature of the Jensen–Shannon divergence between the two normals; binning costs little.
    grid = np.linspace(-8, 8, 4001)
    p, q = (np.exp(-((grid - m) ** 2) / 2) for m in (0.7, 0))
    truth = scipy.spatial.distance.jensenshannon(p, q) ** 2
    assert abs(plain - truth) < 0.015
    for far in (999999.0, -9999.0, 1e30):
        assert abs(of(np.append(x[1:], far), y) - plain) < 0.003
        assert abs(of(x, np.append(y[1:], far)) - plain) < 0.003


@pytest.mark.parametrize(("dtype", "n"), [(jnp.bfloat16, 1000), (jnp.float16, 70_000)])
def test_counts_of_half_precision_do_not_saturate(dtype, n):
    """Past 256 and 2048 one more was lost."""
    edges = jnp.array([-1.0, 0.5, 1.0], dtype)
    np.testing.assert_array_equal(histogram.counts(jnp.zeros(n, dtype), edges), [n, 0])


@pytest.mark.exhaustive
@pytest.mark.parametrize("weighted", [False, True])
def test_counts_do_not_saturate(weighted):
    """Past 2²⁴ in float32."""
    n, edges = 2**24 + 4096, jnp.array([-1.0, 0.5, 1.0])
    weights = jnp.ones(n) if weighted else None
    np.testing.assert_array_equal(histogram.counts(jnp.zeros(n), edges, weights), [n, 0])


def test_an_offset_in_double_precision_is_no_loss():
    x, y = (a[:, :2] for a in samples())
    plain = histogram.divergence(categorical.kl, x, y, smoothing=0.5)
    far = histogram.divergence(categorical.kl, x + 123456789.0, y + 123456789.0, smoothing=0.5)
    np.testing.assert_allclose(far, plain, rtol=1e-5)
    bins = np.linspace(-6, 10, 9)
    given = [
        histogram.divergence(categorical.kl, x[:, 0] + c, y[:, 0] + c, bins=bins + c, smoothing=0.5)
        for c in (0, 123456789.0)
    ]
    np.testing.assert_allclose(*given, rtol=1e-5)


def test_lists_integers_and_vectors_are_samples():
    x, y = [0, 1, 2, 2], [0, 0, 1, 3]
    value = histogram.divergence(categorical.total_variation, x, y, bins=[0, 1, 2, 4])
    np.testing.assert_allclose(value, 0.25)
    column = histogram.divergence(
        categorical.total_variation, np.array(x)[:, None], np.array(y)[:, None], bins=[[0, 1, 2, 4]]
    )
    np.testing.assert_allclose(column, [0.25])


def test_what_cannot_be_binned_shows():
    x, y = jnp.array([0.0, 1.0, 2.0]), jnp.zeros(3)
    edges = jnp.array([0.0, 1.0, 2.0])
    missing = x.at[0].set(jnp.nan)
    own = jax.jit(
        lambda x, y: histogram.divergence(categorical.kl, x, y, num_bins=2, spacing="uniform")
    )
    quantiles = jax.jit(lambda x, y: histogram.divergence(categorical.kl, x, y, num_bins=2))
    given = jax.jit(lambda x, y: histogram.divergence(categorical.kl, x, y, bins=edges))
    assert own(x, y) == jnp.inf
    assert own(y + 1, y + 1) == 0
    assert jnp.isnan(own(missing, x))
    assert given(x, x) == 0
    assert jnp.isnan(given(x + 10, x))
    assert jnp.isnan(given(missing, x))
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        for divergence in (own, quantiles, given):
            assert jnp.isnan(divergence(x.at[1].set(bad), x))
            assert jnp.isnan(divergence(x, x.at[1].set(bad)))
    weighted = jax.jit(lambda w: histogram.counts(x, edges, w))
    assert jnp.isnan(weighted(jnp.array([1.0, -1.0, 1.0]))).all()
    assert jnp.isnan(weighted(jnp.array([1.0, jnp.nan, 1.0]))).all()


def kl_of(x, **options):
    return histogram.divergence(categorical.kl, x, x, **options)


# Numbers that float32 cannot tell apart, or barely, and bins that do.
CLOSE = {
    "offset": ([1e9 + 0.5, 1e9 + 1.5], [1e9, 1e9 + 1, 1e9 + 2]),
    "small steps": ([2e4 + 0.0001, 2e4 + 0.0004], [2e4, 2e4 + 0.0002, 2e4 + 0.0006]),
    "scales": ([1e-6, 3e-6, 5e3, 6e3, 7e3], [0, 2e-6, 4e-6, 1e4]),
    "at edges": ([1e9, 1e9 + 1, 1e9 + 2], [1e9, 1e9 + 1, 1e9 + 2]),
    "infinite ends": ([-1e300, 1e9 + 0.25, 1e9 + 0.75], [-np.inf, 1e9 + 0.5, np.inf]),
    "outside": ([1e9 - 1e-3, 1e9 + 2 + 1e-3, 1e9 + 0.1], [1e9, 1e9 + 1, 1e9 + 2]),
}


@pytest.mark.parametrize("case", CLOSE)
def test_double_precision_is_counted_as_numpy_does(case):
    x, edges = map(np.array, CLOSE[case])
    expected = np.histogram(
        np.clip(x, -1e30, None), np.nan_to_num(edges, posinf=1e38, neginf=-1e38)
    )
    np.testing.assert_array_equal(histogram.counts(x, edges), expected[0])
    np.testing.assert_array_equal(jax.jit(lambda: histogram.counts(list(x), edges))(), expected[0])
    matrix = histogram.counts(np.stack([x, x], 1), np.stack([edges, edges]))
    np.testing.assert_array_equal(matrix, [expected[0]] * 2)
    if case not in ("infinite ends", "outside"):
        total = histogram.divergence(categorical.total_variation, x, x[:1], bins=edges)
        np.testing.assert_allclose(total, 1 - expected[0][0] / len(x), rtol=1e-6)


def test_one_side_in_double_precision():
    """Samples in float32 on their lattice, bins between its points."""
    x = jnp.array([1e9, 1e9 + 64], jnp.float32)
    assert histogram.counts(x, np.array([1e9 - 1, 1e9 + 0.5, 1e9 + 65])).tolist() == [1, 1]
    assert histogram.counts(x, np.array([1e9 + 0.5, 1e9 + 1, 1e9 + 65])).tolist() == [0, 1]


def test_edges_that_float32_cannot_resolve_are_nan():
    x = np.random.default_rng(0).normal(size=50)
    assert np.isnan(histogram.edges(x + 1e9, x + 1e9)).all()
    expected = np.quantile(np.concatenate([x, x]) + 1e3, np.linspace(0, 1, 21))
    np.testing.assert_allclose(histogram.edges(x + 1e3, x + 1e3), expected, rtol=1e-6)
    assert histogram.edges(np.full(3, 1e9), np.full(2, 1e9), num_bins=2).tolist() == [1e9] * 3


def test_traced_edges_that_do_not_ascend_are_nan():
    count = jax.jit(lambda edges: histogram.counts(jnp.array([0.5, 1.5]), edges))
    assert count(jnp.array([0.0, 1.0, 2.0])).tolist() == [1, 1]
    below_one = np.nextafter(np.float32(1), np.float32(0))
    assert count(jnp.array([0.0, 1.0, below_one, 2.0])).tolist() == [1, 0, 1]  # as of quantiles
    for edges in ([0.0, 2.0, 1.0], [0.0, np.inf, np.inf], [0.0, np.nan, 1.0]):
        assert np.isnan(count(jnp.array(edges))).all()
    binned = jax.jit(lambda x, bins: kl_of(x, bins=bins))
    assert np.isnan(binned(jnp.ones(3), jnp.array([-2.0, 1.0, 0.0, 2.0])))
    assert binned(jnp.ones(3), jnp.array([-2.0, 0.0, 1.0, 2.0])) == 0


def test_series_and_lists():
    x = [0.0, 1.0, 4.0]
    for held in (x, pd.Series(x), pd.Series([0, 1, 4], dtype="Int64"), np.array(x)):
        assert histogram.counts(held, [0, 2, 4], [1, 2, 3]).tolist() == [3, 3]
        assert histogram.counts(held, pd.Series([0, 2, 4])).tolist() == [2, 1]
        assert float(kl_of(held, a=pd.Series(x), b=x)) == 0
        np.testing.assert_array_equal(histogram.edges(held, held, num_bins=2), [0, 1, 4])
    assert float(histogram.bias(categorical.kl, [50, 50], np.array([50, 50]))) == pytest.approx(
        0.01
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: histogram.edges(x, x, num_bins=0),
            "num_bins must be an integer of at least 1; got 0",
        ),
        (lambda x: histogram.edges(x, x, spacing="log"), 'spacing must be "uniform" or "quantile"'),
        (lambda x: histogram.edges(x, x[:, :1]), "same number of features; got 2 and 1"),
        (lambda x: histogram.edges(x[:0], x), "x must be a non-empty matrix"),
        (lambda x: histogram.counts(x, jnp.arange(3.0)), "edges must have shape"),
        (lambda x: histogram.counts(x[:, 0], jnp.ones((2, 3))), "edges must have shape"),
        (
            lambda x: histogram.counts(x, jnp.ones((2, 3)), jnp.ones(2)),
            r"weights must have shape \(4,\)",
        ),
        (
            lambda x: histogram.counts(x, jnp.ones((2, 3)), -jnp.ones(4)),
            "weights must not be negative; got -1",
        ),
        (lambda x: histogram.edges(["a"], x[:, 0]), "x must hold real numbers"),
        (lambda x: histogram.counts(x[:, 0], [0, 2, 1, 3]), "edges must ascend"),
        (
            lambda x: histogram.counts(x[:, 0], [0.0, np.inf, np.inf]),
            "edges must ascend, and be fin",
        ),
        (
            lambda x: histogram.counts(x[:, 0], [-np.inf, -np.inf, 1]),
            "edges must ascend, and be fin",
        ),
        (lambda x: histogram.counts(x, np.array([[0, 1, 2], [0, 2, 1]])), "edges must ascend"),
        (lambda x: kl_of(x[:, 0], bins=[-2, 1, 0, 2]), "bins must ascend"),
        (lambda x: kl_of(x, bins=np.array([0, 1, 2])), "bins must have shape"),
        (
            lambda x: kl_of(x, a=np.ones(3), debias=True),
            r"a must have shape \(4,\)",
        ),
        (lambda x: kl_of(x, b=-np.ones(4)), "b must not be negative"),
        (lambda x: kl_of(x, b=["a"] * 4), "b must hold real numbers"),
        (lambda x: histogram.bias(categorical.kl, x[0], x[0, :1]), "counts_q must have shape"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((4, 2)))


@pytest.mark.parametrize("num_bins", [3, 5, 7])
def test_a_quantile_that_is_a_value_is_exact(num_bins):
    """Every k-th of 45 + 1 ordered values: rounding of k/bins would put it into the bin below."""
    values = jnp.asarray(np.random.default_rng(0).normal(size=9 * num_bins + 1), jnp.float32)
    found = histogram.edges(values[:11], values[11:], num_bins=num_bins)
    np.testing.assert_array_equal(found, np.sort(np.asarray(values))[::9])
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=37)
        expected = np.quantile(x, np.linspace(0, 1, num_bins + 1))
        np.testing.assert_allclose(
            histogram.edges(jnp.asarray(x[:9]), jnp.asarray(x[9:]), num_bins=num_bins),
            expected,
            rtol=1e-12,
            atol=1e-14,
        )


@pytest.mark.parametrize("spacing", ["quantile", "uniform"])
def test_bins_hold_the_extremes_of_numpys_numbers(spacing):
    """Whose rounding may lie inside of the sample."""
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=300)
        bounds = histogram.edges(x, x[:200], num_bins=4, spacing=spacing)
        assert histogram.counts(x, bounds).sum() == 300


@pytest.mark.parametrize("first", [np.int64(2**53), np.uint64(2**63)])
def test_integers_that_float64_lacks_are_counted(first):
    numbers = first + np.arange(8, dtype=first.dtype)
    bounds = first + np.arange(0, 9, 2, dtype=first.dtype)
    if first > 2**60:
        # Edges that float64 merges.
        bounds = first + 4096 * np.arange(0, 9, 2, dtype=first.dtype)
        numbers = first + 4096 * np.arange(8, dtype=first.dtype)
    np.testing.assert_array_equal(histogram.counts(numbers, bounds), [2, 2, 2, 2])


FAR = {
    "integers": (
        1_700_000_000_000_000_000 + np.arange(8),
        1_700_000_000_000_000_000 + np.arange(0, 9, 4),
    ),
    "float64": (1e16 + 2 * np.arange(8.0), 1e16 + 2 * np.arange(0.0, 9.0, 4.0)),
    "near zero": (1e-40 * np.arange(8.0), 1e-40 * np.arange(0.0, 9.0, 4.0)),
    "mixed": (np.r_[-1e30, 1e-30 * np.arange(1.0, 7.0), 1e30], np.r_[-np.inf, 3.5e-30, np.inf]),
}


@pytest.mark.parametrize("name", FAR)
def test_given_edges_are_compared_in_numpys_precision(name):
    """Four of eight points in each of two bins."""
    points, edges = FAR[name]
    np.testing.assert_array_equal(histogram.counts(points, edges), [4, 4])
    shifted = points[[4, 5, 6, 7, 4, 5, 6, 7]]
    found = histogram.divergence(categorical.total_variation, points, shifted, bins=edges)
    np.testing.assert_allclose(found, 0.5, rtol=1e-6)


@pytest.mark.parametrize("n", [4096, 1_000_000])
def test_sums_of_equal_weights_keep_the_precision_of_float32(n):
    """The weights are one tenth, which float32 rounds by less than 1e-7 of itself."""
    with jax.enable_x64(False):
        edges, weights = np.array([-1.0, 1.0]), np.full(n, 0.1, np.float32)
        count = histogram.counts(np.zeros(n, np.float32), edges, weights)[0]
    np.testing.assert_allclose(count, 0.1 * n, rtol=6e-6)
