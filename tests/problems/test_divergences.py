"""Tasks: their numbers against published ones, SciPy and quadrature; their draws against both."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
from scipy.stats import multivariate_normal, norm

from divjax import Normal, problems
from divjax.fdiv import gaussian
from divjax.problems import GaussianMixture
from divjax.problems import dependence as dep

LOG_2 = math.log(2)
KEY = jax.random.key(0)
MEANS, VARIANCES = np.array([[0.3, -0.2], [0.0, 0.5]]), np.array([[1.0, 0.4], [0.4, 0.7]])

TASKS = {
    "pair": lambda: problems.gaussian_pair(
        Normal(MEANS[0], VARIANCES), Normal(MEANS[1], 1.5 * VARIANCES[::-1, ::-1])
    ),
    "shift": lambda: problems.gaussian_shift(10, 1.0),
    "scale": lambda: problems.gaussian_scale(1, 0.1),
    "correlated": lambda: problems.correlated_gaussians(20, 5.0),
    "chasm": lambda: problems.chasm(0.7),
    "random": lambda: problems.random_gaussians(0),
    "mixture_pair": problems.mixture_pair,
    "fitted": lambda: problems.fitted_mixture(
        KEY, 50, lambda x: GaussianMixture(jnp.ones(1), x.mean(0)[None], jnp.cov(x.T)[None])
    ),
    "binormal": dep.binormal,
    "dense": lambda: dep.dense_gaussian(5, 5),
    "two_pairs": lambda: dep.two_pairs(3, 2),
    "student_t": lambda: dep.student_t(2, 3, 2.0),
    "cauchy": lambda: dep.student_t(1, 1, 1.0),
    "uniform": lambda: dep.additive_uniform(0.3),
    "wide uniform": lambda: dep.additive_uniform(0.75),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_draws_have_the_divergences(name):
    """Within 4.5 standard errors; and E_p[q/(p + q)] = E_q[p/(p + q)]."""
    task, n = TASKS[name](), 40_000
    p, q = task.sample(KEY, n)
    assert p.shape == q.shape == (n, task.dim)
    assert p.dtype == jnp.float32
    u_p, u_q = (np.asarray(jax.jit(task.log_ratio)(z), np.float64) for z in (p, q))
    assert np.isfinite(u_p).all()

    def check(value, *samples):
        error = math.sqrt(sum(np.var(s) / n for s in samples))
        assert abs(sum(np.mean(s) for s in samples) - value) < 4.5 * error + 1e-6

    check(task.kl, u_p)
    check(2 * (LOG_2 - task.js), np.logaddexp(0, -u_p), np.logaddexp(0, u_q))
    check(0, scipy.special.expit(-u_p), -scipy.special.expit(u_q))
    if math.isfinite(task.reverse_kl):
        check(task.reverse_kl, -u_q)
    assert 0 < task.js < LOG_2


@pytest.mark.parametrize(
    ("task", "kl"),
    [
        (lambda: problems.random_gaussians(0), 0.9682),
        (lambda: problems.random_gaussians(1), 0.9897),
        (lambda: problems.random_gaussians(2), 0.7799),
        (lambda: problems.random_gaussians(3), 1.0175),
        (lambda: problems.random_gaussians(4), 1.4195),
        (lambda: problems.correlated_gaussians(320, 80.0), 80),
        (lambda: problems.gaussian_scale(1, 1e-6), 13.3155),
        (lambda: problems.gaussian_pair(([-1], [[0.08**2]]), ([2], [0.15**2])), 200.27),
        (lambda: dep.binormal(0.75), 0.41334),
        (lambda: dep.dense_gaussian(2, 2), 0.29389),
        (lambda: dep.dense_gaussian(3, 3), 0.41334),
        (lambda: dep.dense_gaussian(5, 5), 0.59281),
        (lambda: dep.dense_gaussian(25, 25), 1.29218),
        (lambda: dep.dense_gaussian(50, 50), 1.62427),
        (lambda: dep.two_pairs(3, 3), 1.02165),
        (lambda: dep.student_t(1, 1, 1.0), 0.22417),
        (lambda: dep.student_t(2, 2, 1.0), 0.43195),
        (lambda: dep.student_t(2, 2, 2.0), 0.19315),
        (lambda: dep.student_t(3, 3, 2.0), 0.29092),
        (lambda: dep.student_t(3, 3, 3.0), 0.17871),
        (lambda: dep.student_t(5, 5, 2.0), 0.44815),
        (lambda: dep.student_t(5, 5, 3.0), 0.29854),
        (lambda: dep.additive_uniform(0.1), 1.70944),
        (lambda: dep.additive_uniform(0.75), 0.33333),
    ],
)
def test_kl_is_the_published(task, kl):
    np.testing.assert_allclose(task().kl, kl, rtol=2e-5, atol=6e-5)


@pytest.mark.parametrize("t", [0.8, 0.1])
def test_correlated_pairs_have_the_published_correlations(t):
    """20 + 20 features: 2, 4, …, 10 nats at ρ = .4258 … .7951."""
    nats, rhos = [2, 4, 6, 8, 10], [0.4258, 0.5742, 0.6717, 0.7421, 0.7951]
    for kl, rho in zip(nats, rhos, strict=True):
        task = problems.correlated_gaussians(40, float(kl))
        x, y = task.sample_pairs(KEY, 400)
        assert x.shape == y.shape == (400, 20)
        correlation = np.mean(np.asarray(x * y))
        assert abs(correlation - rho) < 4 * np.sqrt((1 + rho**2) / 8000)
        z = np.full((1, 40), t)  # log N(t 1; ρ) − log N(t 1; 0), pair by pair
        pair = -0.5 * np.log1p(-(rho**2)) - t**2 / (1 + rho) + t**2
        np.testing.assert_allclose(
            task.log_ratio(jnp.asarray(z, jnp.float32)), 20 * pair, rtol=1e-3
        )


def js_1d(p, q, low=-60, high=60):
    """By adaptive quadrature over x."""

    def integrand(x):
        log_p, log_q = p.logpdf(x), q.logpdf(x)
        middle = np.logaddexp(log_p, log_q) - LOG_2
        one, two = np.exp(log_p) * (log_p - middle), np.exp(log_q) * (log_q - middle)
        return 0.5 * (one + two)

    return scipy.integrate.quad(integrand, low, high, points=[-2, 0, 2], epsabs=1e-12, limit=500)[0]


@pytest.mark.parametrize(
    ("shift", "scale"), [(0.0, 1.0), (1.0, 1.0), (0.3, 2.0), (-1.0, 0.2), (8.0, 1.0), (0.0, 0.01)]
)
def test_js_of_gaussians_is_the_integral_over_x(shift, scale):
    task = problems.gaussian_pair(([shift], [[scale**2]]), ([0.0], [[1.0]]))
    np.testing.assert_allclose(task.js, js_1d(norm(shift, scale), norm()), rtol=1e-7, atol=1e-12)
    other = problems.gaussian_pair(([0.0], [[1.0]]), ([shift], [[scale**2]]))
    np.testing.assert_allclose(other.js, task.js, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose((other.kl, other.reverse_kl), (task.reverse_kl, task.kl), rtol=1e-10)


def test_js_of_a_shift_is_one_dimensional():
    """Only the distance of the means matters, whatever the dimension."""
    for d, kl in ((1, 0.5), (10, 1.0), (50, 2.0)):
        truth = js_1d(norm(math.sqrt(2 * kl)), norm())
        np.testing.assert_allclose(problems.gaussian_shift(d, kl).js, truth, rtol=1e-8)


def test_js_in_two_dimensions_is_that_of_a_grid():
    """Gaussians and mixtures, by SciPy's densities."""
    axis = np.linspace(-11, 11, 500)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    covariance = np.array([[1.0, 0.6], [0.6, 0.8]])
    p = multivariate_normal([0.5, -0.5], covariance)
    q = multivariate_normal([0.0, 0.2], np.diag([0.6, 1.5]))
    r = multivariate_normal([-1.0, 0.5], 0.5 * covariance)

    def divergences(log_p, log_q):
        cell, middle = (axis[1] - axis[0]) ** 2, np.logaddexp(log_p, log_q) - LOG_2
        kl = lambda a, b: np.sum(np.exp(a) * (a - b)) * cell
        js = (kl(log_p, middle) + kl(log_q, middle)) / 2
        return kl(log_p, log_q), kl(log_q, log_p), js

    task = problems.gaussian_pair((p.mean, p.cov), (q.mean, q.cov))
    found = task.kl, task.reverse_kl, task.js
    np.testing.assert_allclose(found, divergences(p.logpdf(grid), q.logpdf(grid)), rtol=1e-7)
    z = np.array([[0.1, 2.0], [-1.0, 0.0]])
    with jax.enable_x64(True):
        ratios = np.asarray(task.log_ratio(jnp.asarray(z)))
        pair = (jnp.asarray(p.mean), jnp.asarray(p.cov)), (jnp.asarray(q.mean), jnp.asarray(q.cov))
        theirs = np.asarray(gaussian.kl(*(Normal(*law) for law in pair)))
        mixture = GaussianMixture(
            jnp.array([0.3, 0.7]),
            jnp.array([r.mean, p.mean]),
            jnp.stack([jnp.asarray(r.cov), jnp.asarray(p.cov)]),
        )
        single = GaussianMixture(jnp.ones(1), jnp.asarray(q.mean)[None], jnp.asarray(q.cov))
        two = problems.mixtures(mixture, single)
    np.testing.assert_allclose(ratios, p.logpdf(z) - q.logpdf(z), rtol=1e-10)
    np.testing.assert_allclose(task.kl, theirs, rtol=1e-10)
    log_mixture = np.logaddexp(np.log(0.3) + r.logpdf(grid), np.log(0.7) + p.logpdf(grid))
    expected = divergences(log_mixture, q.logpdf(grid))
    np.testing.assert_allclose((two.kl, two.reverse_kl, two.js), expected, rtol=1e-6)


def test_the_published_mixture():
    task = problems.mixture_pair()
    assert 2.828 < task.kl < 2.831
    assert abs(task.js / LOG_2 - 0.4221) < 1e-4


def test_other_divergences_of_the_student_and_the_band():
    """By quantiles of the F distribution, |x|²/m of a t, and by a grid over the band."""
    for m, n, freedom in ((1, 1, 1.0), (3, 2, 3.0)):
        task = dep.student_t(m, n, freedom)
        s = scipy.stats.f(m, freedom).ppf((np.arange(1500) + 0.5) / 1500) * m
        t = scipy.stats.f(n, freedom).ppf((np.arange(1500) + 0.5) / 1500) * n
        half = freedom / 2
        lg = scipy.special.gammaln
        u = lg(half + (m + n) / 2) + lg(half) - lg(half + m / 2) - lg(half + n / 2)
        u = u - (half + (m + n) / 2) * np.log1p((s[:, None] + t) / freedom)
        u = u + (half + m / 2) * np.log1p(s[:, None] / freedom)
        u = u + (half + n / 2) * np.log1p(t / freedom)
        js = LOG_2 - 0.5 * np.mean(np.exp(u) * np.logaddexp(0, -u) + np.logaddexp(0, u))
        np.testing.assert_allclose((task.reverse_kl, task.js), (-np.mean(u), js), rtol=5e-3)
    x, y = np.meshgrid(np.linspace(0, 1, 1501), np.linspace(-0.3, 1.3, 1501), indexing="ij")
    band = 1.0 * (np.abs(x - y) < 0.3) / 0.6
    marginal = np.trapezoid(band, dx=1 / 1500, axis=0)
    middle = 0.5 * (band + marginal)
    entropy = lambda f: -1.6 * np.mean(scipy.special.entr(f) + scipy.special.xlogy(f, middle))
    js = 0.5 * (entropy(band) + entropy(marginal + 0 * x))
    np.testing.assert_allclose(dep.additive_uniform(0.3).js, js, rtol=3e-3)


def test_a_lattice_is_told_apart_at_once():
    task = problems.lattice(3, 0.25)
    p, q = task.sample(KEY, 2000)
    assert (task.kl, task.reverse_kl, task.js) == (math.inf, math.inf, LOG_2)
    assert jnp.all(task.log_ratio(p) == jnp.inf)
    assert jnp.all(task.log_ratio(q) == -jnp.inf)
    assert jnp.isnan(task.log_ratio(p.at[:, 1].set(jnp.nan))).all()
    np.testing.assert_array_equal(p[:, 0] / 0.25, np.round(p[:, 0] / 0.25))
    assert abs(float(jnp.std(p[:, 0])) - 1) < 0.1


def test_an_invertible_map_changes_no_divergence():
    task = dep.binormal()
    image = task.transformed(lambda z: z**3, jnp.cbrt)
    assert (image.kl, image.js, image.x_dim) == (task.kl, task.js, 1)
    for one, other in zip(task.sample(KEY, 50, 20), image.sample(KEY, 50, 20), strict=True):
        np.testing.assert_allclose(image.log_ratio(other), task.log_ratio(one), atol=1e-4)


def test_dtypes_follow_the_argument():
    with jax.enable_x64(True):
        for name in ("pair", "student_t", "uniform", "mixture_pair"):
            task = TASKS[name]()
            for dtype in (jnp.float32, jnp.float64):
                shape = jax.ShapeDtypeStruct((3, task.dim), dtype)
                assert jax.eval_shape(task.log_ratio, shape).dtype == dtype


@pytest.mark.parametrize("name", TASKS)
def test_points_that_hold_nan_have_no_log_ratio(name):
    """Where a density is zero is decided by comparisons, which NaN fails."""
    task = TASKS[name]()
    points = jnp.full((2, task.dim), 0.25).at[0, -1].set(jnp.nan)
    assert (jnp.isnan(task.log_ratio(points)) == jnp.array([True, False])).all()


@pytest.mark.parametrize("name", ["pair", "student_t", "uniform", "mixture_pair"])
def test_points_of_another_dimension_are_refused(name):
    task = TASKS[name]()
    for dim in (task.dim - 1, task.dim + 1):
        with pytest.raises(ValueError, match=f"z must have shape .n, {task.dim}.; got"):
            jax.eval_shape(task.log_ratio, jnp.zeros((3, dim)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: problems.gaussian_pair(([0, 0], [[1, 0.5], [0, 1]]), ([0, 0], np.eye(2))),
            "the covariance of p must be symmetric",
        ),
        (lambda: problems.lattice(3).log_ratio(jnp.zeros((4, 2))), "z must have shape .n, 3"),
        (
            lambda: problems.mixtures(
                *2 * [GaussianMixture(jnp.array([-1.0, 2.0]), jnp.zeros((2, 1)), 1.0)]
            ),
            "weights must be non-negative and sum to one",
        ),
        (
            lambda: problems.gaussian_pair(([0.0], [[1.0]]), ([0.0, 1.0], [[1.0]])),
            "q must be a mean",
        ),
        (
            lambda: problems.gaussian_pair(([0.0], [[-1.0]]), ([0.0], [[1.0]])),
            "must be positive definite",
        ),
        (lambda: problems.gaussian_shift(0, 1.0), "d must be an integer of at least 1; got 0"),
        (
            lambda: problems.gaussian_shift(1, -1.0),
            "kl must be a finite number of at least 0; got -1.0",
        ),
        (lambda: problems.gaussian_scale(2, 0.0), "scale must be a finite number above 0; got 0.0"),
        (lambda: problems.correlated_gaussians(3, 1.0), "d must be even; got 3"),
        (lambda: problems.lattice(1, 0.1), "spacing must be a power of two; got 0.1"),
        (lambda: dep.gaussian_dependence(np.eye(2), 2), "x_dim must be in 1 … 1; got 2"),
        (lambda: dep.two_pairs(1, 5), "x_dim must be an integer of at least 2"),
        (lambda: dep.student_t(1, 1, 0.0), "freedom must be a finite number above 0; got 0.0"),
        (lambda: dep.additive_uniform(0.0), "epsilon must be a finite number above 0; got 0.0"),
        (lambda: problems.chasm(1.0).sample_pairs(KEY, 3), "tasks of mutual information"),
        (lambda: problems.chasm(1.0).log_ratio(jnp.zeros(4)), "z must be a matrix of shape"),
        (
            lambda: problems.mixtures(*2 * [GaussianMixture(jnp.ones(1), jnp.zeros((1, 3)), 1.0)]),
            "p and q must be mixtures of the same number of features",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def student_by_trapezia(m, n, freedom):
    """Reverse KL and JS over a grid of log |x|²/ν and log |y|²/ν between SciPy's quantiles."""
    half, d = freedom / 2, m + n

    def law(dim):
        ratio = scipy.stats.betaprime(dim / 2, half)
        low, high = np.log(ratio.ppf(1e-16)), np.log(ratio.isf(1e-10)) + 14 / half
        log = np.linspace(low, high, 1600)
        softplus = np.logaddexp(0, log)
        density = dim / 2 * log - (half + dim / 2) * softplus - scipy.special.betaln(dim / 2, half)
        return log, softplus, np.exp(density) * (log[1] - log[0])

    (a, of_a, mass_a), (b, of_b, mass_b) = law(m), law(n)
    lg = scipy.special.gammaln
    u = lg(half + d / 2) + lg(half) - lg(half + m / 2) - lg(half + n / 2)
    u = u + (half + m / 2) * of_a[:, None] + (half + n / 2) * of_b
    u = u - (half + d / 2) * np.logaddexp(0, np.logaddexp(a[:, None], b))
    mass = mass_a[:, None] * mass_b
    np.testing.assert_allclose((mass.sum(), (mass * np.exp(u)).sum()), 1, rtol=1e-9)
    gap = np.sum(mass * (np.exp(u) * np.logaddexp(0, -u) + np.logaddexp(0, u)))
    return -np.sum(mass * u), LOG_2 - gap / 2


@pytest.mark.parametrize(
    "task",
    [
        (20, 20, 1000.0),
        (100, 100, 1000.0),
        (200, 200, 200.0),
        (1, 1, 0.2),
        (3, 7, 0.5),
        (50, 2, 4.0),
        (1, 100, 30.0),
    ],
)
def test_the_student_of_many_features_or_any_freedom(task):
    found = dep.student_t(*task)
    expected = student_by_trapezia(*task)
    np.testing.assert_allclose((found.reverse_kl, found.js), expected, rtol=1e-7, atol=2e-10)


@pytest.mark.parametrize(
    "task", [(1, 1, 1e6), (5, 5, 1e5), (1, 1, 1e9), (30, 2, 1e7), (100, 100, 1e8)]
)
def test_a_student_of_large_freedom_is_nearly_independent(task):
    """u → (|x|² − m)(|y|² − n)/2ν: both KL are half of its variance, JS an eighth."""
    m, n, freedom = task
    found, small = dep.student_t(*task), m * n / freedom**2 / 2
    divergences = found.kl, found.reverse_kl, 4 * found.js
    np.testing.assert_allclose(divergences, small, rtol=5 * (m + n + 2) / freedom + 1e-6)
    z = np.random.default_rng(0).normal(size=(50, m + n))
    x, y = np.sum(z[:, :m] ** 2, axis=1) - m, np.sum(z[:, m:] ** 2, axis=1) - n
    ratio, size = x * y / freedom / 2, m * n / freedom
    np.testing.assert_allclose(found.log_ratio(jnp.float32(z)), ratio, atol=2e-4 * size, rtol=1e-3)


@pytest.mark.parametrize("task", [(1, 1, 0.05), (2, 1, 1e-3), (1, 3, 1e-5)])
def test_a_student_of_small_freedom(task):
    """Under q the logarithms of both squares are exponential of rate ν/2."""
    found = dep.student_t(*task)
    m, n, freedom = task
    # E|log a − log b| is 2/ν; u falls by n/2 a unit where a is larger, by m/2 where b is.
    np.testing.assert_allclose(found.reverse_kl, (m + n) / 2 / freedom, rtol=0.3)
    assert 0.4 < found.js < LOG_2
    if freedom < 0.01:
        return
    with jax.enable_x64(True):
        u = np.asarray(found.log_ratio(found.sample_q(KEY, 40_000)))
    assert abs(np.mean(-u) - found.reverse_kl) < 4.5 * np.std(u) / 200


@pytest.mark.parametrize("freedom", [5e-324, 1e-12, 1e13, 1e300])
def test_a_freedom_beyond_double_precision_is_refused(freedom):
    with pytest.raises(ValueError, match=r"^freedom must be one whose divergences"):
        dep.student_t(2, 2, freedom)


@pytest.mark.parametrize("kl", [1e-14, 1e-9, 1e-5])
def test_close_gaussians_have_a_quarter_of_kl(kl):
    for task in (problems.gaussian_shift(3, kl), problems.gaussian_scale(2, 1 + math.sqrt(kl / 2))):
        np.testing.assert_allclose((task.reverse_kl, 4 * task.js), task.kl, rtol=5 * math.sqrt(kl))
        np.testing.assert_allclose(task.kl, kl, rtol=5 * math.sqrt(kl) + 1e-6)


@pytest.mark.parametrize("epsilon", [0.75, 1e3, 1e12])
def test_a_wide_band_is_far_from_the_product_at_its_ends_alone(epsilon):
    """Which are as long for every ε ≥ ½, and as far apart."""
    expected = dep.additive_uniform(0.5).js * 0.5 / epsilon
    np.testing.assert_allclose(dep.additive_uniform(epsilon).js, expected, rtol=1e-9)


def test_asymmetry_is_seen_between_features_of_other_scales():
    with pytest.raises(ValueError, match="the covariance of p must be symmetric"):
        problems.gaussian_pair((np.zeros(2), [[1e6, 0.9], [0, 1]]), (np.zeros(2), np.eye(2)))


def test_points_too_far_apart_are_refused():
    """Between 600 points over 1018 standard deviations a mixture falls through."""
    one, far = (GaussianMixture([1.0], [[mean]], 1.0) for mean in (0.0, 1000.0))
    with pytest.raises(ValueError, match=r"^points must be at least 1019 .* got 600"):
        problems.mixtures(one, far)
    np.testing.assert_allclose(problems.mixtures(one, far, points=2000).kl, 5e5, rtol=1e-9)
    narrow = GaussianMixture([1.0], [[0.0]], 1e-4)
    with pytest.raises(ValueError, match=r"^points must be at least"):
        problems.mixtures(narrow, one)


def test_points_that_miss_the_bend_of_the_log_ratio_are_refused():
    """It bends on a shorter length than the components' standard deviation; against SciPy."""
    p, q = (
        GaussianMixture(weights, np.array(means)[:, None], 1.0)
        for weights, means in (([0.95, 0.05], [4.0, -5.0]), ([0.3, 0.7], [-0.5, 1.0]))
    )
    # At 33 points the reverse KL would be 5.2313.
    with pytest.raises(ValueError, match=r"^points must be more than 33"):
        problems.mixtures(p, q, points=33)

    def density(weights, means):
        return lambda z: np.dot(weights, scipy.stats.norm.pdf(z, means))

    of_p, of_q = density([0.95, 0.05], [4.0, -5.0]), density([0.3, 0.7], [-0.5, 1.0])
    integrand = lambda z: of_q(z) * np.log(of_q(z) / of_p(z))
    exact = scipy.integrate.quad(integrand, -15, 15, points=[-5, 0, 1, 4], epsabs=1e-12)[0]
    np.testing.assert_allclose(problems.mixtures(p, q).reverse_kl, exact, rtol=1e-8)


def test_indefinite_covariances_are_no_mixture():
    bad = GaussianMixture([1.0], [[0.0, 0.0]], [[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match=r"^q must be a mixture"):
        problems.mixtures(GaussianMixture([1.0], [[0.0, 0.0]], 1.0), bad)
