"""Moments along Gaussian flows against SciPy's solver, special functions and moving particles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import minimize
from scipy.special import j1

from divjax import Normal, problems

TIMES = np.array([0.0, 0.3, 0.7, 1.5, 4.0])
INITIAL = Normal(np.array([1.5, -1.0]), np.array([[1.4, 0.8], [0.8, 0.9]]))
TARGETS = Normal(
    np.array([[2.0, 0.0], [-1.0, 1.0], [0.5, -2.0]]),
    np.array([[[1.0, 0.0], [0.0, 0.4]], [[0.7, 0.3], [0.3, 1.5]], [[2.0, -0.5], [-0.5, 0.6]]]),
)
BANDWIDTH = 0.4


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def first(k):
    return Normal(TARGETS.mean[:k], TARGETS.covariance[:k])


@functools.cache
def compiled(function):
    return jax.jit(function, static_argnames="num_substeps")


def fields(x, mean, covariance, targets, bandwidth):
    """The K descent directions at rows x, target by target, point by point."""
    smoothed = np.linalg.inv(covariance + bandwidth**2 * np.eye(2))
    return np.array(
        [
            [-np.linalg.solve(s, z - m) + smoothed @ (z - mean) for z in x]
            for m, s in zip(targets.mean, targets.covariance, strict=True)
        ]
    )


def cloud(moments):
    """Four points with exactly these moments under equal masses, so averages are expectations."""
    root = np.linalg.cholesky(moments.covariance)
    return moments.mean + np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) @ root.T


def min_norm(velocities):
    """The shortest combination by SciPy's general solver."""
    gram = np.einsum("kni,jni->kj", velocities, velocities) / velocities.shape[1]
    k = len(gram)
    return minimize(
        lambda w: w @ gram @ w / np.trace(gram),
        np.full(k, 1 / k),
        jac=lambda w: 2 * gram @ w / np.trace(gram),
        bounds=[(0, 1)] * k,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-15},
    ).x


def moving_particles(targets, bandwidth, damping=None):
    """Four particles under the interacting dynamics itself, at TIMES, by SciPy's solver."""

    def force(x):
        velocities = fields(x, x.mean(0), np.cov(x.T, bias=True), targets, bandwidth)
        return np.tensordot(min_norm(velocities), velocities, 1)

    def slope(time, y):
        if damping is None:
            return force(y.reshape(4, 2)).ravel()
        x, v = y.reshape(2, 4, 2)
        return np.concatenate([v, force(x) - damping * v]).ravel()

    start = cloud(INITIAL).ravel()
    start = start if damping is None else np.concatenate([start, 0 * start])
    path = solve_ivp(slope, (0, TIMES[-1]), start, t_eval=TIMES, rtol=1e-8, atol=1e-10).y
    points = path[:8].T.reshape(-1, 4, 2)
    return points.mean(1), np.array([np.cov(x.T, bias=True) for x in points])


def test_fokker_planck_is_its_equation_for_matrices_that_do_not_commute():
    mean, covariance = TARGETS.mean[1], TARGETS.covariance[1]
    precision = np.linalg.inv(covariance)
    assert np.abs(covariance @ INITIAL.covariance - INITIAL.covariance @ covariance).max() > 0.1

    def slope(_, y):
        m, s = y[:2], y[2:].reshape(2, 2)
        return np.concatenate(
            [-precision @ (m - mean), (2 * np.eye(2) - precision @ s - s @ precision).ravel()]
        )

    start = np.concatenate([INITIAL.mean, INITIAL.covariance.ravel()])
    exact = solve_ivp(slope, (0, TIMES[-1]), start, t_eval=TIMES, rtol=1e-10, atol=1e-12).y.T
    flow = problems.fokker_planck_moments(TIMES, INITIAL, Normal(mean, covariance))
    np.testing.assert_allclose(flow.mean, exact[:, :2], atol=1e-8)
    np.testing.assert_allclose(flow.covariance.reshape(-1, 4), exact[:, 2:], atol=1e-8)


def test_one_objective_is_fokker_planck():
    flow = compiled(problems.multi_objective_moments)(TIMES, INITIAL, first(1))
    target = Normal(TARGETS.mean[0], TARGETS.covariance[0])
    exact = problems.fokker_planck_moments(TIMES, INITIAL, target)
    np.testing.assert_allclose(flow.mean, exact.mean, atol=1e-6)
    np.testing.assert_allclose(flow.covariance, exact.covariance, atol=1e-6)
    np.testing.assert_array_equal(flow.weights, 1)


@pytest.mark.parametrize("bandwidth", [0.0, BANDWIDTH])
@pytest.mark.parametrize("k", [2, 3])
def test_several_objectives_follow_interacting_particles(k, bandwidth):
    flow = compiled(problems.multi_objective_moments)(
        TIMES, INITIAL, first(k), bandwidth, num_substeps=200
    )
    mean, covariance = moving_particles(first(k), bandwidth)
    np.testing.assert_allclose(flow.mean, mean, atol=2e-5)
    np.testing.assert_allclose(flow.covariance, covariance, atol=2e-5)
    for weights, *moments in zip(flow.weights, mean, covariance, strict=True):
        now = fields(cloud(Normal(*moments)), *moments, first(k), bandwidth)
        np.testing.assert_allclose(weights, min_norm(now), atol=1e-3)
    assert np.ptp(flow.weights[:, 0]) > 0.02  # the weights do move


def test_the_combined_flow_ends_pareto_stationary():
    flow = compiled(problems.multi_objective_moments)(
        np.array([60.0]), INITIAL, first(2), 0.0, 2000
    )
    moments = Normal(np.asarray(flow.mean[0]), np.asarray(flow.covariance[0]))
    now = fields(cloud(moments), *moments, first(2), 0.0)
    assert np.abs(now).max() > 0.1  # neither objective is at its own optimum
    assert np.abs(np.tensordot(flow.weights[0], now, 1)).max() < 1e-6


def test_smoothing_narrows_the_stationary_covariance_by_the_kernels():
    flow = compiled(problems.multi_objective_moments)(
        np.array([40.0]), INITIAL, first(1), BANDWIDTH, num_substeps=2000
    )
    expected = TARGETS.covariance[0] - BANDWIDTH**2 * np.eye(2)
    np.testing.assert_allclose(flow.covariance[0], expected, atol=1e-8)
    np.testing.assert_allclose(flow.mean[0], TARGETS.mean[0], atol=1e-8)


@pytest.mark.parametrize("bandwidth", [0.0, BANDWIDTH])
def test_acceleration_follows_interacting_particles(bandwidth):
    beta = 0.3
    flow = compiled(problems.accelerated_moments)(
        TIMES, INITIAL, first(2), beta, bandwidth, num_substeps=200
    )
    mean, covariance = moving_particles(first(2), bandwidth, damping=2 * np.sqrt(beta))
    np.testing.assert_allclose(flow.mean, mean, atol=2e-5)
    np.testing.assert_allclose(flow.covariance, covariance, atol=2e-5)


def test_vanishing_damping_is_a_bessel_function():
    """x'' + 3x'/t + px = 0 from rest: x = 2 J₁(√p t) / (√p t) x(0)."""
    precision = 2.5
    one = Normal(np.array([3.0]), np.array([[1.2]]))
    target = Normal(np.zeros((1, 1)), np.array([[[1 / precision]]]))
    flow = compiled(problems.accelerated_moments)(TIMES, one, target, num_substeps=200)
    phase = np.sqrt(precision) * TIMES[1:]
    np.testing.assert_allclose(flow.mean[0], one.mean, rtol=1e-12)
    np.testing.assert_allclose(flow.mean[1:, 0], one.mean * 2 * j1(phase) / phase, atol=1e-6)

    # One large step from the start, where 3x'/t is a limit, is right to the fourth order, too.
    step = 0.1
    early = problems.accelerated_moments(np.array([step]), one, target, num_substeps=2)
    phase = np.sqrt(precision) * step
    np.testing.assert_allclose(early.mean[0], one.mean * 2 * j1(phase) / phase, rtol=1e-4)

    def slope(t, y):  # the deviation, under p s − 1/s; it starts at t > 0 from its expansion
        s, ds = y
        return [ds, -3 / t * ds - precision * s + 1 / s]

    s = np.sqrt(1.2)
    pull, t = 1 / s - precision * s, 1e-4
    exact = solve_ivp(slope, (t, 4), [s + pull * t**2 / 8, pull * t / 4], rtol=1e-10, t_eval=[4])
    np.testing.assert_allclose(flow.covariance[-1, 0, 0], exact.y[0, 0] ** 2, rtol=1e-5)


@pytest.mark.exhaustive
def test_too_few_steps_are_seen_in_the_error():
    """Towards a narrow target the moments are known; the estimate is not below the real error."""
    target = Normal(np.zeros((1, 1)), np.array([[[0.2]]]))
    one = Normal(np.array([3.0]), np.array([[1.2]]))
    exact = problems.fokker_planck_moments(TIMES, one, Normal(*(leaf[0] for leaf in target)))
    for substeps in (2, 8, 32, 128):
        flow = compiled(problems.multi_objective_moments)(TIMES, one, target, num_substeps=substeps)
        scale = np.maximum(np.abs(flow.mean), flow.covariance[:, 0]).max(1)
        worst = np.abs(flow.covariance - exact.covariance).max((1, 2)) / scale
        assert np.all((worst <= flow.error + 1e-12) | ~np.isfinite(flow.error))
    assert flow.error.max() < 1e-4
    far = problems.multi_objective_moments(np.array([20.0]), one, target)
    assert not far.error[0] < 1e-3


def test_sweeps_and_derivatives_pass_through():
    final = lambda h: problems.multi_objective_moments(
        jnp.array([2.0]), jax.tree.map(jnp.asarray, INITIAL), first(2), h
    ).covariance[0, 0, 0]
    h, step = jnp.array([0.2, BANDWIDTH]), 1e-5
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(final)))(h)
    swept = jax.jit(jax.vmap(final))
    np.testing.assert_allclose(values, swept(h), rtol=1e-12)
    np.testing.assert_allclose(slopes, (swept(h + step) - swept(h - step)) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_are_kept(dtype):
    times, initial, targets = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype), (TIMES, INITIAL, first(2))
    )
    one = jax.tree.map(lambda leaf: leaf[0], targets)
    flows = (
        jax.eval_shape(problems.fokker_planck_moments, times, initial, one),
        jax.eval_shape(problems.multi_objective_moments, times, initial, targets, 0.3),
        jax.eval_shape(problems.accelerated_moments, times, initial, targets, 0.3, 0.3),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(flows)} == {jnp.dtype(dtype)}


def test_bad_input_is_named():
    one = Normal(TARGETS.mean[0], TARGETS.covariance[0])
    with pytest.raises(ValueError, match=r"targets must be means \(k, d\)"):
        problems.multi_objective_moments(TIMES, INITIAL, one)
    with pytest.raises(ValueError, match=r"target must be a mean \(d,\)"):
        problems.fokker_planck_moments(TIMES, INITIAL, first(2))
    with pytest.raises(ValueError, match="times must be a vector"):
        problems.fokker_planck_moments(jnp.asarray(1.0), INITIAL, one)
    with pytest.raises(ValueError, match="num_substeps must be an integer of at least 2; got 0"):
        problems.multi_objective_moments(TIMES, INITIAL, first(2), num_substeps=0)
    with pytest.raises(ValueError, match="strong_convexity must be a positive number; got -1"):
        problems.accelerated_moments(TIMES, INITIAL, first(2), strong_convexity=-1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_towards_a_wide_target_particles_diffuse(dtype):
    """For a target of variance 1e8, Brownian motion: Σ₀ + 2t, where S − S e^{−2t/S} cancels."""
    initial = Normal(jnp.array([1.0, -1.0], dtype), jnp.array([[2.0, 0.5], [0.5, 1.0]], dtype))
    target = Normal(jnp.array([1e8, 0.0], dtype), 1e8 * jnp.eye(2, dtype=dtype))
    times = jnp.array([0.5, 3.0, 1e10], dtype)
    mean, covariance = problems.fokker_planck_moments(times, initial, target)
    assert covariance.dtype == dtype
    for t, row in ((0.5, 0), (3.0, 1)):
        expected = np.asarray(initial.covariance) + 2 * t * np.eye(2)
        np.testing.assert_allclose(covariance[row], expected, rtol=1e-6)
        np.testing.assert_allclose(mean[row], [1 + t, -1], rtol=1e-6)
    np.testing.assert_allclose(covariance[2], target.covariance, rtol=1e-6, atol=1e-6)


def test_invalid_flows_give_nan():
    target = first(1)
    one = Normal(target.mean[0], target.covariance[0])
    flow = jax.jit(problems.fokker_planck_moments)
    assert jnp.isnan(flow(jnp.array([-0.1]), INITIAL, one).mean).all()
    indefinite = Normal(one.mean, np.array([[1.0, 2.0], [2.0, 1.0]]))
    assert jnp.isnan(flow(jnp.array([0.5]), INITIAL, indefinite).covariance).all()
    several = compiled(problems.multi_objective_moments)
    targets = Normal(TARGETS.mean[:1], indefinite.covariance[None])
    assert jnp.isnan(several(jnp.array([0.5]), INITIAL, targets).mean).all()
    assert jnp.isnan(several(jnp.array([0.5]), INITIAL, target, -0.4).mean).all()
    with pytest.raises(ValueError, match="bandwidth must not be negative"):
        problems.multi_objective_moments(TIMES, INITIAL, target, -0.4)


@pytest.mark.parametrize("offset", [1e3, 123456789.0])
@pytest.mark.parametrize("solve", ["multi_objective_moments", "accelerated_moments"])
def test_flows_move_along_with_their_targets(solve, offset):
    def flow(offset):
        initial = Normal(np.array([0.1, -0.1]) + offset, np.array([[0.7, 0.1], [0.1, 0.5]]))
        means = np.array([[1.0, 0.0], [-1.0, 0.5]]) + offset
        targets = Normal(means, np.stack([np.eye(2), 2 * np.eye(2)]))
        return getattr(problems, solve)(np.array([0.5, 1.0]), initial, targets)

    near, far = flow(0.0), flow(offset)
    np.testing.assert_allclose(far.covariance, near.covariance, rtol=1e-5)
    np.testing.assert_allclose(far.weights, near.weights, rtol=1e-4)
    rounding = np.spacing(np.float32(offset))
    np.testing.assert_allclose(far.mean - np.float32(offset), near.mean, atol=rounding)


def test_settings_out_of_range_are_nan_traced_or_not():
    initial, targets = Normal(np.zeros(1), np.eye(1)), Normal(np.ones((1, 1)), np.eye(1)[None])
    times = np.array([1.0])
    accelerated = lambda c: problems.accelerated_moments(
        times, initial, targets, strong_convexity=c
    )
    smoothed = lambda h: problems.multi_objective_moments(times, initial, targets, bandwidth=h)
    for function, value in ((accelerated, 0.0), (accelerated, -1.0), (smoothed, np.inf)):
        for call in (function, jax.jit(function)):
            assert np.isnan(call(jnp.float32(value)).mean).all()
