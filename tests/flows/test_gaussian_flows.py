"""Flows of Gaussians against their moment equations, integrated by SciPy.

With the score of the Gaussian of the particles' own moments, a velocity any user could write, the
particles move by affine maps and their moments obey ordinary differential equations up to the
step's discretisation.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import solve_ivp

from divjax import flows

N = 400


class GaussianScore:
    """∇log q of the particles' own Gaussian: −C⁻¹(x − m)."""

    diffuses = False

    def init(self, key, x):
        return ()

    def __call__(self, key, x, weights, gradients, state):
        centered = x - weights @ x
        covariance = (centered.T * weights) @ centered
        return -gradients, jnp.linalg.solve(covariance, centered.T).T, state


def gaussian(mean, precision):
    mean, precision = jnp.asarray(mean), jnp.asarray(precision)
    return flows.KL(lambda z: -0.5 * (z - mean) @ precision @ (z - mean))


def run(x, objectives, optimizer, num_steps):
    """The final particles and the weights' history, as NumPy arrays of float64."""
    with jax.enable_x64(True):
        result = jax.jit(
            lambda x: flows.Flow(objectives(), velocity=GaussianScore(), optimizer=optimizer).run(
                jax.random.key(0), x, num_steps=num_steps
            )
        )(jnp.asarray(x))
        return np.asarray(result.particles), np.asarray(result.history.weights)


def test_one_gaussian_target_is_the_fokker_planck_equation():
    """μ(t) = m + e^{−Pt}(μ₀ − m), C(t) = S + e^{−Pt}(C₀ − S)e^{−Pt}, P = S⁻¹: the closed form."""
    from scipy.linalg import expm

    step, num_steps = 1e-3, 700
    precision = np.array([[2.0, 0.6], [0.6, 1.0]])
    mean = np.array([1.0, -2.0])
    x = np.random.default_rng(0).normal(size=(N, 2)) @ np.array([[1.5, 0.4], [0.0, 0.5]])
    end = run(x, lambda: (gaussian(mean, precision),), optax.sgd(step), num_steps)[0]
    decay, target = expm(-precision * step * num_steps), np.linalg.inv(precision)
    np.testing.assert_allclose(end.mean(0), mean + decay @ (x.mean(0) - mean), atol=5 * step)
    expected = target + decay @ (np.cov(x.T, bias=True) - target) @ decay
    np.testing.assert_allclose(np.cov(end.T, bias=True), expected, atol=5 * step)


def test_two_gaussian_targets_follow_the_min_norm_equation():
    """Weights from the exact Gram Q_kj = E⟨Δ_k, Δ_j⟩, Δ_k = P_k(x − m_k) − C⁻¹(x − μ), for K =
    2."""
    step, num_steps = 1e-3, 800
    precisions = [np.diag([1.0, 3.0]), np.array([[2.0, -0.5], [-0.5, 0.7]])]
    means = [np.array([2.0, 0.0]), np.array([-1.0, 1.0])]
    x = np.random.default_rng(1).normal(size=(N, 2)) * 1.5 + np.array([0.7, 1.0])

    def weights(mean, covariance):
        fields = [
            (p - np.linalg.inv(covariance), p @ (mean - m))
            for p, m in zip(precisions, means, strict=True)
        ]
        gram = np.array(
            [[np.trace(a @ covariance @ c.T) + b @ d for c, d in fields] for a, b in fields]
        )
        first = (gram[1, 1] - gram[0, 1]) / (gram[0, 0] + gram[1, 1] - 2 * gram[0, 1])
        return fields, np.clip(first, 0, 1)

    def slope(_, y):
        mean, covariance = y[:2], y[2:].reshape(2, 2)
        fields, first = weights(mean, covariance)
        matrix = -(first * fields[0][0] + (1 - first) * fields[1][0])
        shift = -(first * fields[0][1] + (1 - first) * fields[1][1])
        return np.concatenate([shift, (matrix @ covariance + covariance @ matrix.T).ravel()])

    moments = lambda x: np.concatenate([x.mean(0), np.cov(x.T, bias=True).ravel()])
    objectives = lambda: tuple(map(gaussian, means, precisions))
    end, history = run(x, objectives, optax.sgd(step), num_steps)
    exact = solve_ivp(slope, (0, step * num_steps), moments(x), rtol=1e-9, atol=1e-9, max_step=0.01)
    np.testing.assert_allclose(moments(end), exact.y[:, -1], atol=10 * step)
    first, last = (weights(y[:2], y[2:].reshape(2, 2))[1] for y in exact.y.T[[0, -1]])
    np.testing.assert_allclose(history[0, 0], first, atol=1e-6)
    np.testing.assert_allclose(history[-1, 0], last, atol=10 * step)
    assert abs(first - last) > 0.05  # the weights do move


@pytest.mark.parametrize("beta", [0.5])
def test_the_accelerated_flow_of_a_gaussian(beta):
    """x = m(t) + s(t) z towards N(0, 1): m̈ = −αṁ − m, s̈ = −αṡ − (s − 1/s), α = 2√β."""
    eta, num_steps = 1e-6, 2000
    x = np.random.default_rng(2).normal(size=(N, 1)) * 1.7 + 3.0
    objectives = lambda: (gaussian(np.zeros(1), np.eye(1)),)
    optimizer = flows.accelerated(eta, strong_convexity=beta, restart=False)
    end, _ = run(x, objectives, optimizer, num_steps)
    damping = 2 * np.sqrt(beta)

    def slope(_, y):
        m, s, dm, ds = y
        return [dm, ds, -damping * dm - m, -damping * ds - (s - 1 / s)]

    time = np.sqrt(eta) * num_steps
    exact = solve_ivp(slope, (0, time), [x.mean(), x.std(), 0, 0], rtol=1e-10).y[:, -1]
    np.testing.assert_allclose([end.mean(), end.std()], exact[:2], atol=5 * np.sqrt(eta))
