"""The cross-entropy by neighbours against closed forms, SciPy's k-d tree, and leaving rows out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln

from divjax import fdiv, information
from divjax.fdiv.neighbor_estimates import rank_weights_by_dimension


def gaussians(n, m, d, seed=0, shift=0.5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) + shift, rng.normal(size=(m, d))


def by_tree(x, y, k, weights=None, b=None):
    """−log q at each x: with weights of the ranks, and of the rows of y."""
    m, d = y.shape
    weights = np.eye(k)[-1] if weights is None else weights
    distances, index = cKDTree(y).query(x, np.arange(1, k + 1))
    shares = np.cumsum((np.ones(m) if b is None else b)[index], axis=1)
    total = m if b is None else b.sum()
    ranks = np.arange(1, k + 1)
    log_volume = d / 2 * np.log(np.pi) - gammaln(d / 2 + 1) + digamma(m + 1)
    masses = np.log(shares / total) - np.log(ranks / m) + digamma(ranks)
    return (d * np.log(distances) - masses) @ weights + log_volume


@pytest.mark.exhaustive
@pytest.mark.parametrize(("d", "k", "bias_order"), [(1, 4, 0), (3, 4, 1)])
def test_it_is_the_tree_s(d, k, bias_order):
    x, y = gaussians(120, 80, d)
    weights = rank_weights_by_dimension(k, d, bias_order, extra=2)[-1]
    with jax.enable_x64(True):
        estimate = information.cross_entropy(x, y, k=k, bias_order=bias_order)
    np.testing.assert_allclose(estimate.value, by_tree(x, y, k, weights).mean(), rtol=1e-10)
    single = information.cross_entropy(np.float32(x + 1e3), np.float32(y + 1e3), k=k, bias_order=0)
    np.testing.assert_allclose(single.value, by_tree(x, y, k).mean(), rtol=1e-3)


@pytest.mark.parametrize(
    "weighted", [pytest.param(False, marks=pytest.mark.exhaustive), True], ids=["equal", "weighted"]
)
def test_the_standard_error_is_the_jackknife_s_by_leaving_rows_out(weighted):
    x, y = gaussians(30, 25, 2)
    rng = np.random.default_rng(1)
    a, b = (rng.uniform(0.5, 2, size=30), rng.uniform(0.5, 2, size=25)) if weighted else (1.0, 1.0)
    a, b = a * np.ones(30) / np.sum(a * np.ones(30)), b * np.ones(25)
    terms = by_tree(x, y, 4, b=b)
    of_y = [a @ by_tree(x, np.delete(y, j, 0), 4, b=np.delete(b, j)) for j in range(25)]
    of_x = a**2 @ (terms - a @ terms) ** 2 * 30 / 29
    variance = of_x + np.var(of_y, ddof=1) * 25
    given = (a, b) if weighted else (None, None)
    with jax.enable_x64(True):
        estimate = information.cross_entropy(x, y, *given, k=4, bias_order=0)
    np.testing.assert_allclose(estimate.value, a @ terms, rtol=1e-10)
    # Of x it is exact for equal weights, to first order in them otherwise.
    np.testing.assert_allclose(estimate.std_error, np.sqrt(variance), rtol=1e-10)


@pytest.mark.exhaustive
def test_rows_of_weight_zero_are_as_if_absent():
    x, y = gaussians(30, 25, 2)
    options = {"k": 4, "bias_order": 0}
    plain = information.cross_entropy(x, y, **options)
    x = np.vstack([x, [[np.nan, 1e18]] * 3])
    y = np.vstack([[[np.inf, 0.0]] * 2, y, [[0.1, 0.1]] * 3])
    a, b = np.repeat([2.0, 0.0], [30, 3]), np.repeat([0.0, 3.0, 0.0], [2, 25, 3])
    padded = information.cross_entropy(x, y, a, b, **options)
    np.testing.assert_allclose(padded.value, plain.value, rtol=1e-5)
    np.testing.assert_allclose(padded.std_error, plain.std_error, rtol=1e-4)
    np.testing.assert_allclose(padded.effective_sample_size, 30, rtol=1e-5)
    gradient = jax.grad(lambda x, y: information.cross_entropy(x, y, a, b, **options).value, (0, 1))
    of_x, of_y = gradient(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    assert jnp.isfinite(of_x).all()
    assert jnp.isfinite(of_y).all()
    assert not of_y[:2].any()
    # Of 25 rows of y three are left, less than the neighbours that are asked for.
    few = information.cross_entropy(x, y, a, b * (np.arange(30) < 5), **options)
    assert jnp.isnan(few.value)


@pytest.mark.parametrize("count", [10, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_padding_of_many_features_changes_nothing(count):
    """Copies of living rows in place of the dead ones span no more directions than those."""
    x, y = gaussians(count, count, 9)
    plain = information.cross_entropy(x, y, k=4, bias_order=0)
    assert jnp.isfinite(plain.value)
    dead = np.full((30, 9), np.nan)
    weights = np.repeat([1.0, 0.0], [count, 30])
    order = np.random.default_rng(2).permutation(count + 30)
    padded = information.cross_entropy(
        *(np.vstack([z, dead])[order] for z in (x, y)), *[weights[order]] * 2, k=4, bias_order=0
    )
    np.testing.assert_allclose(padded.value, plain.value, rtol=1e-5)
    np.testing.assert_allclose(padded.std_error, plain.std_error, rtol=1e-4)


def test_mass_on_fewer_rows_than_neighbours_has_no_interval():
    x, y = gaussians(30, 25, 2)
    b = np.ones(25)
    b[3] = 1e30
    found = information.cross_entropy(x, y, b=b, k=4, bias_order=0)
    assert jnp.isnan(found.std_error)
    assert not found.diagnostics.finite
    even = information.cross_entropy(x, y, b=np.ones(25), k=4, bias_order=0)
    assert even.diagnostics.finite


@pytest.mark.exhaustive
def test_it_is_entropy_plus_divergence():
    for n, m in ((81, 80), (60, 80)):
        x, y = gaussians(n, m, 2)
        with jax.enable_x64(True):
            both = information.cross_entropy(x, y, k=5, bias_order=0).value
            entropy, kl = information.entropy(x), fdiv.knn_kl(x, y, 5, bias_order=0)
        constant = digamma(m + 1) - digamma(n) - np.log(m / (n - 1))
        np.testing.assert_allclose(both - entropy.value - kl.value, constant, atol=1e-12)
        assert abs(constant) < 1e-12 or n != m + 1


SIZES = (30, 400, 500)
repeated = jax.jit(jax.vmap(lambda x, y, b: information.cross_entropy(x, y, b=b)))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("d", "shift"), [(1, 1.0), (2, 0.7), (3, 0.5)])
def test_gaussians_and_importance_weights(d, shift):
    """½ d log 2πe + ½ d shift², from samples of q, and from wider ones with weights."""
    repeats, n, m = SIZES
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(repeats, n, d)) + shift, rng.normal(size=(repeats, m, d))
    truth = d * (np.log(2 * np.pi) + 1 + shift**2) / 2
    for wide in (1.0, 1.5):
        log_weights = -0.5 * np.sum((wide**2 - 1) * y**2, axis=2)
        estimate = repeated(
            *(jnp.asarray(z, jnp.float32) for z in (x, wide * y, np.exp(log_weights)))
        )
        scores = (np.asarray(estimate.value) - truth) / np.asarray(estimate.std_error)
        # By the jackknife, which is conservative.
        assert np.mean(np.abs(scores) < 2) >= 0.93
        assert abs(scores.mean()) < 0.5
        assert scores.std() > 0.4


@pytest.mark.exhaustive
@pytest.mark.parametrize("d", [1, 2, 3])
def test_intervals_cover(d):
    """90 % intervals in 300 repetitions, n = m = 400: three standard errors below 90 % is 85 %."""
    truth = d * (np.log(2 * np.pi) + 1 + 0.5**2) / 2

    def estimate(key):
        x, y = jax.random.normal(key, (2, 400, d))
        return information.cross_entropy(x + 0.5, y, confidence_level=0.9)

    found = jax.lax.map(estimate, jax.random.split(jax.random.key(0), 300), batch_size=10)
    covered = (found.interval.lower <= truth) & (truth <= found.interval.upper)
    assert covered.mean() > 0.9 - 3 * np.sqrt(0.9 * 0.1 / 300)
    assert found.std_error.mean() < 1.6 * found.value.std(ddof=1)


@pytest.mark.exhaustive
def test_a_gaussian():
    x, y = gaussians(400, 500, 2, seed=4, shift=0.7)
    truth = np.log(2 * np.pi) + 1 + 0.7**2
    estimate = information.cross_entropy(x, y)
    assert abs(estimate.value - truth) < 3 * estimate.std_error
    assert estimate.std_error < 0.25


@pytest.mark.exhaustive
def test_copies_and_sets_of_lower_dimension():
    x, y = (np.float32(z) for z in gaussians(200, 200, 2))
    options = {"k": 4, "bias_order": 0}
    plain = information.cross_entropy(x, y, **options)
    assert plain.diagnostics.finite
    # A sample against itself, one with rows of the other, and one that is given twice.
    itself = information.cross_entropy(y, y, **options)
    mixed = information.cross_entropy(x, np.vstack([y[:190], x[:10]]), **options)
    twice = information.cross_entropy(x, np.vstack([y[:100], y[:100]]), **options)
    assert itself.diagnostics.zero_distances == 200
    assert mixed.diagnostics.zero_distances == 10
    assert twice.diagnostics.zero_distances == 0
    for estimate in (itself, mixed, twice):
        assert jnp.isnan(estimate.std_error)
    line = lambda z: np.column_stack([z[:, 0], z[:, 0]])
    assert information.cross_entropy(line(x), line(y), **options).value == -jnp.inf
    assert jnp.isnan(information.cross_entropy(x, line(y), **options).value)


def test_what_is_refused():
    x, y = gaussians(20, 10, 2)
    with pytest.raises(ValueError, match="k must be"):
        information.cross_entropy(x, y, k=10)
    with pytest.raises(ValueError, match="bias_order"):
        information.cross_entropy(x, y, k=4, bias_order=4)
    with pytest.raises(ValueError, match="features"):
        information.cross_entropy(x, y[:, :1], k=4)
    with pytest.raises(ValueError, match="b must"):
        information.cross_entropy(x, y, b=-np.ones(10), k=4)
