"""Nearest-neighbour estimates against closed forms, SciPy's k-d tree, and leaving points out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.spatial import cKDTree

from divjax.fdiv import knn, neighbor_estimates, neighbor_search

jit_kl = jax.jit(knn.knn_kl, static_argnames=("k", "bias_order"))


def gaussians(d, n, m, seed=0, shift=0.3, scale=1.0):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(n, d)) + shift, rng.normal(size=(m, d))


def distances(x, y, k):
    """Distances of each x to its first k neighbours among the other x, and in y."""
    return cKDTree(x).query(x, np.arange(2, k + 2))[0], cKDTree(y).query(x, np.arange(1, k + 1))[0]


def tree_kl(x, y, k):
    (n, d), m = x.shape, len(y)
    rho, nu = distances(x, y, k)
    return d * np.mean(np.log(nu[:, -1] / rho[:, -1])) + np.log(m / (n - 1))


@pytest.mark.parametrize(
    ("d", "dtype", "rtol"),
    [
        (1, np.float64, 1e-10),
        (3, np.float64, 1e-10),
        (12, np.float64, 1e-10),
        (12, np.float32, 1e-4),
    ],
)
def test_kl_is_the_trees(d, dtype, rtol):
    for offset in (0.0, 1000.0):
        # float32 rounds points at 1000 to 6e-5: the tree is given the rounded ones.
        x, y = ((a + offset).astype(dtype) for a in gaussians(d, 200, 150))
        with jax.enable_x64(True):
            estimate = jit_kl(jnp.asarray(x), jnp.asarray(y), k=4, bias_order=0)
            estimate = jax.tree.map(np.asarray, estimate)
        expected = tree_kl(x.astype(np.float64), y.astype(np.float64), 4)
        np.testing.assert_allclose(estimate.value, expected, rtol=rtol)
        np.testing.assert_allclose(np.mean(estimate.diagnostics.log_ratios), expected, rtol=rtol)
        assert estimate.value.dtype == estimate.std_error.dtype == dtype
        assert estimate.diagnostics.finite
        assert estimate.diagnostics.zero_distances == 0


def test_weighted_neighbours_are_the_trees_and_their_weights_cancel_the_bias():
    d, k, order = 4, 6, 2
    x, y = gaussians(d, 200, 150)
    weights = neighbor_estimates.rank_weights_by_dimension(k, d, order, extra=2)[-1]
    # Σ w = 1, and Σ w E[U^(2l/(d + 2))] = 0 for U ~ Gamma(j, 1), the law of n P(ball) in the limit.
    moments = [
        [scipy.stats.gamma(j).expect(lambda u, p=2 * l / (d + 2): u**p) for j in range(1, k + 1)]
        for l in range(order + 1)
    ]
    np.testing.assert_allclose(moments @ weights, [1, 0, 0], atol=1e-6)
    rho, nu = distances(x, y, k)
    expected = d * np.mean(np.log(nu / rho) @ weights) + np.log(150 / 199)
    with jax.enable_x64(True):
        estimate = jit_kl(jnp.asarray(x), jnp.asarray(y), k=k, bias_order=order)
    np.testing.assert_allclose(estimate.value, expected, rtol=1e-10)


# x ~ N(shift, scale² I), y ~ N(0, I): KL = d (scale² − 1 + shift²)/2 − d log scale.
CASES = [
    (1, 1.0, 1.0, 3, 0),
    (1, 0.0, 0.1, 3, 0),
    (2, 0.5, 1.0, 3, 0),
    (2, 0.3, 0.7, 3, 0),
    (2, 0.3, 0.7, 10, 1),
    (5, 0.4, 1.0, 3, 0),
    (5, 0.4, 1.0, 10, 1),
]
jit_repeated = jax.jit(
    lambda x, y, k, bias_order: jax.vmap(lambda x, y: knn.knn_kl(x, y, k, bias_order=bias_order))(
        x, y
    ),
    static_argnums=(2, 3),
)


@pytest.mark.parametrize(("d", "shift", "scale", "k", "bias_order"), CASES)
def test_the_kl_of_gaussians_and_its_standard_error(d, shift, scale, k, bias_order):
    """Over 40 repetitions, by which a standard deviation is known to 11 %."""
    truth = d * (scale**2 - 1 + shift**2) / 2 - d * np.log(scale)
    draws = [gaussians(d, 400, 600, seed, shift, scale) for seed in range(40)]
    x, y = (np.stack(a) for a in zip(*draws, strict=True))
    with jax.enable_x64(True):  # in one dimension float32 points collide now and then
        estimate = jit_repeated(jnp.asarray(x), jnp.asarray(y), k, bias_order)
    estimate = jax.tree.map(np.asarray, estimate)
    spread = estimate.value.std(ddof=1)
    if d == 5 and bias_order == 0:
        assert estimate.value.mean() < 0.9 * truth  # the bias that the weights are for
    else:
        assert abs(estimate.value.mean() - truth) < 4 * spread / np.sqrt(40) + 0.01 * truth
    # Cautious; the log-ratios' own is not.
    assert 0.8 * spread < estimate.std_error.mean() < 2.2 * spread
    if scale == 0.1:
        naive = estimate.diagnostics.log_ratios.std(axis=1, ddof=1) / np.sqrt(400)
        assert naive.mean() < 0.7 * spread


def test_the_standard_error_is_the_jackknife_by_leaving_points_out():
    x, y = gaussians(2, 30, 25)
    k = 4
    without_x = [tree_kl(np.delete(x, i, axis=0), y, k) for i in range(30)]
    without_y = [tree_kl(x, np.delete(y, j, axis=0), k) for j in range(25)]
    variance = sum(
        # The statistic's own mean factors: (n − 1)² var(T₋ᵢ)/n, and (m/(m−1))² of the usual.
        np.var(left_out, ddof=1) * factor
        for left_out, factor in ((without_x, 29**2 / 30), (without_y, 25))
    )
    with jax.enable_x64(True):
        estimate = jit_kl(jnp.asarray(x), jnp.asarray(y), k=k, bias_order=0)
    np.testing.assert_allclose(estimate.std_error, np.sqrt(variance), rtol=1e-10)


def test_half_of_the_correction_is_in_the_standard_error():
    x, y = gaussians(2, 30, 25)
    k, weights = 4, neighbor_estimates.rank_weights_by_dimension(4, 2, 1, extra=2)[1]

    def tree(x, y, weights):
        rho, nu = distances(x, y, k)
        return 2 * np.mean(np.log(nu / rho) @ weights) + np.log(len(y) / (len(x) - 1))

    without_x = [tree(np.delete(x, i, axis=0), y, weights) for i in range(30)]
    without_y = [tree(x, np.delete(y, j, axis=0), weights) for j in range(25)]
    variance = np.var(without_x, ddof=1) * 29**2 / 30 + np.var(without_y, ddof=1) * 25
    correction = tree(x, y, weights) - tree(x, y, np.full(k, 1 / k))
    with jax.enable_x64(True):
        estimate = jit_kl(jnp.asarray(x), jnp.asarray(y), k=k, bias_order=1)
    np.testing.assert_allclose(estimate.value, tree(x, y, weights), rtol=1e-10)
    np.testing.assert_allclose(
        estimate.std_error, np.sqrt(variance + correction**2 / 4), rtol=1e-10
    )


# x ~ N(shift e, I), y ~ N(0, I), e the first direction: KL = shift²/2.
COVERED = [(1, 2000, 2.0), (1, 60, 1.0), (2, 200, 1.0), (3, 200, 1.0)]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("d", "m", "shift"), COVERED)
def test_intervals_hold_the_truth(d, m, shift):
    """Of 150 intervals of nominally 95 % at least 90 % in tails that few samples reach."""

    def interval(key):
        key_x, key_y = jax.random.split(key)
        x = jax.random.normal(key_x, (2000, d)).at[:, 0].add(shift)
        return knn.knn_kl(x, jax.random.normal(key_y, (m, d))).interval

    keys = jax.random.split(jax.random.key(11), 150)
    low, high = jax.jit(lambda keys: jax.lax.map(interval, keys))(keys)
    held = jnp.mean((low <= shift**2 / 2) & (shift**2 / 2 <= high))
    assert held >= 0.9
    # Not by saying nothing.
    assert jnp.median(high - low) < max(shift**2 / 2, 1)


def standard(n, m, d=2, seed=5):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    x[:, 0] += 1
    return rng, x.astype(np.float32), y.astype(np.float32)


@pytest.mark.parametrize(
    "column",
    [
        lambda z, rng: np.full(len(z), 0.1, np.float32),
        lambda z, rng: z[:, 0],
        lambda z, rng: 3 * z[:, 0] - z[:, 1] + 2,
        lambda z, rng: (rng.random(len(z)) < 0.5).astype(np.float32),
    ],
    ids=["constant", "copy", "sum", "binary"],
)
def test_columns_without_a_density_of_their_own_change_nothing(column):
    """The truth stays ½; as if of three dimensions it was half as much again."""
    rng, x, y = standard(800, 800)
    wide = [np.column_stack([z, column(z, rng)]) for z in (x, y)]
    plain, estimate = jit_kl(x, y), jit_kl(*wide)
    assert estimate.diagnostics.dimension == 2
    assert estimate.diagnostics.finite
    assert abs(estimate.value - 0.5) < 2 * estimate.std_error
    # The copy and the sum change distances, the binary column halves the samples.
    assert abs(estimate.value - plain.value) < 2 * plain.std_error
    assert estimate.std_error < 2 * plain.std_error


def test_a_binary_column_counts_by_its_levels():
    """KL of the levels' shares, .9 against .5, on top of the other columns' ½."""
    rng, x, y = standard(1000, 1000)
    levels = [(rng.random(1000) < share).astype(np.float32) for share in (0.9, 0.5)]
    estimate = jit_kl(*(np.column_stack(pair) for pair in zip((x, y), levels, strict=True)))
    truth = 0.5 + 0.9 * np.log(1.8) + 0.1 * np.log(0.2)
    assert abs(estimate.value - truth) < 2 * estimate.std_error
    assert estimate.std_error < 0.2


def test_samples_side_by_side_or_of_other_dimension_have_no_value():
    """The truth is infinite, and the distances' logarithms are not."""
    rng, x, y = standard(300, 300)
    copy = lambda z, shift: np.column_stack([z, z[:, 0] + shift])
    noise = np.column_stack([y, rng.normal(size=300)]).astype(np.float32)
    constants = [np.column_stack([z, np.full(300, c, np.float32)]) for z, c in ((x, 0), (y, 1))]
    for pair in ((copy(x, 0), copy(y, 5)), (copy(x, 0), noise), (noise, copy(x, 0)), constants):
        estimate = jit_kl(*pair)
        assert jnp.isnan(estimate.value)
        assert jnp.isnan(estimate.std_error)
        assert not estimate.diagnostics.finite


def test_disjoint_supports_show():
    """The truth is infinite, and no sample of q says how thin its density is between squares."""
    x, y = np.random.default_rng(0).random((2, 300, 2)).astype(np.float32)
    assert jit_kl(x, y + 2).diagnostics.beyond_log_n
    assert not jit_kl(*gaussians(2, 300, 300)).diagnostics.beyond_log_n


def test_copied_rows_show_at_every_rank():
    _, x, y = standard(200, 200)
    for a, b, copies in (
        (np.vstack([x, x]), np.vstack([y, y]), 400),
        (x, np.vstack([y[:190], x[:10]]), 10),
        (np.vstack([x, x[:20]]), y, 40),
    ):
        estimate = jit_kl(a, b)
        assert estimate.diagnostics.zero_distances == copies
        assert not estimate.diagnostics.finite
        assert jnp.isnan(estimate.std_error)
        assert jnp.sum(jnp.isnan(estimate.diagnostics.log_ratios)) == copies
    # One pair that coincides, as float32 makes now and then in one dimension, is chance.
    estimate = jit_kl(np.vstack([x, x[:1]]), y)
    assert estimate.diagnostics.zero_distances == 2
    assert estimate.diagnostics.finite
    assert jnp.isfinite(estimate.std_error)


def test_a_quantised_column_has_no_interval():
    _, x, y = standard(500, 500)
    rounded = [np.column_stack([z[:, :1], np.round(z[:, 1:], 1)]) for z in (x, y)]
    estimate = jit_kl(*rounded)
    assert 0.05 < estimate.diagnostics.ties < 0.95
    assert jnp.isnan(estimate.std_error)


def test_far_points_leave_the_others_neighbours_alone():
    x, y = gaussians(2, 200, 150)
    with jax.enable_x64(True):
        for dtype, far in ((jnp.float64, 1e19), (jnp.float32, 1e6), (jnp.float32, 1e19)):
            a, b = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
            plain = jit_kl(a, b, k=4).diagnostics.log_ratios
            moved = jit_kl(a.at[0].set(far), b, k=4).diagnostics.log_ratios
            changed = ~np.isclose(plain, moved, rtol=1e-4, atol=1e-4)
            # Those that row 0 was a neighbour of.
            assert changed.sum() < 15
            assert jnp.isfinite(moved).all()


@pytest.mark.parametrize("d", [3, 10])
def test_clusters_far_apart_keep_their_neighbours(d):
    """In float32, where products of matrices have no digits of the distances within a cluster."""
    x, y = gaussians(d, 300, 250)
    x[::2] += 2.0**13
    y[::2] += 2.0**13
    x, y = x.astype(np.float32), y.astype(np.float32)
    expected = tree_kl(x.astype(np.float64), y.astype(np.float64), 4)
    np.testing.assert_allclose(jit_kl(x, y, k=4, bias_order=0).value, expected, rtol=1e-4)


def test_an_offset_in_double_precision_is_no_loss():
    x, y = gaussians(2, 200, 150)
    plain, far = knn.knn_kl(x, y), knn.knn_kl(x + 123456789.0, y + 123456789.0)
    np.testing.assert_allclose(far.value, plain.value, rtol=1e-4)


def test_one_dimension_has_no_derivative():
    x, y = gaussians(1, 50, 40)
    with pytest.raises(ValueError, match="no useful derivative in one dimension"):
        jax.grad(lambda shift: knn.knn_kl(jnp.asarray(x) + shift, jnp.asarray(y)).value)(0.0)


def test_blocks_change_nothing(monkeypatch):
    x, y = gaussians(10, 40, 33)

    def value(x, y):
        estimate = knn.knn_kl(x, y, 3, bias_order=1)
        return estimate.value, estimate

    with jax.enable_x64(True):
        x, y = jnp.asarray(x), jnp.asarray(y)
        # A fresh function each time, or the second call would find the first one compiled.
        evaluate = lambda: jax.jit(
            jax.value_and_grad(lambda x, y: value(x, y), argnums=(0, 1), has_aux=True)
        )(x, y)
        dense = evaluate()
        monkeypatch.setattr("divjax.core.pairwise.BLOCK_ENTRIES_CPU", 40 * 6)
        blocked = evaluate()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), dense, blocked
    )


def test_blocks_do_not_hold_the_matrix():
    """50 000 points of 16 features: temporary memory stays far under n × m floats (10 GB)."""
    n, d = 50_000, 16
    x = jax.ShapeDtypeStruct((n, d), jnp.float32)
    for function in (
        lambda x, y: knn.knn_kl(x, y).value,
        jax.grad(lambda x, y: knn.knn_kl(x, y).value, argnums=(0, 1)),
    ):
        memory = jax.jit(function).lower(x, x).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 3e8


def test_invariances():
    """Permutation, rotation, shift and scale leave the estimate, and its flags, alone."""
    rng = np.random.default_rng(1)
    x, y = gaussians(3, 60, 50)
    rotation = scipy.stats.ortho_group.rvs(3, random_state=0)
    with jax.enable_x64(True):
        estimate = lambda x, y: jit_kl(jnp.asarray(x), jnp.asarray(y), k=4, bias_order=1)
        plain = estimate(x, y)
        order = rng.permutation(60)
        for a, b in (
            (x[order], y[rng.permutation(50)]),
            (x @ rotation, y @ rotation),
            (x + 7, y + 7),
            (1e100 * x, 1e100 * y),
            (1e-100 * x, 1e-100 * y),
        ):
            other = estimate(a, b)
            np.testing.assert_allclose(other.value, plain.value, rtol=1e-9)
            np.testing.assert_allclose(other.std_error, plain.std_error, rtol=1e-9)
            assert other.diagnostics.finite


def test_gradients_equal_differences():
    x, y = gaussians(10, 25, 20)
    with jax.enable_x64(True):
        point = (jnp.asarray(x), jnp.asarray(y))
        value = jax.jit(lambda point: knn.knn_kl(*point, k=3, bias_order=1).value)
        gradient = jax.jit(jax.grad(value))(point)
        rng = np.random.default_rng(2)
        direction = tuple(jnp.asarray(rng.normal(size=a.shape)) for a in point)
        step = 1e-6
        up, down = (
            value(jax.tree.map(lambda a, b, s=s: a + s * b, point, direction))
            for s in (step, -step)
        )
        product = sum(jnp.sum(a * b) for a, b in zip(gradient, direction, strict=True))
        np.testing.assert_allclose(product, (up - down) / (2 * step), rtol=1e-6)


def test_duplicates_are_counted_left_out_and_harmless_to_gradients():
    x, y = (jnp.asarray(a, jnp.float32) for a in gaussians(2, 30, 25))
    x = x.at[1].set(x[0])  # a zero distance between two x, for k = 1
    y = y.at[4].set(x[7])  # and one from x to y
    kl = lambda x, y: knn.knn_kl(x, y, 1, bias_order=0)
    value = jax.jit(jax.value_and_grad(lambda x, y: kl(x, y).value, (0, 1)))
    jit_first = jax.jit(kl)
    estimate = jit_first(x, y)
    assert not estimate.diagnostics.finite
    assert estimate.diagnostics.zero_distances == 3
    np.testing.assert_array_equal(
        np.flatnonzero(jnp.isnan(estimate.diagnostics.log_ratios)), [0, 1, 7]
    )
    np.testing.assert_allclose(
        estimate.value, np.nanmean(estimate.diagnostics.log_ratios), rtol=1e-5
    )
    assert jnp.isnan(estimate.std_error)
    for leaf in jax.tree.leaves(value(x, y)):
        assert jnp.isfinite(leaf).all()
    # A lattice has no density at all.
    lattice = jit_first(jnp.round(x), jnp.round(y))
    assert lattice.diagnostics.zero_distances > 15
    same = jit_first(jnp.ones_like(x), jnp.ones_like(y))
    assert same.diagnostics.zero_distances == 30
    assert jnp.isnan(same.value)


def test_what_is_not_a_number_shows():
    x, y = (jnp.asarray(a, jnp.float32) for a in gaussians(2, 30, 25))
    for pair in ((x.at[0, 0].set(jnp.nan), y), (x, y.at[0, 0].set(jnp.inf))):
        estimate = jit_kl(*pair)
        assert not estimate.diagnostics.finite
        assert jnp.isnan(estimate.value)
        assert jnp.isnan(estimate.std_error)


def test_copies_within_y_show():
    """They lower the value: a ball around x holds the copies of a row all at once."""
    x, y = (a.astype(np.float32) for a in gaussians(2, 200, 200))
    assert jit_kl(x, y).diagnostics.finite
    # By chance one row in two hundred, and as of a bootstrap.
    once = y.copy()
    once[0] = once[1]
    assert jit_kl(x, once).diagnostics.finite
    resampled = jit_kl(x, y[np.random.default_rng(0).integers(200, size=200)])
    assert jnp.isfinite(resampled.value)
    assert resampled.diagnostics.zero_distances == 0
    assert jnp.isnan(resampled.std_error)
    assert not resampled.diagnostics.finite


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: knn.knn_kl(x, x, 0), "k must be an integer from 1 to 4.* got 0"),
        (lambda x: knn.knn_kl(x, x, 5), "k must be an integer from 1 to 4"),
        (lambda x: knn.knn_kl(x, x[:3], 3), "k must be an integer from 1 to 2"),
        (lambda x: knn.knn_kl(x, x, 2.0), "k must be an integer"),
        (lambda x: knn.knn_kl(x, x, 2, bias_order=2), "bias_order must be an integer from 0"),
        (lambda x: knn.knn_kl(x, x[:, :1], 2), "same number of features; got 2 and 1"),
        (lambda x: knn.knn_kl(x, x, 1), "bias_order must be an integer from 0 to k − 1; got 1"),
        (lambda x: knn.knn_kl(x[0], x, 2), "x must be a matrix of shape"),
        (lambda x: knn.knn_kl(x, x[:0], 2), "y must be a non-empty matrix"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((6, 2)))


@pytest.mark.parametrize(
    ("d", "dtype", "near", "far"),
    [
        (2, np.float32, 30, 1.0),
        (2, np.float32, 40, 1.0),
        (2, np.float32, 40, 1e15),
        (12, np.float32, 30, 1.0),
        (12, np.float32, 40, 1.0),
        (2, np.float64, 2, 1.0),
    ],
)
def test_neighbours_far_below_the_extent(d, dtype, near, far):
    """Squares of their distances underflow, or those of the others overflow in units of them."""
    rng = np.random.default_rng(0)
    x = far * rng.normal(size=(60, d))
    x[:near] *= 1e-25 / far
    x = x.astype(dtype)
    wide = x.astype(np.float64)
    exact = np.linalg.norm(wide[:, None] - wide, axis=-1)
    np.fill_diagonal(exact, np.inf)
    with jax.enable_x64(dtype == np.float64):
        found = jax.jit(neighbor_search.nearest_points, static_argnums=2)(jnp.asarray(x), None, 5)
    assert found.usable.all()
    assert not found.zero.any()
    np.testing.assert_allclose(found.log_distances, np.log(np.sort(exact, axis=1)[:, :5]), 1e-5)
