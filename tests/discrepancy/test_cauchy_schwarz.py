"""Cauchy–Schwarz divergences against closed forms, quadrature and double loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from scipy.spatial.distance import cdist

from divjax import discrepancy, kernels


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


# Isotropic Gaussians of variances 1 and 1.5² in the plane, their means one apart.
VARIANCES, SHIFT, DIM = (1.0, 2.25), 1.0, 2
N, REPETITIONS = 60, 300


def log_overlap(variance, shift=0.0):
    """log ∫ of the product of two Gaussians with this sum of variances and difference of means."""
    return -DIM / 2 * np.log(2 * np.pi * variance) - shift**2 / (2 * variance)


def closed_form(sigma):
    """Of the Gaussians smoothed to variances v + σ²/2, as kernel means see them."""
    p, q = (v + sigma**2 / 2 for v in VARIANCES)
    return log_overlap(2 * p) + log_overlap(2 * q) - 2 * log_overlap(p + q, SHIFT)


def test_the_closed_form_is_the_integral():
    p, q = VARIANCES
    density = lambda y, x, v, s: np.exp(-((x - s) ** 2 + y**2) / (2 * v)) / (2 * np.pi * v)
    integral = lambda f: scipy.integrate.dblquad(f, -12, 12, -12, 12, epsabs=1e-10)[0]
    pp = integral(lambda y, x: density(y, x, p, 0) ** 2)
    qq = integral(lambda y, x: density(y, x, q, SHIFT) ** 2)
    pq = integral(lambda y, x: density(y, x, p, 0) * density(y, x, q, SHIFT))
    np.testing.assert_allclose(np.log(pp * qq / pq**2), closed_form(0.0), rtol=1e-6)
    assert round(closed_form(0.0), 3) == 0.468


@pytest.mark.parametrize("sigma", [0.5, pytest.param(1.0, marks=pytest.mark.exhaustive), 2.0])
@pytest.mark.parametrize("debias", [False, True])
def test_statistics_are_near_the_closed_form(sigma, debias):
    """To three standard errors of their own, after the delta method's correction.

    The V-statistic's means have the share 1/N of k(0) = 1.
    """
    keys = jax.random.split(jax.random.key(0), REPETITIONS)

    def means(key):
        x, y = jax.random.normal(key, (2, N, DIM))
        y = y * VARIANCES[1] ** 0.5 + jnp.array([SHIFT, 0.0])
        kernel = kernels.Gaussian(sigma)
        within = [kernels.kernel_mean(kernel, z, debias=debias) for z in (x, y)]
        value = discrepancy.cauchy_schwarz(x, y, kernel=kernel, debias=debias)
        return value, jnp.stack([*within, kernels.kernel_mean(kernel, x, y)])

    values, parts = map(np.asarray, jax.jit(jax.vmap(means))(keys))
    # E log of a mean is the log of its expectation less half its relative variance.
    relative = parts.var(axis=0) / parts.mean(axis=0) ** 2
    correction = -relative[0] / 2 - relative[1] / 2 + relative[2]
    smoothed = (2 * np.pi * sigma**2) ** (DIM / 2)
    expected = closed_form(sigma)
    if not debias:
        p, q = (smoothed * np.exp(log_overlap(2 * v + sigma**2)) for v in VARIANCES)
        expected += sum(np.log((1 / N + (1 - 1 / N) * mean) / mean) for mean in (p, q))
    error = values.std() / REPETITIONS**0.5
    assert abs(values.mean() - correction - expected) < 3 * error + 2 * np.abs(relative**1.5).sum()


def test_it_is_the_double_sum():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(20, 3)) + 0.5
    a, b = rng.dirichlet(np.ones(30)), rng.dirichlet(np.ones(20))
    for kernel, k in (
        (kernels.Laplace(0.8), lambda x, y: np.exp(-cdist(x, y) / 0.8)),
        (
            kernels.Gaussian((0.5, 2.0)),
            lambda x, y: sum(np.exp(-(cdist(x, y) ** 2) / (2 * s**2)) for s in (0.5, 2)) / 2,
        ),
        (kernels.Polynomial(2, 1.0, 0.5), lambda x, y: (x @ y.T / 2 + 1) ** 2),
    ):
        xx, yy, xy = k(x, x), k(y, y), k(x, y)
        found = discrepancy.cauchy_schwarz(x, y, a, b, kernel=kernel)
        expected = np.log(a @ xx @ a) + np.log(b @ yy @ b) - 2 * np.log(a @ xy @ b)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        for matrix in (xx, yy):
            np.fill_diagonal(matrix, 0)
        found = discrepancy.cauchy_schwarz(x, y, a, b, kernel=kernel, debias=True)
        own = a @ xx @ a / (1 - (a**2).sum()), b @ yy @ b / (1 - (b**2).sum())
        expected = np.log(own[0]) + np.log(own[1]) - 2 * np.log(a @ xy @ b)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("gap", [30.0, 1e4])
def test_samples_far_apart_are_at_a_finite_distance(gap):
    """Where every value between them underflows, with the slope of the nearest pairs."""
    with jax.enable_x64(False):
        x, y = jnp.array([[0.0], [1.0]]), jnp.array([[gap], [gap + 1]])
        kernel = kernels.Gaussian(1.0)
        value, slope = jax.value_and_grad(
            lambda y: discrepancy.cauchy_schwarz(x, y, kernel=kernel, debias=True)
        )(y)
        # The pair at gap − 1 outweighs all others.
        expected = (gap - 1) ** 2 + 2 * np.log(4) - 2 * 0.5
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(slope[:, 0].sum(), 2 * (gap - 1), rtol=1e-4)


@pytest.mark.parametrize("rows", [(1, 1), (5, 1), (1, 5), (200, 50)])
@pytest.mark.parametrize("gap", [3.0, 30.0, 300.0])
def test_two_points_are_at_their_squared_distance(rows, gap):
    """−2 log k(x, y), however many rows lie at each: most rows then have no distance at all."""
    x, y = jnp.zeros((rows[0], 2)), jnp.full((rows[1], 2), gap)
    statistic = lambda x: discrepancy.cauchy_schwarz(x, y, kernel=kernels.Gaussian(1.0))
    values = jax.vmap(statistic)(jnp.stack([x, x]))
    np.testing.assert_allclose(values, 2 * gap**2, rtol=1e-5)
    value, slope = jax.value_and_grad(statistic)(x)
    np.testing.assert_allclose(value, 2 * gap**2, rtol=1e-5)
    np.testing.assert_allclose(slope.sum(axis=0), -2 * gap, rtol=1e-5)


def conditional_by_loop(k, l, x1, y1, x2, y2, a, b):
    """Means over pairs of ratios of density estimates, pair by pair."""

    def density(x, y, xs, ys, w):
        marginal = sum(w[i] * k(x, xs[i]) for i in range(len(xs)))
        return marginal, sum(w[i] * k(x, xs[i]) * l(y, ys[i]) for i in range(len(xs)))

    terms = np.zeros(4)
    for j in range(len(x1)):
        p, p_joint = density(x1[j], y1[j], x1, y1, a)
        q, q_joint = density(x1[j], y1[j], x2, y2, b)
        terms[:2] += a[j] * p_joint / p**2, a[j] * q_joint / (p * q)
    for j in range(len(x2)):
        p, p_joint = density(x2[j], y2[j], x1, y1, a)
        q, q_joint = density(x2[j], y2[j], x2, y2, b)
        terms[2:] += b[j] * q_joint / q**2, b[j] * p_joint / (p * q)
    return np.log(terms[0]) - np.log(terms[1]) + np.log(terms[2]) - np.log(terms[3])


def conditional_samples():
    rng = np.random.default_rng(1)
    x1, x2 = rng.normal(size=(15, 2)), rng.normal(size=(12, 2)) + 0.3
    y1, y2 = rng.normal(size=(15, 1)), rng.normal(size=(12, 1)) + x2[:, :1]
    return x1, y1, x2, y2, rng.dirichlet(np.ones(15)), rng.dirichlet(np.ones(12))


def test_the_conditional_divergence_is_the_double_loop():
    x1, y1, x2, y2, a, b = conditional_samples()
    gaussian = lambda u, v: np.exp(-np.sum((u - v) ** 2) / (2 * 0.7**2))
    laplace = lambda u, v: np.exp(-np.abs(u - v).sum() / 1.1)
    found = discrepancy.conditional_cauchy_schwarz(
        x1, y1, x2, y2, a, b, kernel=kernels.Gaussian(0.7), response_kernel=kernels.Laplace(1.1)
    )
    expected = conditional_by_loop(gaussian, laplace, x1, y1, x2, y2, a, b)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_without_a_condition_it_is_that_of_the_responses():
    """A kernel so wide that all conditions are alike."""
    x1, y1, x2, y2, a, b = conditional_samples()
    found = discrepancy.conditional_cauchy_schwarz(
        x1, y1, x2, y2, a, b, kernel=kernels.Gaussian(1e5), response_kernel=kernels.Gaussian(0.7)
    )
    alone = discrepancy.cauchy_schwarz(y1, y2, a, b, kernel=kernels.Gaussian(0.7))
    np.testing.assert_allclose(found, alone, rtol=1e-6)


@pytest.mark.parametrize("width", [3e2, 3e4])
@pytest.mark.parametrize("condition", [0.7, 3e2])
def test_wide_kernels_of_the_response_keep_their_digits(width, condition):
    """In single precision, of divergences down to 10⁻⁹; and of slopes, unless it is far wider."""
    x1, y1, x2, y2, a, b = conditional_samples()
    kernel, response = kernels.Gaussian(condition), kernels.Gaussian(width)
    arguments = [np.float32(rows) for rows in (x1, y1, x2, y2, a, b)]
    exact = [np.longdouble(rows) for rows in arguments]
    gaussian = lambda s: lambda u, v: np.exp(-np.sum((u - v) ** 2) / (2 * np.longdouble(s) ** 2))
    expected = conditional_by_loop(gaussian(condition), gaussian(width), *exact)
    with jax.enable_x64(False):
        call = lambda y, b: discrepancy.conditional_cauchy_schwarz(
            x1, y, x2, y2, a, b, kernel=kernel, response_kernel=response
        )
        x1, y1, x2, y2, a, b = map(jnp.asarray, arguments)
        found, slopes = jax.value_and_grad(call, (0, 1))(y1, b)
    np.testing.assert_allclose(found, float(expected), rtol=2e-5)
    if width > 1e4:
        return
    wide = lambda y, b: conditional_by_loop(
        gaussian(condition), gaussian(width), exact[0], y, *exact[2:5], b / b.sum()
    )
    for i, (slope, at) in enumerate(zip(slopes, (exact[1], exact[5]), strict=True)):
        step = np.zeros_like(at)
        step[3] = 1e-3 * at[3]
        pairs = [[exact[1], exact[5]] for _ in range(2)]
        pairs[0][i], pairs[1][i] = at + step, at - step
        difference = (wide(*pairs[0]) - wide(*pairs[1])) / (2 * step[3])
        np.testing.assert_allclose(slope[3], float(difference.item()), rtol=1e-3)


def test_conditions_far_apart_give_no_nan():
    x1, y1, x2, y2, *_ = conditional_samples()
    with jax.enable_x64(False):
        narrow = {"kernel": kernels.Gaussian(0.05), "response_kernel": kernels.Gaussian(0.05)}
        value, slope = jax.value_and_grad(
            lambda y: discrepancy.conditional_cauchy_schwarz(x1, y, x2 + 50, y2, **narrow)
        )(jnp.asarray(y1, jnp.float32))
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: discrepancy.cauchy_schwarz(x, x, kernel=kernels.Energy()), "kernel must be po"),
        (lambda x: discrepancy.cauchy_schwarz(x[:1], x, debias=True), "x must have at least two"),
        (
            lambda x: discrepancy.conditional_cauchy_schwarz(x, x[1:], x, x),
            "response_x must have shape",
        ),
        (
            lambda x: discrepancy.conditional_cauchy_schwarz(
                x, x, x, x, response_kernel=kernels.Energy()
            ),
            "response_kernel must be positive",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((4, 2)))


@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("spread", [1e-3, 1e-6])
def test_a_kernel_far_wider_than_the_data(spread, debias):
    """By NumPy, in double precision, from k − 1: all means of k are one up to rounding."""
    rng = np.random.default_rng(4)
    x = np.float32(spread * rng.normal(size=(40, 2)))
    y = np.float32(spread * (1 + rng.normal(size=(50, 2))))
    below = lambda u, v: np.expm1(-cdist(np.float64(u), np.float64(v), "sqeuclidean") / 2)

    def own(u):
        pairs = len(u) * (len(u) - 1) if debias else len(u) ** 2
        return np.log1p(below(u, u).sum() / pairs)

    expected = own(x) + own(y) - 2 * np.log1p(below(x, y).mean())
    arrays = jnp.asarray(x), jnp.asarray(y)
    found = discrepancy.cauchy_schwarz(*arrays, kernel=kernels.Gaussian(1.0), debias=debias)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
