"""The Light Schrödinger bridge against quadrature, SciPy, and the bridge between Gaussians."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.spatial
import scipy.special
import scipy.stats

from divjax.ot.bridges import mixture_potential
from divjax.ot.bridges.light_bridge import LightSchrodingerBridge
from divjax.ot.bridges.schrodinger import SchrodingerBridge

KINDS = ("diagonal", "full")


KEY = jax.random.key(0)


kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def bridge(kind="diagonal", d=2, k=3, epsilon=0.7, seed=0):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(k, d, d)) / np.sqrt(d)
    scales = 0.3 * factor @ np.swapaxes(factor, 1, 2) + 0.3 * np.eye(d)
    if kind == "diagonal":
        scales = np.diagonal(scales, axis1=1, axis2=2)
    origins = np.array([[0.3, -0.2, 0.1], [0.5, 0.4, -0.3]])[:, :d]
    numbers = rng.normal(size=k), rng.normal(size=(k, d)), scales, origins
    return SchrodingerBridge(epsilon, *map(jnp.asarray, numbers))


def covariances(b):
    scales = np.asarray(b.scales)
    full = scales if scales.ndim == 3 else np.stack([np.diag(s) for s in scales])
    return b.epsilon * full


def density(b, y):
    """The potential v as SciPy has it."""
    y = np.atleast_1d(y) - np.asarray(b.origins[1])
    terms = [
        np.exp(w) * normal(m, c).pdf(y)
        for w, m, c in zip(
            np.asarray(b.log_weights), np.asarray(b.means), covariances(b), strict=True
        )
    ]
    return sum(terms)


normal = scipy.stats.multivariate_normal


integral = lambda f: scipy.integrate.quad(f, -25, 25, epsabs=1e-13, limit=400, points=[-2, 0, 2])[0]


@kinds
def test_the_potential_matches_a_mixture_by_scipy(kind):
    b = bridge(kind)
    y = np.random.default_rng(1).normal(size=(5, 2))
    np.testing.assert_allclose(
        b.log_potential(y), [np.log(density(b, row)) for row in y], rtol=1e-10
    )


def test_the_normalizer_is_the_integral_of_the_plan():
    b = bridge(d=1)
    start, end = np.asarray(b.origins)[:, 0]
    for x in (-1.0, 0.0, 2.0):
        kernel = lambda y, x=x: np.exp((x - start) * (y - end) / b.epsilon) * density(b, y)
        np.testing.assert_allclose(
            b.log_normalizer(np.array([[x]])), np.log(integral(kernel)), rtol=1e-9
        )


@kinds
def test_the_plan_is_the_kernel_times_the_potential_over_the_normalizer(kind):
    b = bridge(kind)
    x, y = np.random.default_rng(2).normal(size=(2, 4, 2))
    plan = b.conditional_plan(x)
    log_weights, means, covs = plan.log_weights, plan.means, plan.covariances
    covs = covs if covs.ndim == 3 else jax.vmap(jnp.diag)(covs)
    for i in range(4):
        mixture = sum(
            np.exp(log_weights[i, k]) * normal(means[i, k], covs[k]).pdf(y[i]) for k in range(3)
        )
        product = np.dot(x[i] - b.origins[0], y[i] - b.origins[1]) / b.epsilon
        log = product + b.log_potential(y[i : i + 1]) - b.log_normalizer(x[i : i + 1])
        np.testing.assert_allclose(np.log(mixture), log[0], rtol=1e-9)


@pytest.mark.parametrize("t", [0.0, 0.4, 0.95])
def test_the_drift_is_the_mean_velocity_of_brownian_bridges(t):
    """E[(X₁ − x)/(1 − t) | X_t = x]: X₁ then ~ e^{(y² − 2 o₀ y)/2ε} v(y) N(y | x, (1−t)ε)."""
    b = bridge(d=1)
    start = float(b.origins[0, 0])
    for x in (-1.5, 0.2, 1.0):

        def law(y, x=x):
            weight = (y**2 - 2 * start * y - (y - x) ** 2 / (1 - t)) / (2 * b.epsilon)
            return np.exp(weight) * density(b, y)

        mean = integral(lambda y: y * law(y)) / integral(law)
        expected = (mean - x) / (1 - t)
        np.testing.assert_allclose(b.drift(np.array([[x]]), t)[0, 0], expected, rtol=1e-6)


@kinds
def test_the_drift_is_the_gradient_of_a_log_and_goes_on_to_time_one(kind):
    """There g = ε ∇ log(e^{(|y|² − 2 o₀·y)/2ε} v(y)); before, its Jacobian is symmetric."""
    b = bridge(kind)
    y = jnp.asarray(np.random.default_rng(3).normal(size=(3, 2)))
    log = lambda z: b.epsilon * b.log_potential(z[None])[0] + z @ z / 2 - b.origins[0] @ z
    drift = jax.jit(b.drift)
    np.testing.assert_allclose(drift(y, 1.0), jax.vmap(jax.grad(log))(y), rtol=1e-9)
    np.testing.assert_allclose(drift(y, 1 - 1e-9), drift(y, 1.0), rtol=1e-6)
    jacobian = jax.jit(jax.jacfwd(lambda z: b.drift(z[None], 0.5)[0]))(y[0])
    np.testing.assert_allclose(jacobian, jacobian.T, rtol=1e-9)
    np.testing.assert_allclose(drift(y, 0.0), b.conditional_plan(y).moments()[0] - y, rtol=1e-9)


@kinds
def test_samples_have_the_plans_moments(kind):
    b, n = bridge(kind), 20000
    x = np.array([0.7, -0.4])
    rows = jnp.broadcast_to(x, (n, 2))
    (mean,), (cov,) = b.conditional_plan(jnp.asarray(x)[None]).moments()
    for t in (1.0, 0.3):
        drawn = np.asarray(jax.jit(b.sample_at)(KEY, rows, t))
        expected = (1 - t) * x + t * np.asarray(mean)
        spread = t**2 * np.asarray(cov) + t * (1 - t) * b.epsilon * np.eye(2)
        error = np.sqrt(np.diag(spread) / n)
        np.testing.assert_array_less(np.abs(drawn.mean(0) - expected), 4 * error)
        centered = (drawn - expected)[:, :, None] * (drawn - expected)[:, None]
        error = centered.std(0) / np.sqrt(n)
        np.testing.assert_array_less(np.abs(centered.mean(0) - spread), 4 * error)
    np.testing.assert_array_equal(jax.jit(b.sample_at)(KEY, rows, 0.0), rows)
    times = jnp.where(jnp.arange(n) < n // 2, 0.0, 1.0)
    mixed = jax.jit(b.sample_at)(KEY, rows, times)
    np.testing.assert_array_equal(mixed[: n // 2], rows[: n // 2])
    assert not (mixed[n // 2 :] == rows[n // 2 :]).any()


@kinds
def test_the_sde_has_the_plans_law_at_every_time(kind):
    """Means and second moments against exact bridges, up to errors of 1/num_steps."""
    b, n, num_steps = bridge(kind), 10000, 50
    start = jax.random.normal(jax.random.key(4), (n, 2))
    path = jax.jit(b.sde, static_argnums=2)(KEY, start, num_steps)
    assert path.shape == (num_steps + 1, n, 2)
    np.testing.assert_array_equal(path[0], start)
    for index, t in ((25, 0.5), (50, 1.0)):
        exact = jax.jit(b.sample_at)(jax.random.key(5), start, t)
        for moment in (lambda z: z, lambda z: z**2):
            one, two = moment(path[index]), moment(exact)
            error = np.sqrt((one.var(0) + two.var(0)) / n)
            np.testing.assert_array_less(
                np.abs(one.mean(0) - two.mean(0)), 4 * error + 1 / num_steps
            )


def gaussian_bridge(cov0, cov1, epsilon):
    """The slope of E[X₁|X₀] in the bridge between Gaussians, Bunne et al. 2023, theorem 3."""
    root = scipy.linalg.sqrtm(cov0)
    inverse = np.linalg.inv(root)
    d_matrix = scipy.linalg.sqrtm(4 * root @ cov1 @ root + epsilon**2 * np.eye(len(cov0)))
    cross = (root @ d_matrix @ inverse - epsilon * np.eye(len(cov0))) / 2
    return np.linalg.solve(cov0, cross).T


@kinds
@pytest.mark.parametrize("epsilon", [0.05, 2.0])
def test_one_potential_is_the_bridge_between_gaussians(kind, epsilon):
    rng = np.random.default_rng(6)
    mix = rng.normal(size=(2, 3, 3))
    x0, x1 = rng.normal(size=(400, 3)) @ mix[0] + 5, rng.normal(size=(300, 3)) @ mix[1] - 2
    fitted = LightSchrodingerBridge(1, epsilon, kind, num_steps=3, ridge=0.0).fit(KEY, x0, x1)
    covs = [np.cov(x.T, bias=True) for x in (x0, x1)]
    if kind == "diagonal":
        expected = [
            gaussian_bridge(covs[0][i : i + 1, i : i + 1], covs[1][i : i + 1, i : i + 1], epsilon)
            for i in range(3)
        ]
        expected = np.ravel(expected)
    else:
        expected = gaussian_bridge(*covs, epsilon)
        np.testing.assert_allclose(
            expected @ covs[0] @ expected.T + epsilon * expected, covs[1], rtol=1e-8
        )
    np.testing.assert_allclose(fitted.scales[0], expected, rtol=1e-6)
    mean = fitted.conditional_plan(x0).moments()[0].mean(0)
    np.testing.assert_allclose(mean, x1.mean(0), rtol=1e-9)
    assert fitted.imbalance < 1e-12  # pyright: ignore[reportOperatorIssue]


def ends(kind="full", n=4000, seed=7, d=2):
    """Samples of both ends of a known bridge with well separated components."""
    b = bridge(kind, d=d, epsilon=0.5)
    spread = 4 * np.array([[1.0, 0.0, 0.0], [-0.5, 0.8, 0.0], [-0.5, -0.8, 0.0]])[:, :d]
    b = dataclasses.replace(b, means=jnp.asarray(spread), log_weights=jnp.zeros(3))
    keys = jax.random.split(jax.random.key(seed), 3)
    x, start = (jax.random.normal(k, (n, d)) for k in keys[:2])
    return b, x, jax.jit(b.sample)(keys[2], start)


@functools.cache
def fitted(kind, num_components=3, num_steps=25):
    with jax.enable_x64(True):
        truth, x0, x1 = ends(kind)
        method = LightSchrodingerBridge(num_components, 0.5, kind, num_steps=num_steps)
        return truth, x0, x1, jax.jit(method.fit)(KEY, x0, x1)


@pytest.mark.parametrize("hard", [0.01, 1.0, 300.0])
def test_balance_gives_components_their_mass(hard):
    """Whether rows belong to one component or to all."""
    rng = np.random.default_rng(0)
    log_terms = jnp.asarray(hard * rng.normal(size=(500, 8)) + hard * np.arange(8))
    target = jnp.asarray(rng.dirichlet(np.ones(8)))
    change = mixture_potential.balance(log_terms, target, 60)
    mass = np.mean(scipy.special.softmax(log_terms + change, axis=1), axis=0)
    # Where rows are not divided, masses are multiples of 1/500.
    np.testing.assert_allclose(mass, target, atol=1e-8 if hard <= 1 else 1 / 500)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: LightSchrodingerBridge(0, 1.0), "num_components must be an integer"),
        (lambda x: LightSchrodingerBridge(2, 0.0), "epsilon must be a positive number"),
        (lambda x: LightSchrodingerBridge(2, 1.0, "half"), "covariance must be one of"),
        (lambda x: LightSchrodingerBridge(2, 1.0).fit(KEY, x, x[:, :1]), "x and y must have"),
        (lambda x: LightSchrodingerBridge(2, 1.0).fit(KEY, x[:0], x), "x must be a non-empty"),
        (lambda x: LightSchrodingerBridge(2, 1.0).fit(1, x, x), "key must be one typed key"),
        (lambda x: bridge().drift(x[:, :1], 0.5), r"x must have shape \(n, 2\)"),
        (lambda x: bridge().drift(x, jnp.zeros(3)), r"t must have shape \(\)"),
        (lambda x: bridge().sample_at(KEY, x, jnp.zeros(2)), r"t must have shape \(3,\)"),
        (lambda x: bridge().sde(KEY, x, 0), "num_steps must be an integer"),
        (lambda x: bridge().sample(0, x), "key must be one typed key"),
        (lambda x: bridge().log_potential(x[0]), r"y must have shape \(n, 2\)"),
    ],
)
def test_bad_input_raises(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((3, 2)))


def test_times_are_between_zero_and_one():
    b, x = bridge("diagonal"), jnp.zeros((3, 2))
    for t in (-0.1, 1.1):
        with pytest.raises(ValueError, match="t must be in"):
            b.drift(x, t)
        with pytest.raises(ValueError, match="t must be in"):
            b.sample_at(jax.random.key(0), x, t)
        assert jnp.isnan(jax.jit(b.drift)(x, t)).all()
    half = jnp.zeros((5, 2), jnp.bfloat16)
    with pytest.raises(ValueError, match="x must be float32 or float64"):
        LightSchrodingerBridge(2, 0.5).fit(jax.random.key(0), half, half)
    with pytest.raises(ValueError, match="log_weights must have shape"):
        dataclasses.replace(b, log_weights=jnp.zeros(7)).drift(x, 0.5)


def test_scales_that_are_not_semidefinite_are_no_bridge():
    """Of positive variances: with eigenvalues 3 and −1 there is no such Gaussian."""
    scales, z = jnp.array([[[1.0, 2.0], [2.0, 1.0]]]), jnp.ones((2, 2))
    bridge = SchrodingerBridge(0.5, jnp.zeros(1), jnp.zeros((1, 2)), scales)
    values = bridge.log_normalizer(z), bridge.conditional_plan(z).means, bridge.log_potential(z)
    assert all(jnp.isnan(value).all() for value in values)
    singular = dataclasses.replace(bridge, scales=jnp.ones((1, 2, 2)))
    assert jnp.isfinite(singular.log_normalizer(z)).all()


@pytest.mark.parametrize("t", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("ends", [(1e6, 1e6), (123456789.1, 123456789.1), (0.0, 1e6)])
def test_far_from_zero_the_drift_is_shifted_along(ends, t):
    """The origin at time t is rounded by more than the states' spread, unless its rest is kept."""
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(60, 2)), rng.normal(size=(50, 2)) + 1, rng.normal(size=(9, 2))

    def drift(start, end):
        method = LightSchrodingerBridge(2, 0.5, num_steps=5)
        moved = z + ((1 - t) * start + t * end)
        return method.fit(KEY, x + start, y + end).drift(moved, t)

    with jax.enable_x64(False):
        shift = ends[1] - ends[0]
        rounding = np.spacing(np.float32(shift)) if shift else 1e-4
        np.testing.assert_allclose(drift(*ends), drift(0.0, 0.0) + shift, atol=rounding)


@pytest.mark.parametrize("kind", KINDS)
def test_far_from_zero_the_plan_has_its_covariance(kind):
    """Means of components that are rounded where they are have lost their differences."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 2)), rng.normal(size=(70, 2)) * [1, 2]
    method = LightSchrodingerBridge(3, 0.4, num_steps=5, covariance=kind)

    def moments(shift):
        return method.fit(KEY, x, y + shift).conditional_plan(x[:5]).moments()

    with jax.enable_x64(False):
        (near, covariance), (far, found) = moments(0.0), moments(123456789.1)
        np.testing.assert_allclose(found, covariance, atol=1e-4)
        np.testing.assert_allclose(far, near + 123456789.1, rtol=1e-7)
