"""Densities against SciPy, scikit-learn, quadrature, brute force and tables."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import sklearn.neighbors

from divjax.information import density

KERNELS = {
    "gaussian": density.GaussianKernel(),
    "epanechnikov": density.EpanechnikovKernel(),
    "biweight": density.BiweightKernel(),
}


def rows(seed, n, d):
    return np.random.default_rng(seed).normal(size=(n, d))


def by_hand(z, x, h, kernel, weights=None):
    """The sum over samples from the definition, in one line a kernel, for a bandwidth h."""
    d = x.shape[1]
    u = np.sum(((z[:, None] - x) / h) ** 2, axis=2)
    ball = np.pi ** (d / 2) / scipy.special.gamma(d / 2 + 1)
    inside = np.maximum(1 - u, 0)
    profile = {
        "gaussian": np.exp(-u / 2) / (2 * np.pi) ** (d / 2),
        "epanechnikov": inside * (d + 2) / (2 * ball),
        "biweight": inside**2 * (d + 2) * (d + 4) / (8 * ball),
    }[kernel]
    return np.average(profile, axis=1, weights=weights) / np.prod(np.broadcast_to(h, d))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_weighted_mean_of_kernels(kernel, weighted):
    x, z = rows(0, 20, 3), rows(1, 7, 3)
    weights = np.random.default_rng(2).uniform(size=20) if weighted else None
    h = np.array([1.7, 2.0, 2.5])
    expected = by_hand(z, x, h, kernel, weights)
    assert (expected > 0).all()
    for dtype, rtol in ((np.float32, 2e-5), (np.float64, 1e-12)):
        with jax.enable_x64(dtype == np.float64):
            found = density.log_density(z, x, weights, bandwidth=h, kernel=KERNELS[kernel])
        assert found.dtype == dtype
        np.testing.assert_allclose(np.exp(found), expected, rtol=rtol)


@pytest.mark.parametrize("rule", ["scott", "silverman"])
def test_scipy(rule):
    """SciPy's bandwidth is a factor times the whole covariance matrix."""
    x, z = rows(3, 50, 2) @ np.array([[1.0, 0.6], [0.0, 0.5]]), rows(4, 9, 2)
    weights = np.random.default_rng(5).uniform(size=50)
    peer = scipy.stats.gaussian_kde(x.T, bw_method=rule, weights=weights)
    ours = {"scott": density.Scott(), "silverman": density.Silverman()}[rule]
    with jax.enable_x64(True):
        found = density.log_density(z, x, weights, bandwidth=peer.covariance)
        bandwidth = ours(x, weights)
    np.testing.assert_allclose(found, peer.logpdf(z.T), rtol=1e-10)
    np.testing.assert_allclose(bandwidth, np.sqrt(np.diag(peer.covariance)), rtol=1e-10)


@pytest.mark.parametrize("kernel", ["gaussian", "epanechnikov"])
def test_scikit_learn(kernel):
    x, z = rows(6, 50, 2), rows(7, 9, 2)
    peer = sklearn.neighbors.KernelDensity(kernel=kernel, bandwidth=0.9).fit(x)
    with jax.enable_x64(True):
        found = density.log_density(z, x, bandwidth=0.9, kernel=KERNELS[kernel])
    np.testing.assert_allclose(found, peer.score_samples(z), rtol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_kernels_have_the_moments_they_state(kernel, d):
    """Integral one, the variance and ∫ K², by quadrature over the radius."""
    k = KERNELS[kernel]
    r = np.linspace(0, 12 if kernel == "gaussian" else 1, 20_001)
    with jax.enable_x64(True):
        value = np.exp(np.asarray(k.log_profile(jnp.asarray(r**2))) + k.log_normalization(d))
    shell = 2 * np.pi ** (d / 2) / scipy.special.gamma(d / 2) * r ** (d - 1)
    integral = lambda f: scipy.integrate.simpson(f * shell, x=r)
    np.testing.assert_allclose(integral(value), 1, rtol=1e-6)
    np.testing.assert_allclose(k.variance(d), integral(value * r**2) / d, rtol=1e-6)
    np.testing.assert_allclose(math.exp(k.log_roughness(d)), integral(value**2), rtol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_estimates_integrate_to_one(kernel):
    x = rows(8, 15, 1)
    grid = np.linspace(-8, 8, 4001)[:, None]
    found = density.log_density(grid, x, bandwidth=0.7, kernel=KERNELS[kernel])
    np.testing.assert_allclose(np.trapezoid(np.exp(found), grid[:, 0]), 1, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["gaussian", "biweight"])
def test_gradients_equal_differences(kernel):
    """In the points, the samples, the bandwidth and the weights, at a coincident point too."""
    x, z = rows(9, 12, 2), rows(10, 4, 2)
    z[0] = x[0]
    point = {"z": z, "x": x, "h": np.array([2.5, 2.8]), "w": np.full(12, 1.0)}

    def total(point):
        logs = density.log_density(
            point["z"], point["x"], point["w"], bandwidth=point["h"], kernel=KERNELS[kernel]
        )
        return jnp.sum(jnp.cos(jnp.arange(4)) * logs)

    with jax.enable_x64(True):
        point = jax.tree.map(jnp.asarray, point)
        function = jax.jit(total)
        gradient = jax.jit(jax.grad(total))(point)
        rng = np.random.default_rng(11)
        for name in point:
            direction, step = rng.normal(size=point[name].shape), 1e-5
            ends = [
                function({**point, name: point[name] + sign * step * direction}) for sign in (1, -1)
            ]
            slope = np.sum(gradient[name] * direction)
            np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


def test_the_gradient_of_a_rules_bandwidth_is_zero():
    x = jnp.asarray(rows(12, 12, 2), jnp.float32)
    fixed = density.Silverman()(x)
    by_rule = jax.grad(lambda x: density.log_density(x[:1], x, bandwidth=density.Silverman())[0])
    at_fixed = jax.grad(lambda x: density.log_density(x[:1], x, bandwidth=fixed)[0])
    np.testing.assert_allclose(by_rule(x), at_fixed(x), rtol=1e-5, atol=1e-6)


def test_far_points_and_clusters_keep_their_digits():
    """No underflow far away, and distances within clusters far apart in many features."""
    x = rows(13, 40, 16)
    far = np.full((1, 16), 30.0)
    with jax.enable_x64(True):
        expected = density.log_density(far, x, bandwidth=0.5)
    found = density.log_density(far, x, bandwidth=0.5)
    assert float(found[0]) < -1000
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    clusters = x * 1e-2
    clusters[20:] += 100
    with jax.enable_x64(True):
        expected = density.log_density(clusters, clusters, bandwidth=0.02)
    found = density.log_density(clusters, clusters, bandwidth=0.02)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_out_of_the_support():
    kernel = density.EpanechnikovKernel()
    log_p = lambda z: density.log_density(z, jnp.zeros((3, 2)), bandwidth=1.0, kernel=kernel)[0]
    value, gradient = jax.value_and_grad(log_p)(jnp.array([[2.0, 0.0]]))
    assert value == -np.inf
    assert (gradient == 0).all()


def criteria_by_hand(x, h, weights):
    """The likelihood and the squared error, leaving one out, from the definitions."""
    w = weights / weights.sum()
    normal = lambda s: (
        np.exp(-np.sum(((x[:, None] - x) / s) ** 2, axis=2) / 2) / np.prod(np.sqrt(2 * np.pi) * s)
    )
    others = normal(h) * (1 - np.eye(len(x)))
    left_out = others @ w / (1 - w)
    with np.errstate(divide="ignore"):
        return -w @ np.log(left_out), w @ normal(h * np.sqrt(2)) @ w - 2 * w @ left_out


@pytest.mark.parametrize("which", [0, 1])
def test_cross_validation_minimises_its_criterion(which):
    """Along the multiples of Scott's bandwidths."""
    x = rows(14, 30, 2) * np.array([1.0, 5.0])
    x[::2] += np.array([4.0, 0.0])
    weights = np.random.default_rng(15).uniform(0.5, 1.5, size=30)
    rule = (density.LikelihoodCrossValidation(), density.LeastSquaresCrossValidation())[which]
    with jax.enable_x64(True):
        reference = np.asarray(density.Scott()(x, weights))
        found = np.asarray(rule(x, weights))
    factors = found / reference
    np.testing.assert_allclose(factors, factors[0])
    criterion = lambda c: criteria_by_hand(x, c * reference, weights)[which]
    scales = np.geomspace(0.05, 3.9, 40)
    values = [criterion(c) for c in scales]
    best = int(np.argmin(values))
    exact = scipy.optimize.minimize_scalar(
        criterion, bracket=(scales[best - 1], scales[best], scales[best + 1])
    ).x
    np.testing.assert_allclose(factors[0], exact, rtol=2e-3)


def test_likelihood_cross_validation_of_a_compact_kernel():
    """The bandwidth maximises the likelihood of each row by the others, by brute force."""
    x = rows(17, 60, 1)
    kernel = density.EpanechnikovKernel()
    with jax.enable_x64(True):
        found = float(density.LikelihoodCrossValidation()(x, kernel=kernel)[0])

    def deviance(h):
        height = np.maximum(1 - ((x - x.T) / h) ** 2, 0)
        np.fill_diagonal(height, 0)
        with np.errstate(divide="ignore"):
            return -np.log(height.sum(1) / h).mean()

    widths = np.linspace(0.3, 4, 2000)
    best = min(map(deviance, widths))
    assert np.isfinite(best)
    # The likelihood has several maxima where rows leave the support of others.
    assert deviance(found) < best + 5e-3


def test_cross_validation_without_a_minimum_is_flagged():
    """Copies of rows ask for a bandwidth of zero."""
    x = np.repeat(rows(16, 10, 2), 2, axis=0)
    for rule in (density.LikelihoodCrossValidation(), density.LeastSquaresCrossValidation()):
        assert np.isnan(rule(x)).all()
        assert np.isnan(density.log_density(x, x, bandwidth=rule)).all()


def test_rules_of_other_kernels_smooth_as_much():
    """Silverman's table 4.1 has the constants of the Epanechnikov kernel."""
    n, deviation = 100, 1.3
    for d in (1, 2, 3):
        x = rows(17, n, d)
        x *= deviation / x.std(axis=0, ddof=1)
        ball = np.pi ** (d / 2) / scipy.special.gamma(d / 2 + 1)
        constant = (8 / ball * (d + 4) * (2 * np.sqrt(np.pi)) ** d) ** (1 / (d + 4))
        found = density.Silverman()(x, kernel=density.EpanechnikovKernel())
        np.testing.assert_allclose(found, deviation * constant * n ** (-1 / (d + 4)), rtol=1e-5)


def test_constant_features_and_single_rows_have_no_bandwidth():
    x = rows(18, 10, 2)
    x[:, 1] = 3
    found = np.asarray(density.Scott()(x))
    assert np.isfinite(found[0])
    assert np.isnan(found[1])
    assert np.isnan(density.Silverman()(x[:1])).all()
    assert np.isnan(density.log_density(x, x)).all()


# α, h_CLT, h_G, the KL optimum: roots of the equations by bisection to four digits.
TABLE = [
    (0.05, 2.4509, 1.7331, 1.1459),
    (0.1, 1.9386, 1.3708, 1.0386),
    (0.2, 1.4788, 1.0457, 0.8917),
    (0.3, 1.2272, 0.8677, 0.7836),
    (0.5, 0.9223, 0.6522, 0.6224),
    (1, 0.5262, 0.3721, 0.3693),
    (2, 0.1914, 0.1354, 0.1354),
]


@pytest.mark.parametrize(("alpha", "central", "condensed", "best"), TABLE)
def test_regimes(alpha, central, condensed, best):
    np.testing.assert_allclose(density.central_limit_bandwidth(alpha), central, atol=6e-5)
    np.testing.assert_allclose(density.condensation_bandwidth(alpha), condensed, atol=6e-5)
    np.testing.assert_allclose(density.kl_optimal_bandwidth(alpha), best, atol=6e-5)


def test_regimes_solve_their_equations():
    alphas = np.geomspace(1e-4, 300, 30)
    with jax.enable_x64(True):
        h, g = density.central_limit_bandwidth(alphas), density.condensation_bandwidth(alphas)
        slope = jax.vmap(jax.grad(density.condensation_bandwidth))(jnp.asarray(alphas))
        near = density.condensation_bandwidth(alphas * (1 + 1e-6))
    h, g, slope, near = map(np.asarray, (h, g, slope, near))
    h2, g2 = h**2, g**2
    np.testing.assert_allclose(np.log1p(2 / h2) / 2 - h2 / (2 + h2) ** 2, alphas, rtol=1e-8)
    np.testing.assert_allclose(np.log1p(1 / g2) / 2 - g2 / (1 + g2) ** 2 / 2, alphas, rtol=1e-8)
    np.testing.assert_allclose(slope, (near - g) / (1e-6 * alphas), rtol=1e-3)


def test_the_optimum_is_the_minimum_of_the_divergence():
    with jax.enable_x64(True):
        for alpha in (0.05, 0.3, 1.0):
            best = density.kl_optimal_bandwidth(alpha)
            slope = jax.grad(density.kl_per_dimension)(best, alpha)
            np.testing.assert_allclose(slope, 0, atol=1e-10)
            grid = np.geomspace(0.05, 5, 400)
            values = np.asarray(density.kl_per_dimension(grid, alpha))
            assert (values >= density.kl_per_dimension(best, alpha)).all()
            # One function, with one derivative, across the condensation.
            edge = density.condensation_bandwidth(alpha)
            sides = [
                jax.grad(density.kl_per_dimension)(edge * s, alpha) for s in (1 - 1e-9, 1 + 1e-9)
            ]
            np.testing.assert_allclose(*sides, rtol=1e-6)


@pytest.mark.exhaustive
def test_the_divergence_of_large_samples():
    """n = 8103 in d = 30, α = 0.3, above h_CLT, where corrections for finite d are small."""
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(8103, 30)), rng.normal(size=(2000, 30))
    for h in (1.4, 1.6):
        log_p = scipy.stats.norm.logpdf(z).sum(axis=1)
        kl = np.mean(log_p - np.asarray(density.log_density(z, x, bandwidth=h)))
        np.testing.assert_allclose(kl / 30, density.kl_per_dimension(h, 0.3), rtol=0.02)


def test_knn_log_density_by_hand():
    x, z, k = rows(19, 40, 3), rows(20, 6, 3), 5
    distances = np.sort(np.linalg.norm(z[:, None] - x, axis=2), axis=1)[:, k - 1]
    volume = 4 / 3 * np.pi * distances**3
    expected = scipy.special.digamma(k) - scipy.special.digamma(41) - np.log(volume)
    with jax.enable_x64(True):
        found = density.knn_log_density(z, x, k=k)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_knn_log_density_is_unbiased_for_a_constant_density():
    """Repeated samples, at the middle of a square, with variance ψ′(k) − ψ′(n + 1)."""
    x = jnp.asarray(np.random.default_rng(21).uniform(size=(4000, 100, 2)), jnp.float32)
    z, k = jnp.full((1, 2), 0.5), 4
    found = np.asarray(jax.jit(jax.vmap(lambda x: density.knn_log_density(z, x, k=k)[0]))(x))
    variance = scipy.special.polygamma(1, k) - scipy.special.polygamma(1, 101)
    assert abs(found.mean()) < 3 * np.sqrt(variance / 4000)
    np.testing.assert_allclose(found.var(), variance, rtol=0.1)


def test_knn_log_density_at_coincident_samples():
    x = np.zeros((5, 2))
    assert density.knn_log_density(x[:1], x, k=2)[0] == np.inf
    assert np.isnan(density.knn_log_density([[np.nan, 0.0]], x, k=2)[0])


def neighbor_distribution_by_hand(z, x, labels, v, k, temperature):
    squared = np.sum((z[:, None] - x) ** 2, axis=2)
    p = np.zeros((len(z), v))
    for i, row in enumerate(squared):
        for j in np.argsort(row)[:k]:
            p[i, labels[j]] += np.exp(-row[j] / temperature)
    return p / p.sum(axis=1, keepdims=True)


def test_nearest_neighbor_distribution_by_hand():
    x, z = rows(22, 30, 4), rows(23, 6, 4)
    z[0] = x[0]
    labels = np.random.default_rng(24).integers(0, 5, size=30)
    model = np.random.default_rng(25).dirichlet(np.ones(5), size=6)
    expected = neighbor_distribution_by_hand(z, x, labels, 5, 8, 0.7)
    with jax.enable_x64(True):
        options = {"k": 8, "temperature": 0.7}
        found = density.nearest_neighbor_distribution(z, x, labels, 5, **options)
        mixed = density.nearest_neighbor_distribution(
            z, x, labels, 5, model=model, share=0.4, **options
        )
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(mixed, 0.4 * expected + 0.6 * model, rtol=1e-10)


def test_nearest_neighbor_distribution_far_away():
    """Differences of squared distances count, which underflow none of the masses."""
    x = np.array([[0.0], [1e-3]])
    p = density.nearest_neighbor_distribution([[100.0]], x, [0, 1], 2, k=2)
    np.testing.assert_allclose(p[0, 0] / p[0, 1], np.exp(-0.2), rtol=1e-2)


def test_inputs():
    x = rows(26, 10, 2)
    for bandwidth in (0.0, -1.0, np.array([1.0, 0.0])):
        with pytest.raises(ValueError, match="bandwidth must be"):
            density.log_density(x, x, bandwidth=bandwidth)
    with pytest.raises(ValueError, match=r"of shape \(\), \(2,\) or \(2, 2\); got shape \(3,\)"):
        density.log_density(x, x, bandwidth=np.ones(3))
    with pytest.raises(ValueError, match="kernel must be a smoothing kernel"):
        density.log_density(x, x, kernel="gaussian")
    with pytest.raises(ValueError, match="for least squares; got BiweightKernel"):
        density.LeastSquaresCrossValidation()(x, kernel=density.BiweightKernel())
    with pytest.raises(ValueError, match="k must be at most the number of samples, 10"):
        density.knn_log_density(x, x, k=11)
    with pytest.raises(ValueError, match="labels must be from 0 to 1"):
        density.nearest_neighbor_distribution(x, x, np.full(10, 2), 2)
    with pytest.raises(ValueError, match="labels must have shape"):
        density.nearest_neighbor_distribution(x, x, np.zeros(9, int), 2)
    with pytest.raises(ValueError, match="alpha must be positive"):
        density.condensation_bandwidth(-1.0)
    not_definite = density.log_density(x, x, bandwidth=np.diag([1.0, -1.0]))
    assert np.isnan(not_definite).all()


def test_own_rules_and_kernels():
    """A rule is any function; its matrix is the kernel's covariance."""
    x = rows(27, 20, 2)
    rule = lambda x, weights, kernel: jnp.cov(x.T)
    found = density.log_density(x, x, bandwidth=rule)
    np.testing.assert_allclose(found, density.log_density(x, x, bandwidth=np.cov(x.T)), rtol=1e-4)
